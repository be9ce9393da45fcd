"""What may vary in a path over layers, as a file says it: the frozen model of `kind: dataflow`."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Literal

from pydantic import Field, field_validator, model_validator

from evomerge.config import Document, Frozen, Key, validate
from evomerge.errors import SpaceError, choose
from evomerge.space.config import Dtype
from evomerge.space.problems import refuse
from evomerge.space.scale import Scale
from evomerge.space.shape import Shape
from evomerge.space.source import Model, Sources, named_models, repeated

if TYPE_CHECKING:
    from evomerge.space.compact import CompactSpace
    from evomerge.space.slots import SlotSpace

# First step of the paper's search of paths, as a share of each range (arXiv 2403.13187).
SIGMA = 1 / 6
# Keys that only one encoding takes.
KEYS: dict[str, tuple[str, ...]] = {
    "compact": ("repeats", "insertions", "layer_groups", "layers_per_group"),
    "slots": ("repetitions",),
}


class Depth(Frozen):
    """How many layers a path may have.

    Attributes:
        low: Fewest layers of a path.
        high: Most layers of a path; default: as many as the encoding can give.
        objective: Whether fewer layers are an objective beside the score.
    """

    low: int = 1
    high: int | None = None
    objective: bool = False

    @model_validator(mode="after")
    def _consistent(self) -> Depth:
        refuse(self, self._problems())
        return self

    def _problems(self) -> Iterator[tuple[Key, str]]:
        for key in ("low", "high"):
            if (value := getattr(self, key)) is not None and value < 1:
                yield (key,), "a path has at least 1 layer"
        if self.high is not None and 1 <= self.high < self.low:
            yield ("low",), f"low = {self.low} is above high = {self.high}"

    def words(self) -> str:
        """The bounds, for messages."""
        return f"{self.low} or more" if self.high is None else f"{self.low} to {self.high}"


class DataflowConfig(Frozen):
    """A data-flow space as a file gives it; `bind_models` makes it one for models of known shapes.

    Attributes:
        name: What the space is called in a study's name; default: the file's name.
        kind: Says that the file is about paths over layers.
        base_model: Measured beside the sources, nothing more.
        sources: Whose layers paths pass; the search starts from the first one's own path.
        encoding: `compact`: swaps, repeats, skips and insertions on top of the first source's path; `slots`: that of
            arXiv 2403.13187, all layers in order, some times over, each in or out.
        scale: What the residual stream is multiplied by where a hop begins: bounds, or 1 for none.
        depth: How many layers a path may have.
        embeddings, head: Names of the sources that may give them; default all. Tied heads go with the embeddings.
        repetitions: slots: how often all layers stand in a row.
        repeats: compact: how often a position may be passed.
        insertions: compact: how many layers (groups) may be put in beside.
        layer_groups, layers_per_group: compact: a position is a group of consecutive layers; default one layer.
        dtype: Arithmetic type of recipes, as mergekit has it.
        out_dtype: Type that a checkpoint is saved in; default: dtype, else the sources' own.
    """

    name: str = ""
    kind: Literal["dataflow"] = "dataflow"
    base_model: Model | None = None
    sources: Sources
    encoding: Literal["compact", "slots"] = "compact"
    scale: Scale = Scale()
    depth: Depth = Depth()
    embeddings: tuple[str, ...] | None = Field(default=None, min_length=1)
    head: tuple[str, ...] | None = Field(default=None, min_length=1)
    repetitions: int = Field(default=3, ge=1)
    repeats: int = Field(default=2, ge=1)
    insertions: int = Field(default=2, ge=0)
    layer_groups: int | None = Field(default=None, ge=1)
    layers_per_group: int | None = Field(default=None, ge=1)
    dtype: Dtype | None = None
    out_dtype: Dtype | None = None

    @field_validator("embeddings", "head", mode="before")
    @classmethod
    def _one(cls, value: Any) -> Any:
        return (value,) if isinstance(value, str) else value

    @model_validator(mode="after")
    def _consistent(self) -> DataflowConfig:
        refuse(self, self._problems())
        return self

    def _problems(self) -> Iterator[tuple[Key, str]]:
        yield from repeated(self.sources)
        names = [s.name for s in self.sources]
        for key in ("embeddings", "head"):
            chosen = getattr(self, key) or ()
            for name in chosen:
                if name not in names:
                    yield (key,), f'no source is named "{name}"; {choose(name, names)}'
            if len(set(chosen)) < len(chosen):
                yield (key,), "names a source twice"
        for encoding, keys in KEYS.items():
            for key in keys if encoding != self.encoding else ():
                if key in self.model_fields_set:
                    yield (key,), f'is a key of encoding "{encoding}"; this space has "{self.encoding}"'
        if self.layer_groups is not None and self.layers_per_group is not None:
            yield ("layer_groups",), '"layer_groups" and "layers_per_group" cannot both be given'

    @property
    def tokenizer_source(self) -> str | None:
        """None: a path has the tokenizer of its sources, which they share."""
        return None

    @property
    def migrated(self) -> None:
        """None: mergekit-evolve has no such spaces."""
        return None

    def references(self) -> list[str]:
        """Every model that the space names, the base first."""
        return named_models(self.base_model, self.sources)

    def with_sources(self, models: Sequence[str], base: str | None = None) -> DataflowConfig:
        """The same space over other models (`--models A B --base C`)."""
        return self._again({"sources": list(models), "base_model": base}, "--models/--base")

    def placed(self, places: Mapping[str, str]) -> DataflowConfig:
        """The same space with its models at other references, under the same short names."""
        sources = tuple(s.at(places) for s in self.sources)
        base = places.get(self.base_model or "", self.base_model)
        return self.model_copy(update={"sources": sources, "base_model": base})

    def bind_models(self, shapes: Mapping[str, Shape]) -> CompactSpace | SlotSpace:
        """The space for models of these shapes, by reference.

        Raises:
            SpaceError: scales that a source cannot have, a head that is tied, more groups than layers, a depth out of
                reach.
        """
        if self.encoding == "slots":
            from evomerge.space.slots import SlotSpace

            return SlotSpace(self, shapes)
        from evomerge.space.compact import CompactSpace

        return CompactSpace(self, shapes)

    def _again(self, changes: Mapping[str, Any], what: str) -> DataflowConfig:
        data = self.model_dump(exclude_unset=True) | {"name": self.name, **changes}
        return validate(DataflowConfig, Document(data, f"{self.name or 'space'} ({what})"), SpaceError)
