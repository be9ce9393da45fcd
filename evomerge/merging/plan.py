"""What a recipe asks for, tensor by tensor, worked out before any tensor is read."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from evomerge.header import ITEM_SIZES, TensorInfo
from evomerge.merging.summary import summary
from evomerge.recipe import Recipe
from evomerge.sources import Source

if TYPE_CHECKING:
    from evomerge.merging.statistics import Statistics
    from evomerge.merging.tokens.gather import Gather
    from evomerge.merging.tokens.merged import MergedVocabulary

Value = float | bool | str | tuple[float, ...]


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
        layer: Which transformer block of the output it belongs to; empty outside of them.
    """

    name: str
    inputs: tuple[Input, ...]
    base: Input | None
    parameters: Mapping[str, Value]
    shape: tuple[int, ...]
    dtype: str
    copied: bool = False
    layer: str = ""

    @property
    def elements(self) -> int:
        """Number of elements of the output."""
        return math.prod(self.shape)

    @property
    def bytes(self) -> int:
        """Size of the output."""
        return self.elements * ITEM_SIZES[self.dtype]

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
        gathers: For inputs with a row for every token whose rows are taken in another order: how. Every other input is
            taken as it is.
        vocabulary: The merged vocabulary, where the recipe asks for one.
        statistics: Of each model that is merged, where the method needs them.
    """

    recipe: Recipe
    sources: Mapping[str, Source]
    tensors: tuple[TensorPlan, ...]
    donor: str
    layers: tuple[tuple[str, int], ...]
    tokenizer: str
    gathers: Mapping[Input, Gather] = field(default_factory=dict)
    vocabulary: MergedVocabulary | None = None
    statistics: Mapping[str, Statistics] = field(default_factory=dict)

    def info(self, item: Input) -> TensorInfo:
        """The header's entry of an input."""
        return self.sources[item.model].tensors[item.tensor]

    def by_token(self, tensor: TensorPlan) -> bool:
        """Whether a tensor has a row for each token (embeddings, heads): a table, no map from one space to another."""
        return any(self.sources[i.model].layout.places[i.tensor].by_token for i in tensor.inputs[:1])

    @property
    def bytes_read(self) -> int:
        """Bytes of source tensors that will be read, each counted once, adapters included."""
        inputs = dict.fromkeys(i for t in self.tensors for i in t.reads)
        infos = dict.fromkeys(map(self.info, inputs))
        for item in inputs:
            adapter = self.sources[item.model].adapter
            update = adapter.updates.get(item.tensor) if adapter else None
            if update:
                infos |= {update.a: None, update.b: None}
        return sum(info.end - info.start for info in infos)

    @property
    def bytes_written(self) -> int:
        """Bytes of the merged tensors."""
        return sum(t.bytes for t in self.tensors)

    def summary(self) -> dict[str, Any]:
        """What `evomerge check RECIPE` shows: plain data, with the groups of tensors that are treated alike."""
        return summary(self)
