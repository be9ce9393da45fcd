"""The typed, bounded parameters that an optimizer varies. It sees nothing of a space but these."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from evomerge.errors import SpaceError, choose
from evomerge.score import Value


@dataclass(frozen=True)
class Float:
    """A real number from low to high, both included; `log` searches its logarithm."""

    name: str
    low: float
    high: float
    init: float
    log: bool = False

    def problem(self, value: Value) -> str | None:
        """Why a value is not one of this parameter's, or None."""
        if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
            return f"expected a number from {self.low:g} to {self.high:g}"
        return None if self.low <= value <= self.high else f"outside [{self.low:g}, {self.high:g}]"


@dataclass(frozen=True)
class Integer:
    """A whole number from low to high, both included."""

    name: str
    low: int
    high: int
    init: int

    def problem(self, value: Value) -> str | None:
        """Why a value is not one of this parameter's, or None."""
        if isinstance(value, bool) or not isinstance(value, int):
            return f"expected a whole number from {self.low} to {self.high}"
        return None if self.low <= value <= self.high else f"outside [{self.low}, {self.high}]"


@dataclass(frozen=True)
class Categorical:
    """One of some names without an order."""

    name: str
    choices: tuple[str, ...]
    init: str

    def problem(self, value: Value) -> str | None:
        """Why a value is not one of this parameter's, or None."""
        return None if value in self.choices else choose(str(value), self.choices)


Parameter = Float | Integer | Categorical


def initial(parameters: Sequence[Parameter]) -> dict[str, Value]:
    """The starting value of every parameter, in their order."""
    return {p.name: p.init for p in parameters}


def check(parameters: Sequence[Parameter], params: Mapping[str, Value]) -> dict[str, Value]:
    """The values in the parameters' order.

    Raises:
        SpaceError: a value is missing, unknown or out of bounds; every problem, one line each.
    """
    names = [p.name for p in parameters]
    known = dict(zip(names, parameters, strict=True))
    problems = [f'unknown parameter "{name}"; {choose(name, names)}' for name in params if name not in known]
    for name, parameter in known.items():
        if name not in params:
            problems.append(f'parameter "{name}" has no value')
        elif problem := parameter.problem(params[name]):
            problems.append(f"{name} = {params[name]!r}: {problem}")
    if problems:
        raise SpaceError("\n".join(problems))
    return {name: params[name] for name in names}
