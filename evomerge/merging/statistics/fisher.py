"""Diagonal Fisher information of a language model (Matena & Raffel, arXiv 2111.09832)."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import TYPE_CHECKING, Literal

import torch
from torch import Tensor

if TYPE_CHECKING:
    from transformers import PreTrainedModel

Labels = Literal["model", "text"]


def fisher_diagonal(
    model: PreTrainedModel,
    texts: Sequence[Sequence[int]],
    labels: Labels,
    generator: torch.Generator,
    progress: Callable[[int], None] | None = None,
) -> dict[str, Tensor]:
    """F_j = mean over texts n of (d log p(y_n | x_n) / d theta_j)^2, log p summed over the tokens of a text.

    A text's gradient is squared before anything is added up, so texts go through the model one by one.

    Args:
        texts: Token ids of each.
        labels: "model": y is drawn from the model's own distribution at each position, given the text so far: the
            Fisher information itself. "text": y is the text's next token: the empirical Fisher, which is another
            quantity (it measures where the model is wrong too; Kunstner et al., arXiv 1905.12558).
        generator: Draws the labels; on the CPU, so that devices agree on them as far as their probabilities do.
        progress: Called with the tokens of each text that is done.

    Returns:
        By parameter name: float32, of its shape, on its device. A tied parameter appears once; those that no gradient
        reaches not at all.
    """
    parameters = {name: p for name, p in model.named_parameters() if p.is_floating_point()}
    before = {name: p.requires_grad for name, p in parameters.items()}
    found: dict[str, Tensor] = {}
    try:
        model.requires_grad_(True)
        for tokens in texts:
            ids = torch.tensor([list(tokens)], device=model.device)
            with torch.enable_grad():
                logits = model(input_ids=ids, use_cache=False).logits[0, :-1]
                logits = logits if logits.dtype == torch.float64 else logits.float()
                chosen = ids[0, 1:] if labels == "text" else _drawn(logits.detach(), generator)
                likelihood = torch.log_softmax(logits, dim=-1).gather(1, chosen[:, None]).sum()
                gradients = torch.autograd.grad(likelihood, list(parameters.values()), allow_unused=True)
            for name, gradient in zip(parameters, gradients, strict=True):
                if gradient is not None:
                    square = gradient.float().square_()
                    found[name] = found[name].add_(square) if name in found else square
            if progress:
                progress(len(tokens))
    finally:
        for name, p in parameters.items():
            p.requires_grad_(before[name])
    return {name: total.div_(len(texts)) for name, total in found.items()}


def _drawn(logits: Tensor, generator: torch.Generator) -> Tensor:
    """One token for each row, drawn from its distribution by a uniform number and the cumulated probabilities."""
    cumulated = torch.softmax(logits.double().cpu(), dim=-1).cumsum(dim=-1)
    numbers = torch.rand(len(logits), 1, generator=generator, dtype=torch.float64) * cumulated[:, -1:]
    chosen = torch.searchsorted(cumulated, numbers, right=True).squeeze(1)
    return chosen.clamp_(max=logits.shape[-1] - 1).to(logits.device)


def total_tokens(texts: Iterable[Sequence[int]]) -> int:
    """How many tokens there are in all."""
    return sum(len(t) for t in texts)
