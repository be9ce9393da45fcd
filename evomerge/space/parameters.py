"""The typed, bounded parameters that an optimizer varies. It sees nothing of a space but these."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from evomerge.errors import SpaceError, choose
from evomerge.score import Value

# Further from the grid than rounding explains.
OFF_GRID = 1e-9


@dataclass(frozen=True)
class Float:
    """A real number from low to high, both included; `log` searches its logarithm.

    Attributes:
        step: Only low + k x step may be had, high being one of them; not together with `log`.
        place: Where in the model it acts, from 0 (input) to 1 (output), in the order of depth; None: everywhere. All
            kinds have it; it is no part of what the parameter is.
    """

    name: str
    low: float
    high: float
    init: float
    log: bool = False
    step: float | None = None
    place: float | None = field(default=None, compare=False)

    @property
    def count(self) -> int | None:
        """Number of values on the grid; None without one."""
        return None if self.step is None else round((self.high - self.low) / self.step) + 1

    def at(self, k: int) -> float:
        """The k-th value of the grid, from 0: one spelling of each, whatever it was worked out from."""
        assert self.step is not None
        return round(self.low + k * self.step, 12)

    def index(self, value: float) -> int:
        """Number of the grid's value that is nearest."""
        assert self.step is not None and self.count is not None
        return min(max(round((value - self.low) / self.step), 0), self.count - 1)

    def snap(self, value: float) -> float:
        """The nearest value that may be had."""
        return self.at(self.index(value)) if self.step is not None else min(max(value, self.low), self.high)

    def problem(self, value: Value) -> str | None:
        """Why a value is not one of this parameter's, or None."""
        if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
            return f"expected a number from {self.low:g} to {self.high:g}"
        if not self.low <= value <= self.high:
            return f"outside [{self.low:g}, {self.high:g}]"
        if self.step is not None and abs(value - self.snap(value)) > OFF_GRID:
            return f"expected {self.low:g} plus a multiple of {self.step:g}"
        return None


@dataclass(frozen=True)
class Integer:
    """A whole number from low to high, both included."""

    name: str
    low: int
    high: int
    init: int
    place: float | None = field(default=None, compare=False)

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
    place: float | None = field(default=None, compare=False)

    def problem(self, value: Value) -> str | None:
        """Why a value is not one of this parameter's, or None."""
        return None if value in self.choices else choose(str(value), self.choices)


Parameter = Float | Integer | Categorical


# Of more parameters a Gaussian process of some thousand scores knows little, and takes long.
MODELLED = 200


def default_sampler(parameters: Sequence[Parameter]) -> str:
    """The optimizer for a space of no structure of its own.

    `thompson`; `catcma` where a parameter is categorical; `cma` of more than 200 parameters.
    """
    if any(isinstance(p, Categorical) for p in parameters):
        return "catcma"
    return "thompson" if len(parameters) <= MODELLED else "cma"


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
