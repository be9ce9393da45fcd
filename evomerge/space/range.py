"""How far one parameter of a merge method may vary, and what has a value of its own."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Iterator
from typing import Any, Literal

from pydantic import field_validator, model_validator

from evomerge.config import Frozen
from evomerge.errors import choose
from evomerge.methods import Parameter

Axis = Literal["source", "layers", "modules"]


class Range(Frozen):
    """One parameter of a method: bounds to search in, or a fixed `value` (a plain number, true/false or word in YAML).

    Attributes:
        value: One fixed value, not searched; in YAML simply the number, word, true or false itself.
        low: Smallest value that is tried.
        high: Largest value that is tried.
        init: Where the search starts; default the middle of the range.
        log: Search the logarithm (low above 0).
        per: What has a value of its own: source, layers (each group), modules. Empty or "global": one value for all.
            Default: everything that the method tells apart for the parameters of a source and for `t`, else global.
    """

    value: bool | float | str | None = None
    low: float | None = None
    high: float | None = None
    init: float | None = None
    log: bool = False
    per: tuple[Axis, ...] | None = None

    @model_validator(mode="before")
    @classmethod
    def _plain(cls, value: Any) -> Any:
        if isinstance(value, str):  # YAML 1.1 reads 1e-3 as text
            with contextlib.suppress(ValueError):
                value = float(value)
        return {"value": value} if isinstance(value, bool | int | float | str) else value

    @field_validator("per", mode="before")
    @classmethod
    def _one(cls, value: Any) -> Any:
        if value == "global":
            return ()
        return (value,) if isinstance(value, str) else value

    @model_validator(mode="after")
    def _consistent(self) -> Range:
        given = [k for k in ("low", "high", "init") if getattr(self, k) is not None]
        if self.value is not None:
            if given or self.log or self.per is not None:
                raise ValueError("a fixed value has no bounds")
            return self
        if self.low is None or self.high is None:
            raise ValueError("expected low and high, or one fixed value")
        for key in given:
            if not math.isfinite(getattr(self, key)):
                raise ValueError(f"{key} = {getattr(self, key)}: expected a finite number")
        if self.low >= self.high:
            raise ValueError(f"low = {self.low:g} must be below high = {self.high:g}; to fix it write the plain number")
        if self.init is not None and not self.low <= self.init <= self.high:
            raise ValueError(f"init = {self.init:g} is outside [{self.low:g}, {self.high:g}]")
        if self.log and self.low <= 0:
            raise ValueError(f"log needs low above 0, got {self.low:g}")
        return self

    @property
    def start(self) -> float:
        """Where the search starts; the middle of the range (of its logarithm) where the file says nothing."""
        assert self.low is not None and self.high is not None
        if self.init is not None:
            return self.init
        return math.sqrt(self.low * self.high) if self.log else (self.low + self.high) / 2

    def problems(self, parameter: Parameter) -> Iterator[str]:
        """What makes this no range for a parameter of a method."""
        if parameter.kind == "bool":
            if self.value is None or self.value not in (0, 1):
                yield parameter.expected
            return
        if parameter.kind == "choice":
            if self.value not in parameter.choices:
                yield choose(str(self.value), parameter.choices)
            return
        if isinstance(self.value, bool | str):
            yield (
                "expected a number or {low, high}"
                if self.value in (0, 1)
                else "expected {low, high}, or one fixed number"
            )
            return
        for value in (self.value, self.low, self.high):
            if value is None:
                continue
            if not math.isfinite(value):
                yield f"{value}: expected a finite number"
            elif not parameter.within(value):
                yield f"{value:g}: {parameter.expected}"
        if self.per and "source" in self.per and not parameter.per_source:
            yield 'has one value for all sources: "per" may name layers and modules'

    def ends(self) -> tuple[float | bool | str, ...]:
        """The fixed value, or the bounds and what lies just inside of them."""
        if self.value is not None:
            return (self.value,)
        assert self.low is not None and self.high is not None
        inside = (self.high - self.low) / 1000
        return self.low, self.low + inside, self.high - inside, self.high
