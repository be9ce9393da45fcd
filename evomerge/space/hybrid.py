"""Two stages, as a file says them: a merge of weights first, then paths over layers that have its winner too."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Literal

from pydantic import Field, SerializerFunctionWrapHandler, model_serializer, model_validator

from evomerge.config import Document, Frozen, Key, validate
from evomerge.errors import SpaceError
from evomerge.space.config import SpaceConfig
from evomerge.space.dataflow import DataflowConfig
from evomerge.space.problems import refuse
from evomerge.space.source import Source

if TYPE_CHECKING:
    from evomerge.space.mergekit_evolve import Migrated

# The first stage's winner, by its reference in the file and its short name.
MERGED = "merged"


class HybridConfig(Frozen):
    """A parameter space and a data-flow space over its winner and the sources.

    Attributes:
        name: What the space is called in a study's name; default: the file's name.
        kind: Says that the file has two stages.
        share: Of the budget, for the parameter stage.
        parameter: The first stage.
        paths: The second stage (`dataflow:` in the file), with the reference "merged" for the winner; by default over
            [merged, *the first stage's sources].
    """

    name: str = ""
    kind: Literal["hybrid"] = "hybrid"
    share: float = Field(default=0.5, gt=0, lt=1)
    parameter: SpaceConfig
    paths: DataflowConfig = Field(alias="dataflow")

    @model_validator(mode="before")
    @classmethod
    def _default_sources(cls, value: Any) -> Any:
        if not isinstance(value, Mapping) or not isinstance(value.get("dataflow", {}), Mapping):
            return value
        stage, first = value.get("dataflow", {}), value.get("parameter")
        given = first.sources if isinstance(first, SpaceConfig) else None
        if isinstance(first, Mapping) and isinstance(first.get("sources"), list | tuple):
            given = first["sources"]
        sources = stage.get("sources", [MERGED, *(given or ())])
        if isinstance(sources, list | tuple):
            sources = [{"model": MERGED, "name": MERGED} if s == MERGED else s for s in sources]
        return {**value, "dataflow": {**stage, "sources": sources}}

    @model_validator(mode="after")
    def _consistent(self) -> HybridConfig:
        refuse(self, self._problems())
        return self

    @model_serializer(mode="wrap")
    def _as_in_the_file(self, handler: SerializerFunctionWrapHandler) -> dict[str, Any]:
        data: dict[str, Any] = handler(self)
        data["dataflow"] = data.pop("paths", data.get("dataflow"))
        return data

    def _problems(self) -> Iterator[tuple[Key, str]]:
        first, *others = self.paths.sources
        if first.model != MERGED:
            yield ("dataflow", "sources", 0), f'expected "{MERGED}" (the parameter stage\'s winner) as the first source'
        stages = {s.model: s.name for s in self.parameter.sources}
        names = {name: model for model, name in stages.items()}
        if MERGED in names:
            yield ("parameter", "sources"), f'"{MERGED}" is the name of this stage\'s winner; give the source another'
        for i, source in enumerate(others, 1):
            if stages.get(source.model, source.name) != source.name:
                named = stages[source.model]
                yield ("dataflow", "sources", i), f'is named "{source.name}" here and "{named}" in the parameter stage'
            elif names.get(source.name, source.model) != source.model:
                other = names[source.name]
                yield ("dataflow", "sources", i), f'"{source.name}" is {other} in the parameter stage; rename one'

    @property
    def sources(self) -> tuple[Source, ...]:
        """The sources of both stages, the first's first; not its winner."""
        known = {s.model for s in self.parameter.sources}
        more = (s for s in self.paths.sources if s.model not in known and s.model != MERGED)
        return (*self.parameter.sources, *more)

    @property
    def base_model(self) -> str | None:
        """The first stage's base, or the one that the second stage names to be measured."""
        return self.parameter.base_model or self.paths.base_model

    @property
    def dtype(self) -> str | None:
        """The first stage's."""
        return self.parameter.dtype

    @property
    def out_dtype(self) -> str | None:
        """The first stage's."""
        return self.parameter.out_dtype

    @property
    def tokenizer_source(self) -> str | None:
        """The first stage's; the second takes its winner's."""
        return self.parameter.tokenizer_source

    @property
    def migrated(self) -> Migrated | None:
        """What a mergekit-evolve configuration brought along as the first stage."""
        return self.parameter.migrated

    def references(self) -> list[str]:
        """Every model that the space names, the base first; not the first stage's winner, which is made."""
        later = [r for r in self.paths.references() if r != MERGED]
        return list(dict.fromkeys([*([self.base_model] if self.base_model else []), *self._first(), *later]))

    def _first(self) -> list[str]:
        return self.parameter.references()

    def dataflow(self, model: str) -> DataflowConfig:
        """The second stage with the first one's winner at a reference, under the short name "merged".

        Base and dtypes are the first stage's where it says nothing of them.
        """
        placed = self.paths.placed({MERGED: model})
        update = {
            "name": f"{self.name or 'hybrid'}-dataflow",
            "base_model": placed.base_model or self.parameter.base_model,
            "dtype": placed.dtype or self.parameter.dtype,
            "out_dtype": placed.out_dtype or self.parameter.out_dtype,
        }
        # Read anew, so that what it has counts as given and is kept with a study.
        data = placed.model_dump(exclude_unset=True) | {k: v for k, v in update.items() if v is not None}
        return DataflowConfig.model_validate(data)

    def with_sources(self, models: Sequence[str], base: str | None = None) -> HybridConfig:
        """The same two stages over other models; the second's are the winner and all of them."""
        stage = self.paths.model_dump(exclude_unset=True, exclude={"sources", "base_model"})
        data = {
            **self.model_dump(exclude_unset=True, exclude={"parameter", "paths"}, by_alias=True),
            "name": self.name,
            "parameter": self.parameter.with_sources(models, base),
            "dataflow": stage,
        }
        return validate(HybridConfig, Document(data, f"{self.name or 'space'} (--models/--base)"), SpaceError)

    def placed(self, places: Mapping[str, str]) -> HybridConfig:
        """The same space with its models at other references, under the same short names."""
        return self.model_copy(update={"parameter": self.parameter.placed(places), "paths": self.paths.placed(places)})
