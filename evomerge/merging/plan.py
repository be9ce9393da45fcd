"""What a recipe asks for, tensor by tensor, worked out before any tensor is read."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from evomerge.header import ITEM_SIZES, TensorInfo
from evomerge.recipe import Recipe
from evomerge.sources import Source

Value = float | bool | tuple[float, ...]


@dataclass(frozen=True, slots=True)
class Input:
    """One tensor of one source."""

    model: str
    tensor: str


@dataclass(frozen=True, slots=True)
class TensorPlan:
    """One output tensor.

    Attributes:
        name: In the merged checkpoint.
        inputs: In the recipe's order; without the base where the method works against one.
        base: The base's tensor, for those methods.
        parameters: Resolved, by the keyword of the method's function; tuples run along `inputs`.
        shape: Of every input and of the output.
        dtype: Of the output, by safetensors' name.
        copied: No merge: the first input (the base) as it is, where the tensor is no float or nothing is merged in.
    """

    name: str
    inputs: tuple[Input, ...]
    base: Input | None
    parameters: Mapping[str, Value]
    shape: tuple[int, ...]
    dtype: str
    copied: bool = False

    @property
    def bytes(self) -> int:
        """Size of the output."""
        return math.prod(self.shape) * ITEM_SIZES[self.dtype]

    @property
    def reads(self) -> tuple[Input, ...]:
        """Every input, the base included."""
        return (self.base, *self.inputs) if self.base else self.inputs


@dataclass(frozen=True)
class Plan:
    """Everything that will be done for a recipe.

    Attributes:
        donor: Reference of the model that gives configuration and tokenizer.
        layers: For each output layer, the model and layer whose entries in per-layer lists of the configuration it has.
        tokenizer: Reference of the model whose tokenizer is copied.
    """

    recipe: Recipe
    sources: Mapping[str, Source]
    tensors: tuple[TensorPlan, ...]
    donor: str
    layers: tuple[tuple[str, int], ...]
    tokenizer: str

    def info(self, item: Input) -> TensorInfo:
        """The header's entry of an input."""
        return self.sources[item.model].tensors[item.tensor]

    @property
    def bytes_read(self) -> int:
        """Bytes of source tensors that will be read, each counted once."""
        inputs = dict.fromkeys(i for t in self.tensors for i in t.reads)
        return sum(info.end - info.start for info in map(self.info, inputs))

    @property
    def bytes_written(self) -> int:
        """Bytes of the merged tensors."""
        return sum(t.bytes for t in self.tensors)

    def summary(self) -> dict[str, Any]:
        """What `evomerge check RECIPE` shows: plain data. `groups` are tensors that share sources and parameters."""
        groups: Counter[tuple[tuple[str, ...], tuple[tuple[str, Value], ...], bool]] = Counter()
        first: dict[Any, str] = {}
        for t in self.tensors:
            key = (tuple(i.model for i in t.reads), tuple(t.parameters.items()), t.copied)
            groups[key] += 1
            first.setdefault(key, t.name)
        return {
            "method": self.recipe.merge_method,
            "layers": len(self.layers),
            "tensors": len(self.tensors),
            "parameters": sum(math.prod(t.shape) for t in self.tensors),
            "bytes_read": self.bytes_read,
            "bytes_written": self.bytes_written,
            "configuration_of": self.donor,
            "tokenizer_of": self.tokenizer,
            "groups": [
                {"tensors": n, "first": first[key], "models": list(key[0]), "copied": key[2],
                 "parameters": {k: list(v) if isinstance(v, tuple) else v for k, v in key[1]}}
                for key, n in groups.items()
            ],
        }  # fmt: skip
