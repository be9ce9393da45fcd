"""Styles of a student (DMM): of each teacher a learned vector, which an MLP makes a shift of the time embedding."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

# What diffusers calls the embedding of time: one in a UNet, one in each block of a DiT.
_TIME = ("time_embedding", "timestep_embedder")


class Styles(nn.Module):
    """s_i -> shift of the time embedding, for each style or a mixture of styles.

    The last layer begins at 0, so that a new student says what its base says, in every style.

    Args:
        count: Number of styles.
        dim: Numbers of a style vector.
        width: Of the time embedding.
        generator: Draws the vectors and the first layer.
    """

    def __init__(self, count: int, dim: int, width: int, generator: torch.Generator | None = None) -> None:
        super().__init__()
        self.vectors = nn.Parameter(torch.randn(count, dim, generator=generator))
        self.inner = nn.Linear(dim, width)
        self.outer = nn.Linear(width, width)
        with torch.no_grad():
            self.inner.weight.copy_(torch.randn(width, dim, generator=generator) / dim**0.5)
            self.inner.bias.zero_()
            self.outer.weight.zero_()
            self.outer.bias.zero_()

    def forward(self, weights: Tensor) -> Tensor:
        """Shifts of the time embedding, [n, width].

        Args:
            weights: [n, styles]; a row of one 1 is a style, others mix the vectors.
        """
        shift: Tensor = self.outer(nn.functional.silu(self.inner(weights @ self.vectors)))
        return shift

    def extended(self, count: int, generator: torch.Generator) -> Styles:
        """The same with so many styles more, whose vectors are drawn."""
        old, dim = self.vectors.shape
        found = Styles(old + count, dim, self.outer.out_features)
        found.load_state_dict({**self.state_dict(), "vectors": torch.cat(
            [self.vectors.detach().cpu(), torch.randn(count, dim, generator=generator)]
        )})  # fmt: skip
        return found


class StyledDenoiser(nn.Module):
    """A denoiser of diffusers' whose time embedding is shifted by a style.

    Attributes:
        denoiser: The plain model; called by itself it knows no styles.
    """

    def __init__(self, denoiser: Any, styles: Styles) -> None:
        super().__init__()
        self.denoiser = denoiser
        self.styles = styles
        self._shift: Tensor | None = None
        # Dropout, and the classes that a DiT's embedding of labels leaves out.
        self._drops = any(
            getattr(m, "dropout_prob", 0) > 0 or (isinstance(m, nn.modules.dropout._DropoutNd) and m.p > 0)
            for m in denoiser.modules()
        )
        for module in time_embeddings(denoiser):
            module.register_forward_hook(self._shifted)

    def train(self, mode: bool = True) -> StyledDenoiser:
        """Stay in evaluation mode where anything would be dropped in the other, for which a Trainer asks in every step.

        What is dropped is drawn for a student and its teachers alike, by who trains. A DiT in training mode leaves out
        classes by itself, in each of its blocks another one's. Without any of that the modes differ in rounding alone.
        """
        return super().train(mode and not self._drops)

    def _shifted(self, module: nn.Module, inputs: Any, output: Tensor) -> Tensor:
        return output if self._shift is None else output + self._shift.to(output.dtype)

    def forward(self, sample: Tensor, timestep: Tensor, weights: Tensor, **told: Tensor) -> Tensor:
        """What the denoiser says of noisy pictures or latents, [n, channels, height, width].

        Args:
            weights: Of styles, [n, styles].
            told: The condition; see `Conditions`.
        """
        self._shift = self.styles(weights)
        try:
            said: Tensor = self.denoiser(sample, timestep, **told).sample
        finally:
            self._shift = None
        return said

    @torch.no_grad()
    def folded(self, weights: Tensor) -> Any:
        """A plain denoiser that says the same in one style or mixture, without any code of ours.

        The shift is constant for a style, so it goes into the bias of the time embedding's last layer.

        Args:
            weights: [styles].
        """
        shift = self.styles(weights.unsqueeze(0))[0]
        hooks = [(m, m._forward_hooks) for m in time_embeddings(self.denoiser)]
        for module, _ in hooks:
            module._forward_hooks = type(module._forward_hooks)()
        try:
            plain = copy.deepcopy(self.denoiser)
        finally:
            for module, kept in hooks:
                module._forward_hooks = kept
        for module in time_embeddings(plain):
            last = module.linear_2
            if last.bias is None:
                last.bias = nn.Parameter(torch.zeros_like(last.weight[:, 0]))
            last.bias.add_(shift.to(last.bias.dtype))
        return plain.eval().requires_grad_(False)


def time_embeddings(denoiser: Any) -> list[Any]:
    """The modules whose outputs are the embedding of time."""
    return [m for name, m in denoiser.named_modules() if name.rpartition(".")[2] in _TIME]


def time_width(denoiser: Any) -> int:
    """How many numbers the embedding of time has."""
    return int(time_embeddings(denoiser)[0].linear_2.out_features)


def blocks_of(denoiser: Any) -> list[Any]:
    """The blocks whose outputs are compared: of a UNet down, middle and up (nine in SD 1.5), of a DiT its layers."""
    if hasattr(denoiser, "transformer_blocks"):
        return list(denoiser.transformer_blocks)
    middle = [denoiser.mid_block] if denoiser.mid_block is not None else []
    return [*denoiser.down_blocks, *middle, *denoiser.up_blocks]


class BlockOutputs:
    """Keeps what the blocks of a denoiser put out in its last pass. As a context manager it stops at the end."""

    def __init__(self, denoiser: Any) -> None:
        self.outputs: list[Tensor] = []
        self._handles = [b.register_forward_hook(self._keep) for b in blocks_of(denoiser)]

    def _keep(self, module: nn.Module, inputs: Any, output: Any) -> None:
        self.outputs.append(output[0] if isinstance(output, tuple) else output)

    def take(self) -> list[Tensor]:
        """The outputs since the last call."""
        found, self.outputs = self.outputs, []
        return found

    def __enter__(self) -> BlockOutputs:
        return self

    def __exit__(self, *_: object) -> None:
        for handle in self._handles:
            handle.remove()


def one_hot(numbers: Sequence[int] | Tensor, count: int) -> Tensor:
    """Weights that mean one style each, [n, count]."""
    return torch.nn.functional.one_hot(torch.as_tensor(numbers), count).float()
