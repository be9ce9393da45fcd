"""What may vary in a merge of weights, as a file says it: the frozen model of `kind: parameter`."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from itertools import product
from typing import TYPE_CHECKING, Any, Literal

from pydantic import Field, PrivateAttr, field_validator, model_validator

from evomerge.config import Document, Frozen, Key, validate
from evomerge.errors import SpaceError, choose
from evomerge.library import Library
from evomerge.methods import METHODS, Method, Parameter
from evomerge.space.granularity import Granularity
from evomerge.space.problems import refuse
from evomerge.space.range import Range
from evomerge.space.shape import Shape
from evomerge.space.source import Model, Sources, named_models, repeated

if TYPE_CHECKING:
    from collections.abc import Collection

    from evomerge.space.mergekit_evolve import Migrated
    from evomerge.space.space import Space

Dtype = Literal["float32", "float16", "bfloat16", "float64"]
KINDS = ("parameter", "dataflow", "hybrid", "skills")


class SpaceConfig(Frozen):
    """A parameter space as a file gives it; `bind` makes it one for models of a known depth.

    Attributes:
        name: What the space is called in a study's name; default: the file's name.
        kind: `parameter`: a merge of weights. `dataflow`, `hybrid` and `skills` are mappings of other keys.
        method: A merge method, or a list of them: which one is then searched too.
        base_model: The model that the sources were fine-tuned from; methods over task vectors need it.
        sources: The models to merge, fine-tunes of one base: references, or mappings of the keys of a source.
        granularity: How finely models are cut into parts with values of their own; without it one part, the whole
            model.
        parameters: Parameters of the methods by name, each a range or a fixed value; those left out keep the
            method's default.
        dtype: Arithmetic type of recipes, as mergekit has it; sums are in float32 whatever it says, float64 for
            `float64`.
        out_dtype: Type that a checkpoint is saved in; default: dtype, else the sources' own.
        tokenizer_source: Whose vocabulary a merge has: `union`, `base` or a model; default: the base's (or first
            source's).
        into: The vision-language model whose language model is replaced by merges; its image encoder, projector and
            processor stay, whether it is merged itself or not. Default, where some of the models are text models: the
            first that is none; else all modules are merged.
    """

    name: str = ""
    kind: str = "parameter"
    method: tuple[str, ...] = Field(min_length=1)
    base_model: Model | None = None
    sources: Sources
    granularity: Granularity = Granularity()
    parameters: dict[str, Range] = Field(default_factory=dict)
    dtype: Dtype | None = None
    out_dtype: Dtype | None = None
    tokenizer_source: str | None = None
    into: Model | None = None
    _migrated: Migrated | None = PrivateAttr(default=None)
    _library: Library | None = PrivateAttr(default=None)

    @field_validator("kind")
    @classmethod
    def _kind(cls, value: str) -> str:
        if value in KINDS and value != "parameter":
            raise ValueError('expected a parameter space here, of kind: "parameter"')
        if value != "parameter":
            raise ValueError(choose(value, KINDS))
        return value

    @field_validator("method", mode="before")
    @classmethod
    def _one(cls, value: Any) -> Any:
        return (value,) if isinstance(value, str) else value

    @field_validator("method")
    @classmethod
    def _known(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        for name in value:
            if name not in METHODS:
                raise ValueError(f'unknown merge method "{name}"; {choose(name, list(METHODS))}')
        if len(set(value)) < len(value):
            raise ValueError("a method is named twice")
        return value

    @model_validator(mode="after")
    def _consistent(self) -> SpaceConfig:
        refuse(self, self._problems())
        return self

    @property
    def methods(self) -> tuple[Method, ...]:
        """The chosen methods' entries in the table."""
        return tuple(METHODS[name] for name in self.method)

    @property
    def migrated(self) -> Migrated | None:
        """What a mergekit-evolve configuration brought along; None where the space is of a file of our own."""
        return self._migrated

    @property
    def library(self) -> Library | None:
        """The skill library whose adapters the sources are, which bear its skills' names; None of other spaces."""
        return self._library

    def taken(self, name: str) -> Parameter | None:
        """The method parameter of that name, of the first chosen method that takes it."""
        return next((p for m in self.methods if (p := m.parameter(name))), None)

    def _problems(self) -> Iterator[tuple[Key, str]]:
        yield from repeated(self.sources)
        for i, source in enumerate(self.sources):
            if source.model == self.base_model:
                yield ("sources", i), "is the base_model too; its task vector is zero. Leave it out of the sources"
        for method in self.methods:
            if method.base == "required" and self.base_model is None:
                yield ("base_model",), f'method "{method.name}" needs a base_model'
            if method.statistics:
                yield ("method",), f'method "{method.name}" needs collected statistics, which a space cannot name yet'
            least, most = method.room
            count = len(self.sources)
            if not least <= count <= (count if most is None else most):
                base = " beside the base_model" if method.apart and self.base_model else ""
                wanted = f"exactly {most}" if most == least else f"at least {least}"
                plural = "s" if least > 1 else ""
                yield ("sources",), f'method "{method.name}" takes {wanted} source{plural}{base}, got {count}'
            for parameter in method.parameters:
                if parameter.default is None and parameter.name not in self.parameters:
                    yield ("parameters",), f'method "{method.name}" needs parameter "{parameter.name}": {{low, high}}'
        known = list(dict.fromkeys(p.name for m in self.methods for p in m.parameters))
        for name, given in self.parameters.items():
            taken = self.taken(name)
            if taken is None:
                which = "method " + " or ".join(f'"{m}"' for m in self.method)
                yield ("parameters", name), f'{which} has no parameter "{name}"; {choose(name, known)}'
            else:
                for text in given.problems(taken):
                    yield ("parameters", name), text
        for method in self.methods:
            for text in self._joint_problems(method):
                yield ("parameters",), f'method "{method.name}": {text}; narrow the ranges'

    def _joint_problems(self, method: Method) -> Iterator[str]:
        """The first combination of values at the ends of their ranges that the method refuses."""
        taken = [p for p in method.parameters if p.per_source]
        given = {p.name: self.parameters[p.name] for p in taken if p.name in self.parameters}
        if method.check is None or any(any(given[p.name].problems(p)) for p in taken if p.name in given):
            return
        ends = [given[p.name].ends() if p.name in given else (p.default,) for p in taken]
        for corner in product(*ends):
            problem = next(method.check({p.name: (v,) for p, v in zip(taken, corner, strict=True)}), None)
            if problem:
                yield problem
                return

    def references(self) -> list[str]:
        """Every model that the space names, the base first."""
        named = named_models(self.base_model, self.sources)
        return named if self.into is None or self.into in named else [*named, self.into]

    def with_sources(self, models: Sequence[str], base: str | None = None) -> SpaceConfig:
        """The same space over other models (`--models A B --base C`)."""
        data = self._data() | {"sources": list(models), "base_model": base}
        return self._again(data, "--models/--base", library=None)

    def only(self, name: str) -> SpaceConfig:
        """The same space with one of its sources alone, under the same name: one task vector at equal budget."""
        found = next((s for s in self.sources if s.name == name), None)
        if found is None:
            raise SpaceError(f'the space has no source "{name}"; {choose(name, [s.name for s in self.sources])}')
        return self._again(self._data() | {"sources": [found.model_dump()]}, f"source {name} alone", self._library)

    def bind(self, num_layers: int, tensors: Collection[str] | None = None) -> Space:
        """The space for models of that many layers.

        Args:
            num_layers: Number of transformer blocks of every source.
            tensors: Names of the checkpoints' tensors. With them, filters that match nothing are left out of the
                recipes, and a module that matches nothing is refused.

        Raises:
            SpaceError: more layer groups than layers, or a module without tensors.
        """
        from evomerge.space.space import Space
        from evomerge.space.splits import SplitSpace

        return (Space if self.granularity.splits is None else SplitSpace)(self, num_layers, tensors)

    def bind_models(self, shapes: Mapping[str, Shape]) -> Space:
        """The space for models of these shapes, by reference; all are as deep as the first (see `bind`)."""
        shape = next(iter(shapes.values()))
        return self.bind(shape.num_layers, shape.tensors or None)

    def placed(self, places: Mapping[str, str]) -> SpaceConfig:
        """The same space with its models at other references, under the same short names."""
        config = self.model_copy(
            update={
                "sources": tuple(s.at(places) for s in self.sources),
                "base_model": places.get(self.base_model or "", self.base_model),
                "tokenizer_source": places.get(self.tokenizer_source or "", self.tokenizer_source),
                "into": places.get(self.into or "", self.into),
            }
        )
        config._migrated, config._library = self._migrated, self._library
        return config

    def _data(self) -> dict[str, Any]:
        return self.model_dump(exclude_unset=True) | {"name": self.name}

    def _again(self, data: dict[str, Any], what: str, library: Library | None) -> SpaceConfig:
        config = validate(SpaceConfig, Document(data, f"{self.name or 'space'} ({what})"), SpaceError)
        config._migrated, config._library = self._migrated, library
        return config
