"""How far the input scales of a path's hops may vary."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

from pydantic import model_validator

from evomerge.config import Frozen, Key
from evomerge.errors import SpaceError
from evomerge.space.parameters import OFF_GRID, Float
from evomerge.space.problems import refuse

# How far rounding may move a scale on its way through a recipe, whose factors are products of scales.
CLOSE = 1e-9


class Scale(Frozen):
    """Bounds of what the residual stream is multiplied by where a hop begins, or a fixed `value` (1: as it is).

    Attributes:
        value: 1: the residual stream as it is, no scales; in YAML simply `scale: 1`.
        low: Smallest scale that is tried, above 0.
        high: Largest scale that is tried.
        init: Where the search starts.
        step: Scales of early hops are low + k x step, so that candidates share the beginnings of their paths; null: all
            are continuous.
        early: Share of the layers that count as early.
    """

    value: float | None = None
    low: float = 0.5
    high: float = 1.5
    init: float = 1.0
    step: float | None = 0.1
    early: float = 0.5

    @model_validator(mode="before")
    @classmethod
    def _plain(cls, value: Any) -> Any:
        return {"value": value} if isinstance(value, int | float) and not isinstance(value, bool) else value

    @model_validator(mode="after")
    def _consistent(self) -> Scale:
        refuse(self, self._problems())
        return self

    def _problems(self) -> Iterator[tuple[Key, str]]:
        if self.value is not None:
            if self.model_fields_set != {"value"}:
                yield (), "a fixed value has no bounds"
            elif self.value != 1:
                yield ("value",), "expected {low, high}, or 1 (the residual stream as it is)"
            return
        infinite = [k for k in ("low", "high", "init", "step", "early") if not math.isfinite(getattr(self, k) or 0)]
        for key in infinite:
            yield (key,), "expected a finite number"
        if infinite:
            return
        if self.low <= 0:
            yield ("low",), "expected a scale above 0"
        if self.low >= self.high:
            yield ("low",), f"low = {self.low:g} must be below high = {self.high:g}; to leave scales out write scale: 1"
            return
        if not 0 <= self.early <= 1:
            yield ("early",), "expected a share of the layers, from 0 to 1"
        if not self.low <= self.init <= self.high:
            yield ("init",), f"init = {self.init:g} is outside [{self.low:g}, {self.high:g}]"
        elif self.step is not None and self.step <= 0:
            yield ("step",), "expected a number above 0, or null for none"
        elif self.step is not None and self.early > 0:
            grid = Float("scale", self.low, self.high, self.init, step=self.step)
            for key in ("high", "init"):
                if abs(grid.snap(v := getattr(self, key)) - v) > OFF_GRID:
                    yield ("step",), f"{key} = {v:g} is not {self.low:g} (low) plus a multiple of {self.step:g}"

    def parameter(self, name: str, place: float) -> Float | None:
        """The optimizer's parameter of a hop that begins at a share `place` of the layers; None where it is fixed."""
        if self.value is not None:
            return None
        return Float(name, self.low, self.high, self.init, step=self.step if place < self.early else None, place=place)

    @staticmethod
    def encoded(parameter: Float | None, scale: float) -> float | None:
        """A recipe's scale as a value of the parameter; None where that cannot have it (without one it can be 1)."""
        if parameter is None:
            return 1.0 if math.isclose(scale, 1.0, abs_tol=CLOSE) else None
        found = parameter.snap(scale)
        return found if math.isclose(found, scale, rel_tol=CLOSE, abs_tol=CLOSE) else None

    def words(self) -> str:
        """The allowed values, for messages."""
        if self.value is not None:
            return "always 1"
        early = f", in steps of {self.step:g} in early layers" if self.step is not None and self.early > 0 else ""
        return f"from {self.low:g} to {self.high:g}{early}"


def unfit(where: str, found: float, scale: Scale) -> SpaceError:
    """The error of a path with a scale that the space does not have."""
    return SpaceError(f"{where} has scale {found:g}; the space's scales are {scale.words()}")
