"""Values of parameters: scalars, gradients and filtered entries, and what they come to for one tensor."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from typing import Annotated, Any

from pydantic import BeforeValidator, Discriminator, SerializeAsAny, Tag

from evomerge.config import Frozen
from evomerge.errors import RecipeError, choose
from evomerge.methods import Parameter

_PLAIN = "expected a number, a word, true or false"
_GRADIENT = f"{_PLAIN}, or a gradient (a list of them)"
_ANY = f"{_PLAIN}, a gradient (a list of them), or a list of {{filter, value}}"


def _plain(value: Any) -> Any:
    if isinstance(value, bool | int | float | str):
        return value
    raise ValueError(_PLAIN)


def _form(value: Any) -> str | None:
    """Which form a value has, so that a wrong one is told about as what it was meant to be."""
    if isinstance(value, bool | int | float | str):
        return "(scalar)"
    if isinstance(value, Condition) or (isinstance(value, Mapping) and ("filter" in value or "value" in value)):
        return "(condition)"
    if not isinstance(value, list) or not value:
        return None
    return "(conditions)" if any(isinstance(v, Condition | Mapping) for v in value) else "(gradient)"


Scalar = bool | int | float | str
# One of the forms is tried, not each in turn: a wrong value has one message. What is written out is there, and needs no
# form to be told: to ask for it took most of the time that a recipe takes to become plain data.
_Plain = Annotated[Scalar, BeforeValidator(_plain)]
_Value = Annotated[
    Annotated[_Plain, Tag("(scalar)")] | Annotated[list[_Plain], Tag("(gradient)")],
    Discriminator(
        lambda value: form if (form := _form(value)) in ("(scalar)", "(gradient)") else None,
        custom_error_type="value",
        custom_error_message=_GRADIENT,
    ),
    SerializeAsAny(),
]


class Condition(Frozen):
    """One entry of a filtered parameter: the first whose `filter` is a substring of the tensor's name applies.

    Attributes:
        filter: A part of a tensor's name; "*" or none fits every name.
        value: What such tensors have: a number, a word, true or false, or a gradient.
    """

    filter: str | None = None
    value: _Value

    def matches(self, tensor: str) -> bool:
        """Whether this entry applies to a tensor name ("*" or no filter: to every one)."""
        return self.filter is None or self.filter == "*" or self.filter in tensor


Setting = Scalar | list[Scalar] | list[Condition] | Condition
Parameters = dict[
    str,
    Annotated[
        Annotated[_Plain, Tag("(scalar)")]
        | Annotated[list[_Plain], Tag("(gradient)")]
        | Annotated[list[Condition], Tag("(conditions)")]
        | Annotated[Condition, Tag("(condition)")],
        Discriminator(_form, custom_error_type="setting", custom_error_message=_ANY),
        SerializeAsAny(),
    ],
]


def scalars(setting: Any) -> Iterator[Scalar]:
    """Every plain value inside a parameter setting, also of one that is still plain data, and perhaps wrong."""
    if isinstance(setting, Condition):
        yield from scalars(setting.value)
    elif isinstance(setting, Mapping):
        yield from scalars(setting.get("value"))
    elif isinstance(setting, list):
        for entry in setting:
            yield from scalars(entry)
    elif isinstance(setting, bool | int | float | str):
        yield setting


def number(value: Scalar) -> float:
    """A YAML number as a float; "1e-3", which YAML 1.1 reads as text, included."""
    if isinstance(value, bool):
        raise RecipeError(f"expected a number, got {value}")
    return float(value)


def value_problem(parameter: Parameter, value: Scalar) -> str | None:
    if parameter.kind == "bool":
        return None if isinstance(value, bool | int) and value in (0, 1) else parameter.expected
    if parameter.kind == "choice":
        return None if value in parameter.choices else choose(str(value), parameter.choices)
    try:
        x = number(value)
    except (RecipeError, ValueError):
        return "expected a number"
    if not math.isfinite(x):
        return "expected a finite number"
    whole = parameter.kind != "int" or x.is_integer()
    return None if parameter.within(x) and whole else parameter.expected


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
    if any(isinstance(v, bool) or _is_word(v) for v in gradient):
        return gradient[int(t * (len(gradient) - 1))]  # there is nothing between them
    values = [number(v) for v in gradient]
    place = t * (len(values) - 1)
    first = min(int(place), len(values) - 1)
    after = min(first + 1, len(values) - 1)
    return values[first] + (values[after] - values[first]) * (place - first)


def _is_word(value: Scalar) -> bool:
    """Whether a value is a text that says no number."""
    try:
        return isinstance(value, str) and number(value) is None
    except ValueError:
        return True
