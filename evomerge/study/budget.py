"""How much a search may spend: candidates (`200`) or wall time (`10m`, `1h30m`)."""

from __future__ import annotations

import math
import re
from dataclasses import dataclass

from evomerge.errors import InputError

_UNITS = {"s": 1.0, "m": 60.0, "h": 3600.0, "d": 86400.0}
_TIME = re.compile(r"(?:\d+(?:\.\d+)?[smhd])+")
_PART = re.compile(r"(\d+(?:\.\d+)?)([smhd])")


@dataclass(frozen=True)
class Budget:
    """Exactly one of the two is given.

    Attributes:
        candidates: Number of candidates on all search items; failed ones count, parts of candidates as parts.
        seconds: Wall time of the search, all resumes together.
    """

    candidates: int | None = None
    seconds: float | None = None

    @classmethod
    def parse(cls, text: str) -> Budget:
        """Read `200` (candidates) or `90s`, `10m`, `1h30m`, `2d` (time).

        Raises:
            InputError: anything else, and whatever is not above 0.
        """
        given = str(text).strip().lower()
        expected = 'expected a number of candidates ("200") or a time ("30m", "1h30m")'
        if re.fullmatch(r"[+-]?\d+", given):
            number = int(given)
            if number < 1:
                raise InputError(f"--budget {text}: must be at least 1; {expected}")
            return cls(candidates=number)
        if _TIME.fullmatch(given):
            seconds = sum(float(n) * _UNITS[unit] for n, unit in _PART.findall(given))
            if not 0 < seconds < math.inf:
                raise InputError(f"--budget {text}: must be more than no time; {expected}")
            return cls(seconds=seconds)
        raise InputError(f'--budget "{text}": {expected}')

    def left(self, done: float, spent: float) -> bool:
        """Whether another candidate may start after `done` candidates and `spent` seconds."""
        if self.candidates is not None:
            return done < self.candidates
        return spent < (self.seconds or 0.0)

    def allows(self, total: float, spent: float) -> bool:
        """Whether a candidate may start that brings what is spent to `total`, after `spent` seconds."""
        if self.candidates is not None:
            return total <= self.candidates + 1e-9
        return spent < (self.seconds or 0.0)

    def share(self, done: float, spent: float) -> float:
        """The share of the budget that is spent, from 0 to 1."""
        whole = self.candidates if self.candidates is not None else self.seconds
        part = done if self.candidates is not None else spent
        return min(1.0, part / whole) if whole else 1.0

    def __str__(self) -> str:
        if self.candidates is not None:
            return f"{self.candidates} candidates"
        seconds = self.seconds or 0.0
        return f"{seconds / 60:g} minutes" if seconds >= 60 else f"{seconds:g} seconds"
