"""Skills on a live model, each with a weight that every row of a batch has its own of."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.pytorch_utils import Conv1D

from evomerge.errors import InputError, SourceError
from evomerge.merging.conversion import converted_parts
from evomerge.merging.mapped import MappedFiles
from evomerge.sources import Source


class Mixed(nn.Module):
    """Adds sum_i alpha_i s_i B_i A_i x to what a model's linear layers give, by hooks on them.

    All skills of one layer are one pair of thin matrices, A = [A_1; A_2; ...] of R rows and B = [s_1 B_1, s_2 B_2,
    ...], between which each of the R numbers is multiplied by its skill's weight: the same for any mix of ranks.

    Args:
        model: The live base; it gets hooks, its weights stay.
        skills: The base with each skill on it, in the order of the weights.
        per_layer: Whether each layer has weights of its own; the head has the last one's.

    Attributes:
        groups: How many parts have weights of their own.
        skills: How many skills there are.

    Raises:
        SourceError: a skill changes what is no linear layer of the live model, or what rows of a batch share.
    """

    def __init__(self, model: PreTrainedModel, skills: Sequence[Source], per_layer: bool) -> None:
        super().__init__()
        self.groups = skills[0].num_layers if per_layer else 1
        self.skills = len(skills)
        self._weights: Tensor | None = None
        self._seen: set[str] = set()
        self._names: dict[str, str] = {}
        self.parts = nn.ModuleDict()
        for number, (name, module, pairs) in enumerate(_layers(model, skills)):
            layer = skills[0].layout.places[name].layer
            group = 0 if not per_layer else self.groups - 1 if layer is None else layer
            part = _Part(pairs, group)
            self._names[str(number)] = name
            self.parts[str(number)] = part
            module.register_forward_hook(self._hook(str(number), part))
        self.to(model.device)
        self._probe(model)

    @contextmanager
    def weighed(self, weights: Tensor | None) -> Iterator[None]:
        """Forward passes inside the block are with these weights, and those after it with what was before it.

        Args:
            weights: alpha, [rows, groups, skills]; a batch of n times as many rows (beams) has each n times. None: the
                base as it is by itself.
        """
        outer = self._weights
        self._weights = weights
        try:
            yield
        finally:
            self._weights = outer

    def _hook(self, number: str, part: _Part) -> Any:
        def add(_module: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> Tensor:
            if self._weights is None:
                return output
            self._seen.add(number)
            added: Tensor = part(inputs[0], self._weights)
            return output + added.to(output.dtype)

        return add

    def _probe(self, model: PreTrainedModel) -> None:
        """Look whether every layer passes here: some families compute with a layer's weight, and never call it."""
        ids = torch.zeros(2, 3, dtype=torch.long, device=model.device)
        zero = torch.zeros(2, self.groups, self.skills, device=model.device)
        with torch.no_grad(), self.weighed(zero):
            model(input_ids=ids, attention_mask=torch.ones_like(ids), use_cache=False)
        passed = [self._names[n] for n in self.parts if n not in self._seen]
        if passed:
            raise _no_place(passed[0])


class _Part(nn.Module):
    """What is added to one layer's output."""

    a: Tensor
    b: Tensor
    skill: Tensor

    def __init__(self, pairs: Sequence[tuple[int, Tensor, Tensor]], group: int) -> None:
        super().__init__()
        self.group = group
        self.register_buffer("a", torch.cat([a for _, a, _ in pairs]))
        self.register_buffer("b", torch.cat([b for _, _, b in pairs], dim=1))
        self.register_buffer("skill", torch.tensor([i for i, a, _ in pairs for _ in range(len(a))]))

    def forward(self, x: Tensor, weights: Tensor) -> Tensor:
        if x.dim() == 3 and len(x) % len(weights):
            raise InputError(f"weights of {len(weights)} rows, in a pass of {len(x)}: expected as many, or 1")
        if x.dim() != 3:
            # The experts of a mixture have tokens of all rows, one after the other.
            raise SourceError(
                "a skill changes a layer whose inputs are not by prompt (a mixture's experts): expected none such, or "
                "weights that are the same for every prompt (evomerge skills compose)"
            )
        own = weights[:, self.group, :][:, self.skill]  # [rows, R]
        if len(x) != len(weights):
            own = own.repeat_interleave(len(x) // len(weights), dim=0)
        thin = nn.functional.linear(x.to(self.a.dtype), self.a) * own.unsqueeze(1).to(self.a.dtype)
        return nn.functional.linear(thin, self.b)


def _layers(
    model: PreTrainedModel, skills: Sequence[Source]
) -> Iterator[tuple[str, nn.Module, list[tuple[int, Tensor, Tensor]]]]:
    """Each layer that some skill changes: its weight's name in the checkpoint, itself, and (skill, A, s B) of each."""
    changed: dict[str, list[int]] = {}
    for number, source in enumerate(skills):
        assert source.adapter is not None
        for name in source.adapter.updates:
            changed.setdefault(name, []).append(number)
    shapes: Mapping[str, tuple[int, ...]] = {name: skills[0].tensors[name].shape for name in sorted(changed)}
    files = MappedFiles()
    for name, place in converted_parts(shapes, model).items():
        live = place.name.removesuffix(".weight") if place is not None and not place.steps else None
        module = None if live is None or not place or live == place.name else model.get_submodule(live)
        if not isinstance(module, nn.Linear | Conv1D):
            raise _no_place(name)
        pairs = []
        for number in changed[name]:
            adapter = skills[number].adapter
            assert adapter is not None
            update = adapter.updates[name]
            a, b = files.tensor(update.a).float(), files.tensor(update.b).float()
            pairs.append((number, a, update.scale * b))
        yield name, module, pairs


def _no_place(name: str) -> SourceError:
    return SourceError(
        f'the live model has no linear layer of its own for "{name}", which a skill changes: expected another family, '
        "or weights that are the same for every prompt (evomerge skills compose)"
    )
