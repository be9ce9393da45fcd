"""What to build: mergekit's recipe YAML as a frozen model, and a hash of what it means.

The schema is mergekit's (models | slices | modules, gradients, filters, their precedence); what mergekit lacks sits
under one extra key, `evomerge:`. Nothing here loads torch.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import yaml
from pydantic import Field, field_validator, model_validator

from evomerge.config import Document, Frozen, load_yaml, parse_yaml, validate
from evomerge.errors import RecipeError, choose
from evomerge.methods import IGNORED_PARAMETERS, METHODS, Method, Parameter

Scalar = bool | int | float | str
DTYPES = ("float32", "float16", "bfloat16", "float64")
# The keys whose value is a model reference, wherever they stand.
MODEL_KEYS = ("model", "base_model", "tokenizer_source", "source")


@dataclass(frozen=True)
class ModelReference:
    """`path@revision+lora@revision`, mergekit's way to name a model.

    `path` is a folder, a hub id or `zoo:NAME`; the adapter after `+` is optional.
    """

    path: str
    revision: str | None = None
    lora: str | None = None
    lora_revision: str | None = None

    @classmethod
    def parse(cls, text: str) -> ModelReference:
        """Split a reference; raises RecipeError where a part is empty."""
        model, plus, lora = text.partition("+")
        path, at, revision = model.partition("@")
        lora_path, lora_at, lora_revision = lora.partition("@")
        for part, given in ((path, True), (revision, at), (lora_path, plus), (lora_revision, lora_at)):
            if given and not part.strip():
                raise RecipeError(f'model reference "{text}": expected path[@revision][+lora[@revision]]')
        return cls(path, revision or None, lora_path or None, lora_revision or None)

    def __str__(self) -> str:
        text = self.path + (f"@{self.revision}" if self.revision else "")
        if self.lora:
            text += f"+{self.lora}" + (f"@{self.lora_revision}" if self.lora_revision else "")
        return text


class Condition(Frozen):
    """One entry of a filtered parameter: the first whose `filter` is a substring of the tensor's name applies."""

    filter: str | None = None
    value: Scalar | list[Scalar]

    def matches(self, tensor: str) -> bool:
        """Whether this entry applies to a tensor name ("*" or no filter: to every one)."""
        return self.filter is None or self.filter == "*" or self.filter in tensor


Setting = Scalar | list[Scalar] | list[Condition] | Condition
Parameters = dict[str, Setting]


class InputModel(Frozen):
    """One entry of `models:`: every layer of a source, with its parameters."""

    model: str
    parameters: Parameters | None = None


class InputSlice(Frozen):
    """One source of a slice: layers `layer_range[0]` up to, without, `layer_range[1]`."""

    model: str
    layer_range: tuple[int, int]
    parameters: Parameters | None = None

    @field_validator("layer_range")
    @classmethod
    def _ordered(cls, value: tuple[int, int]) -> tuple[int, int]:
        if not 0 <= value[0] < value[1]:
            raise ValueError("expected [first, end] with 0 <= first < end")
        return value


class OutputSlice(Frozen):
    """A run of output layers and the sources they are merged from."""

    sources: list[InputSlice] = Field(min_length=1)
    base_model: str | None = None
    parameters: Parameters | None = None

    @model_validator(mode="after")
    def _same_length(self) -> OutputSlice:
        lengths = [s.layer_range[1] - s.layer_range[0] for s in self.sources]
        if len(set(lengths)) > 1:
            raise ValueError(f"the sources of a slice must have equally many layers, got {lengths}")
        return self


class Module(Frozen):
    """A recipe for one module of a composite model (the text decoder of a vision-language model)."""

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
        provenance: Where the recipe comes from (study, trial); not part of its meaning.
    """

    seed: int = Field(default=0, ge=0)
    sources: dict[str, str] = {}
    provenance: dict[str, Any] = {}


class Recipe(Frozen):
    """One merge, in mergekit's schema."""

    merge_method: str
    models: list[InputModel] | None = None
    slices: list[OutputSlice] | None = None
    modules: dict[str, Module] | None = None
    base_model: str | None = None
    parameters: Parameters | None = None
    dtype: Literal["float32", "float16", "bfloat16", "float64"] | None = None
    out_dtype: Literal["float32", "float16", "bfloat16", "float64"] | None = None
    tokenizer_source: str | None = None
    tokenizer: dict[str, Any] | None = None
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
        given = [k for k in ("models", "slices", "modules") if getattr(self, k)]
        if len(given) != 1:
            raise ValueError(f'expected exactly one of "models", "slices" and "modules", got {given or "none"}')
        if self.tokenizer_source and self.tokenizer:
            raise ValueError('"tokenizer_source" and "tokenizer" cannot both be given')
        problems = list(self._parameter_problems())
        method = METHODS[self.merge_method]
        if method.base == "required" and self.base_model is None and not self._bases():
            problems.append(f'merge_method "{method.name}" needs a base_model')
        if problems:
            raise ValueError("; ".join(problems))
        return self

    @property
    def method(self) -> Method:
        """The table's entry of this recipe's method."""
        return METHODS[self.merge_method]

    def references(self) -> list[str]:
        """Every model named, in order of first mention, the base last (as mergekit adds it)."""
        named = [s.model for s in self._inputs()]
        named += [b for b in (self.base_model, *self._bases()) if b]
        return list(dict.fromkeys(named))

    def _output_slices(self) -> Iterator[OutputSlice]:
        yield from self.slices or ()
        for module in (self.modules or {}).values():
            yield from module.slices or ()

    def _bases(self) -> list[str]:
        return [s.base_model for s in self._output_slices() if s.base_model]

    def _inputs(self) -> Iterator[InputModel | InputSlice]:
        yield from self.models or ()
        for module in (self.modules or {}).values():
            yield from module.models or ()
        for piece in self._output_slices():
            yield from piece.sources

    def _parameter_problems(self) -> Iterator[str]:
        """Unknown parameter names and values of the wrong kind or out of range."""
        method = METHODS[self.merge_method]
        known = [p.name for p in method.parameters]
        groups: list[tuple[str, Parameters | None]] = [("parameters", self.parameters)]
        groups += [(f"modules.{name}.parameters", m.parameters) for name, m in (self.modules or {}).items()]
        groups += [("slices.parameters", s.parameters) for s in self._output_slices()]
        groups += [(f"parameters of {s.model}", s.parameters) for s in self._inputs()]
        for where, parameters in groups:
            for name, setting in (parameters or {}).items():
                parameter = method.parameter(name)
                if parameter is None:
                    if name not in IGNORED_PARAMETERS:
                        yield f'{where}: merge_method "{method.name}" has no parameter "{name}"; {choose(name, known)}'
                    continue
                for value in scalars(setting):
                    problem = _value_problem(parameter, value)
                    if problem:
                        yield f"{where}.{name} = {value!r}: {problem}"

    def with_extras(self, **values: Any) -> Recipe:
        """A copy whose `evomerge:` key has these values."""
        return self.model_copy(update={"evomerge": self.evomerge.model_copy(update=values)})

    def with_references(self, names: Mapping[str, str]) -> Recipe:
        """A copy that calls the models by other references; those not in `names` keep theirs."""

        def renamed(value: Any, key: str = "") -> Any:
            if isinstance(value, dict):
                # Under `sources` (the content hashes of `evomerge:`) the references are the keys.
                return {names.get(k, k) if key == "sources" else k: renamed(v, k) for k, v in value.items()}
            if isinstance(value, list):
                return [renamed(v, key) for v in value]
            return names.get(value, value) if key in MODEL_KEYS and isinstance(value, str) else value

        return Recipe.model_validate(renamed(self.to_dict()))

    def to_dict(self) -> dict[str, Any]:
        """Plain data without what is default, in the schema's order."""
        return self.model_dump(mode="json", exclude_defaults=True)

    def to_yaml(self) -> str:
        """mergekit's YAML; reading it back gives an equal recipe."""
        return str(yaml.dump(self.to_dict(), Dumper=_Dumper, sort_keys=False, allow_unicode=True, width=100))

    def hash(self, contents: Mapping[str, str] | None = None) -> str:
        """SHA-256 (hex) of what the recipe means: methods, numbers, mask seed, content of the sources.

        Args:
            contents: Content hash of each referenced model. A model without one is hashed by its name.
        """
        contents = {**self.evomerge.sources, **(contents or {})}
        data = self.to_dict()
        data["evomerge"] = {"seed": self.evomerge.seed if self.method.random else 0}

        def canonical(value: Any, key: str = "") -> Any:
            if isinstance(value, dict):
                return {k: canonical(v, k) for k, v in value.items() if v is not None}
            if isinstance(value, list):
                return [canonical(v, key) for v in value]
            if key in MODEL_KEYS and isinstance(value, str):
                return contents.get(value, value)
            if isinstance(value, int) and not isinstance(value, bool):
                return float(value)
            return value

        text = json.dumps(canonical(data), sort_keys=True, separators=(",", ":"), allow_nan=False)
        return hashlib.sha256(text.encode()).hexdigest()


class _Dumper(yaml.SafeDumper):
    """Lists of numbers on one line, and floats that YAML 1.1 readers take for floats."""


def _represent_list(dumper: yaml.SafeDumper, value: list[Any]) -> yaml.Node:
    flow = all(isinstance(v, int | float | str) for v in value)
    return dumper.represent_sequence("tag:yaml.org,2002:seq", value, flow_style=flow)


_Dumper.add_representer(list, _represent_list)


def load_recipe(path: str | Path) -> Recipe:
    """Read a recipe file.

    Raises:
        RecipeError: every problem of the file, one line each.
    """
    return _recipe(load_yaml(path, RecipeError))


def parse_recipe(text: str, file: str = "<recipe>") -> Recipe:
    """Read a recipe from text; `file` is what messages call it."""
    return _recipe(parse_yaml(text, file, RecipeError))


def _recipe(document: Document) -> Recipe:
    return validate(Recipe, document, RecipeError)


def scalars(setting: Setting) -> Iterator[Scalar]:
    """Every plain value inside a parameter setting."""
    if isinstance(setting, Condition):
        yield from scalars(setting.value)
    elif isinstance(setting, list):
        for entry in setting:
            yield from scalars(entry)
    else:
        yield setting


def number(value: Scalar) -> float:
    """A YAML number as a float; "1e-3", which YAML 1.1 reads as text, included."""
    if isinstance(value, bool):
        raise RecipeError(f"expected a number, got {value}")
    return float(value)


def _value_problem(parameter: Parameter, value: Scalar) -> str | None:
    if parameter.kind == "bool":
        return None if isinstance(value, bool | int) and value in (0, 1) else "expected true or false"
    try:
        x = number(value)
    except (RecipeError, ValueError):
        return "expected a number"
    if x != x or x in (float("inf"), float("-inf")):
        return "expected a finite number"
    if (parameter.low is not None and x < parameter.low) or (parameter.high is not None and x > parameter.high):
        return f"expected a number from {parameter.low:g} to {parameter.high:g}"
    return None


def resolve(setting: Setting | None, tensor: str, t: float) -> Scalar | None:
    """The value of a parameter for one tensor.

    Args:
        setting: A scalar, a gradient (a list, interpolated linearly over t), or filtered entries.
        tensor: Name of the output tensor; filters are substrings of it, the first hit wins.
        t: Place of the layer in its slice, from 0 (first) to 1 (last).

    Returns:
        The value, or None where no entry applies (then the next level of precedence is asked).
    """
    if setting is None:
        return None
    if isinstance(setting, Condition):
        setting = [setting]
    if not isinstance(setting, list):
        return setting
    if setting and isinstance(setting[0], Condition):
        for entry in setting:
            if isinstance(entry, Condition) and entry.matches(tensor):
                return resolve(entry.value, tensor, t)
        return None
    gradient = [v for v in setting if not isinstance(v, Condition)]
    if not gradient:
        return None
    if any(isinstance(v, bool) for v in gradient):
        return gradient[int(t * (len(gradient) - 1))]
    values = [number(v) for v in gradient]
    place = t * (len(values) - 1)
    first = min(int(place), len(values) - 1)
    after = min(first + 1, len(values) - 1)
    return values[first] + (values[after] - values[first]) * (place - first)
