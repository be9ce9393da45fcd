"""Restarts of an evolution strategy: when a run has come to nothing more, and with what the next one begins.

IPOP (Auger and Hansen 2005, A restart CMA evolution strategy with increasing population size): each run has twice the
population of the one before. BIPOP (Hansen 2009, Benchmarking a BI-population CMA-ES on the BBOB-2009 function
testbed): these large runs take turns with small ones that search narrowly, whichever regime has spent less.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from evomerge.optimizers.protocol import Worth
from evomerge.optimizers.table import IPOP, NONE

# First and last part of the window whose medians are compared (Hansen 2009).
PART = 0.3


@dataclass(frozen=True)
class Run:
    """One run of the strategy.

    Attributes:
        population: Candidates per generation.
        sigma: First standard deviation.
        limit: Candidates after which it ends whether or not it has converged.
    """

    population: int
    sigma: float
    limit: float = math.inf


class Schedule:
    """The runs, one after the other.

    Of BIPOP the first run counts as a small one, so that a large one follows; the population of a small run is drawn as
    floor(λ₀ (λ_large / λ₀)^(U²)), its first step as σ₀ 10^(-2U), and it has at most half of what large runs have spent
    (all three as in pycma's `fmin`, which is Hansen's own).

    Args:
        kind: One of `RESTARTS`.
        population: λ₀, of the first run.
        sigma: σ₀, of the first run.
    """

    def __init__(self, kind: str, population: int, sigma: float, random: np.random.Generator) -> None:
        self._kind = kind
        self._random = random
        self._doublings = 0
        self._large = False
        self._spent = {True: 0, False: 0}
        self.first = self.now = Run(population, sigma)

    def after(self, spent: int) -> Run | None:
        """The next run, after one that has spent so many candidates; None: there is none."""
        if self._kind == NONE:
            return None
        self._spent[self._large] += spent
        first, large = self.first, self._spent[True]
        self._large = self._kind == IPOP or self._spent[False] >= large
        if self._large:
            self._doublings += 1
            self.now = Run(first.population * 2**self._doublings, first.sigma)
        else:
            narrower = 10 ** (-2 * self._random.uniform())
            power = 2 ** (self._doublings * self._random.uniform() ** 2)
            self.now = Run(math.floor(first.population * power), first.sigma * narrower, 0.5 * large)
        return self.now


class Stagnation:
    """Whether a run gets nowhere any more, told by the scores of its generations.

    It does where the last `10 + 30 n / λ` generations have brought nothing: of the best scores of a generation the
    median over the latest 30 % of them is not above that over the earliest 30 %, and so for the median scores. The test
    is Hansen's (2009, "Stagnation"), who waits for 120 + 30 n / λ generations; here a generation costs some merges, and
    the length is that of his test for equal best values. Medians, because values that tie or waver (accuracies of a few
    items) tell neither progress nor its end one by one.
    """

    def __init__(self, dimensions: int, population: int) -> None:
        self._length = 10 + math.ceil(30 * dimensions / population)
        self._best: list[tuple[float, float]] = []
        self._median: list[tuple[float, float]] = []

    def hear(self, worths: Sequence[Worth]) -> bool:
        """Whether it has, with this generation; to miss the constraints by less is progress too."""
        told = sorted(w.key for w in worths)
        self._best = [*self._best, told[-1]][-self._length :]
        self._median = [*self._median, told[len(told) // 2]][-self._length :]
        if len(self._best) < self._length:
            return False
        part = max(1, round(PART * self._length))
        return all(_middle(values[-part:]) <= _middle(values[:part]) for values in (self._best, self._median))


def _middle(values: Sequence[tuple[float, float]]) -> tuple[float, float]:
    return sorted(values)[len(values) // 2]
