"""Values of parameters: scalars, gradients and filtered entries, and what they come to for one tensor."""

from __future__ import annotations

import math
from collections.abc import Iterator

from evomerge.config import Frozen
from evomerge.errors import RecipeError, choose
from evomerge.methods import Parameter

Scalar = bool | int | float | str


class Condition(Frozen):
    """One entry of a filtered parameter: the first whose `filter` is a substring of the tensor's name applies."""

    filter: str | None = None
    value: Scalar | list[Scalar]

    def matches(self, tensor: str) -> bool:
        """Whether this entry applies to a tensor name ("*" or no filter: to every one)."""
        return self.filter is None or self.filter == "*" or self.filter in tensor


Setting = Scalar | list[Scalar] | list[Condition] | Condition
Parameters = dict[str, Setting]


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
