"""The surface that every kind of space has: what pipeline, command line and report build on."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, Protocol

from evomerge.recipe import Recipe
from evomerge.score import Value
from evomerge.space.parameters import Parameter
from evomerge.space.shape import Shape
from evomerge.space.source import Source
from evomerge.space.starts import Start

if TYPE_CHECKING:
    from evomerge.space.compact import CompactSpace
    from evomerge.space.config import SpaceConfig
    from evomerge.space.dataflow import DataflowConfig
    from evomerge.space.hybrid import HybridConfig
    from evomerge.space.mergekit_evolve import Migrated
    from evomerge.space.slots import SlotSpace
    from evomerge.space.space import Space


class Config(Protocol):
    """A space as a file says it, of any kind.

    Attributes:
        sources: The models that may give something, with their short names.
        base_model: Reference of the base, which is measured beside them; None without one.
        migrated: What mergekit-evolve's file says beside the space; None where it is a file of our own.
    """

    @property
    def name(self) -> str: ...
    @property
    def kind(self) -> str: ...
    @property
    def sources(self) -> tuple[Source, ...]: ...
    @property
    def base_model(self) -> str | None: ...
    @property
    def dtype(self) -> str | None: ...
    @property
    def out_dtype(self) -> str | None: ...
    @property
    def tokenizer_source(self) -> str | None: ...
    @property
    def migrated(self) -> Migrated | None: ...

    def references(self) -> list[str]:
        """Every model that the space names, the base first."""
        ...

    def with_sources(self, models: Sequence[str], base: str | None = None) -> Config:
        """The same space over other models.

        Raises:
            SpaceError: it cannot be had over them.
        """
        ...

    def placed(self, places: Mapping[str, str]) -> Config:
        """The same space with its models at other references, under the same short names."""
        ...


class Bindable(Config, Protocol):
    """A space of one stage: with the shapes of its models it can be searched."""

    def bind_models(self, shapes: Mapping[str, Shape]) -> SearchSpace:
        """The space for models of these shapes, by reference.

        Raises:
            SpaceError: what cannot be had with these models, by its key.
        """
        ...


class SearchSpace(Protocol):
    """Typed parameters <-> Recipe, for models of known shapes.

    Attributes:
        names: Short names of the sources.
        parameters: What the optimizer varies.
        sampler: The optimizer that suits the space ("auto").
        sigma: The first step that suits it, as a share of each range; None: the sampler's own.
    """

    @property
    def config(self) -> SpaceConfig | DataflowConfig: ...
    @property
    def names(self) -> tuple[str, ...]: ...
    @property
    def parameters(self) -> tuple[Parameter, ...]: ...
    @property
    def sampler(self) -> str: ...
    @property
    def sigma(self) -> float | None: ...

    def initial(self) -> dict[str, Value]:
        """The starting value of every parameter, in their order."""
        ...

    def starts(self) -> list[Start]:
        """What everybody tries first, as far as the space has it: each source as it is, and of merges the uniform one
        and the methods' published settings. In this order, none twice."""
        ...

    def decode(self, params: Mapping[str, Value], seed: int = 0) -> Recipe:
        """The recipe of some parameters.

        Raises:
            SpaceError: a value is missing, unknown or out of bounds.
        """
        ...

    def encode(self, recipe: Recipe) -> dict[str, Value]:
        """Parameters of a recipe, so that decode(encode(recipe)) builds the same model.

        Raises:
            SpaceError: which part of the recipe the space cannot express.
        """
        ...

    def fingerprint(self) -> dict[str, Any]:
        """What makes this space this space, as plain data; the file's name and way of writing do not count."""
        ...

    def describe(self) -> str:
        """One line for printing."""
        ...


if TYPE_CHECKING:  # here mypy holds every kind to its protocol
    _configs: tuple[type[Config], ...] = (SpaceConfig, DataflowConfig, HybridConfig)
    _of_one_stage: tuple[type[Bindable], ...] = (SpaceConfig, DataflowConfig)
    _spaces: tuple[type[SearchSpace], ...] = (Space, CompactSpace, SlotSpace)
