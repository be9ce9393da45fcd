"""One merge in mergekit's schema (models | slices | modules, gradients, filters), and a hash of what it means."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from typing import Any, Literal

import yaml
from pydantic import Field, ValidationError, ValidatorFunctionWrapHandler, field_validator, model_validator
from pydantic_core import InitErrorDetails, PydanticCustomError

from evomerge.config import Frozen
from evomerge.errors import choose
from evomerge.methods import METHODS, Method
from evomerge.recipe.consistency import inconsistencies, merged_models, tokenizer_model
from evomerge.recipe.reference import Reference, renamed
from evomerge.recipe.tokenizer import TokenizerSettings
from evomerge.recipe.values import Parameters

Dtype = Literal["float32", "float16", "bfloat16", "float64"]


class InputModel(Frozen):
    """One entry of `models:`: every layer of a source, with its parameters.

    Attributes:
        model: A folder, a hub id (`org/name@revision`) or `zoo:NAME`; `+` adds a LoRA adapter.
        parameters: Of this model: they go before the recipe's.
    """

    model: Reference
    parameters: Parameters | None = None


class InputSlice(Frozen):
    """One source of a slice: layers `layer_range[0]` up to, without, `layer_range[1]`.

    A range of no layers ([0, 0]) in the first or last slice names whose embeddings, or final norm and head, are taken.

    Attributes:
        model: A folder, a hub id (`org/name@revision`) or `zoo:NAME`; `+` adds a LoRA adapter.
        layer_range: First layer, and the one behind the last: [0, 4] are four layers.
        parameters: Of this model in this slice: they go before the slice's.
    """

    model: Reference
    layer_range: tuple[int, int]
    parameters: Parameters | None = None

    @field_validator("layer_range", mode="wrap")
    @classmethod
    def _ordered(cls, value: Any, handler: ValidatorFunctionWrapHandler) -> tuple[int, int]:
        try:
            first, end = handler(value)
        except ValidationError:
            first, end = 1, 0
        if not (0 <= first < end or first == end == 0):
            raise ValueError("expected [first, end], two whole numbers with 0 <= first < end")
        return first, end


class OutputSlice(Frozen):
    """A run of output layers and the sources they are merged from.

    Attributes:
        sources: Models and their layers that are merged into this run, all of equally many layers.
        base_model: Base of this slice; default: the recipe's, with the same range of layers.
        residual_weight: A key of mergekit's schema that it does nothing with, nor do we; kept for exchange.
        parameters: Of this slice: they go before the recipe's.
    """

    sources: list[InputSlice] = Field(min_length=1)
    base_model: Reference | None = None
    residual_weight: float | None = None
    parameters: Parameters | None = None

    @model_validator(mode="after")
    def _same_length(self) -> OutputSlice:
        lengths = [s.layer_range[1] - s.layer_range[0] for s in self.sources]
        if len(set(lengths)) > 1:
            raise ValueError(f"the sources of a slice must have equally many layers, got {lengths}")
        return self


class Module(Frozen):
    """A recipe for one module of a composite model (the text decoder of a vision-language model).

    Attributes:
        slices: Runs of layers of this module; one of `slices` and `models` is given.
        models: The sources of this module, all layers of each.
        parameters: Of this module: they go before the recipe's.
    """

    slices: list[OutputSlice] | None = None
    models: list[InputModel] | None = None
    parameters: Parameters | None = None

    @model_validator(mode="after")
    def _one(self) -> Module:
        if bool(self.slices) == bool(self.models):
            raise ValueError('expected exactly one of "slices" and "models"')
        return self


class Extras(Frozen):
    """What mergekit has no key for.

    Attributes:
        seed: Seed of random masks (DARE); one per study.
        sources: Content hash of each source, checked when the recipe is rebuilt.
        statistics: Folder of the statistics of each model, for methods that need them (evomerge statistics).
        into: The vision-language model whose language model is replaced by the merge; it gives configuration, image
            encoder, projector and processor. Default: the base where it is one, else the first such model that is
            named. It need not be merged itself.
        provenance: Where the recipe comes from (study, trial); not part of its meaning.
    """

    seed: int = Field(default=0, ge=0)
    sources: dict[str, str] = {}
    statistics: dict[Reference, str] = {}
    into: Reference | None = None
    provenance: dict[str, Any] = {}


class Recipe(Frozen):
    """One merge, in mergekit's schema.

    Attributes:
        merge_method: Name of the merge method.
        models: The sources, all layers of each; one of `models`, `slices` and `modules` is given.
        slices: Instead: runs of layers, put one behind the other.
        modules: Instead, of composite models: a recipe for each module that is merged, by its name.
        base_model: What task vectors are differences to; its configuration is the merge's.
        parameters: Parameters of the method for the whole recipe: numbers, gradients (lists over the layers) or
            filters.
        dtype: mergekit's arithmetic type; here sums are in float32 whatever it says, in float64 for `float64`.
        out_dtype: Type that the checkpoint is saved in; default: dtype, else the models' own.
        tokenizer_source: Whose vocabulary the merge has: `union`, `base` or a model. Short for `tokenizer:
            {source}`.
        tokenizer: Vocabulary and embeddings in detail; not together with tokenizer_source.
        chat_template: `auto` (the one that most models have), a format's name, or the text of a Jinja template.
        evomerge: What mergekit has no key for; it leaves the key alone.
    """

    merge_method: str
    models: list[InputModel] | None = None
    slices: list[OutputSlice] | None = None
    modules: dict[str, Module] | None = None
    base_model: Reference | None = None
    parameters: Parameters | None = None
    dtype: Dtype | None = None
    out_dtype: Dtype | None = None
    tokenizer_source: Reference | None = None
    tokenizer: TokenizerSettings | None = None
    chat_template: str | None = None
    evomerge: Extras = Extras()

    @field_validator("merge_method")
    @classmethod
    def _known(cls, value: str) -> str:
        if value not in METHODS:
            raise ValueError(f"unknown merge method; {choose(value, list(METHODS))}")
        return value

    @model_validator(mode="after")
    def _consistent(self) -> Recipe:
        problems = list(inconsistencies(self))
        if problems:
            # Raised inside a validator, its places become places of the whole file: one line per problem.
            details = [
                InitErrorDetails(type=PydanticCustomError("recipe", "{text}", {"text": text}), loc=key, input=value)
                for key, value, text in problems
            ]
            raise ValidationError.from_exception_data("recipe", details)
        return self

    @property
    def method(self) -> Method:
        """The table's entry of this recipe's method."""
        return METHODS[self.merge_method]

    def references(self) -> list[str]:
        """Every model named: those that are merged, then those that give the tokenizer, or the modules beside the
        language model, where those are others."""
        into = [self.evomerge.into] if self.evomerge.into else []
        return list(dict.fromkeys((*self.merged_models(), *tokenizer_model(self), *into)))

    def merged_models(self) -> list[str]:
        """The models that are merged, in order of first mention, the base last (as mergekit adds it)."""
        return merged_models(self)

    def with_extras(self, **values: Any) -> Recipe:
        """A copy whose `evomerge:` key has these values."""
        return self.model_copy(update={"evomerge": self.evomerge.model_copy(update=values)})

    def signed(self, contents: Mapping[str, str], provenance: Mapping[str, Any]) -> Recipe:
        """A copy that says where it is from, and which the models that it names are.

        Args:
            contents: Content hash by reference, of these models and perhaps of others.
        """
        named = {r: contents[r] for r in self.references() if r in contents}
        return self.with_extras(sources=named, provenance=dict(provenance))

    def with_references(self, names: Mapping[str, str]) -> Recipe:
        """A copy that calls the models by other references; those not in `names` keep theirs."""
        return Recipe.model_validate(renamed(self.to_dict(), lambda reference: names.get(reference, reference)))

    def to_dict(self) -> dict[str, Any]:
        """Plain data without what is default, in the schema's order."""
        return self.model_dump(mode="json", exclude_defaults=True)

    def to_yaml(self, name: str | None = None) -> str:
        """mergekit's YAML; reading it back gives an equal recipe. `name` is the document's in a chain."""
        data = {**({"name": name} if name is not None else {}), **self.to_dict()}
        return str(yaml.dump(data, Dumper=_Dumper, sort_keys=False, allow_unicode=True, width=100))

    def hash(self, contents: Mapping[str, str] | None = None) -> str:
        """SHA-256 (hex) of what the recipe means: methods, numbers, mask seed, content of the sources.

        Args:
            contents: Content hash of each referenced model, and of each folder of statistics. What has none is hashed
                by its name.
        """
        contents = {**self.evomerge.sources, **(contents or {})}
        said = self.model_dump(mode="json", exclude_defaults=True, exclude_none=True, exclude={"evomerge"})
        data = renamed(said, lambda reference: contents.get(reference, reference))
        data["evomerge"] = {"seed": self.evomerge.seed if self.method.random else 0}
        if self.method.statistics:
            folders = self.evomerge.statistics.items()
            data["evomerge"]["statistics"] = {contents.get(m, m): contents.get(f, f) for m, f in folders}
        if self.evomerge.into:
            data["evomerge"]["into"] = contents.get(self.evomerge.into, self.evomerge.into)
        if self.tokenizer and self.tokenizer.tokens:
            # New tokens are numbered in the order in which they are written.
            data["tokenizer"]["tokens"] = [[token, to] for token, to in data["tokenizer"]["tokens"].items()]
        _equalise(data)
        text = json.dumps(data, sort_keys=True, separators=(",", ":"), allow_nan=False)
        return hashlib.sha256(text.encode()).hexdigest()


def _equalise(data: Any) -> None:
    """Make floats of the whole numbers in plain data, in place: equal recipes are to be equal text."""
    for key, value in data.items() if type(data) is dict else enumerate(data):
        kind = type(value)
        if kind is dict or kind is list:
            _equalise(value)
        elif kind is int:  # which true and false are not
            data[key] = float(value)


class _Dumper(yaml.SafeDumper):
    """Lists of numbers on one line, and floats that YAML 1.1 readers take for floats."""


def _represent_list(dumper: yaml.SafeDumper, value: list[Any]) -> yaml.Node:
    flow = all(isinstance(v, int | float | str) for v in value)
    return dumper.represent_sequence("tag:yaml.org,2002:seq", value, flow_style=flow)


_Dumper.add_representer(list, _represent_list)
