"""What candidates are worth to an optimizer: values of the objectives, and how far they miss the constraints.

A candidate that misses a constraint is worse than every one that keeps them all, the more so the further it misses
(the rules of Deb 2000, An efficient constraint handling method for genetic algorithms).
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from evomerge.errors import EvoMergeError
from evomerge.evaluation.config import Split
from evomerge.evaluation.goals import DEPTH, LENGTH, SCORE, Constraint, measured
from evomerge.optimizers.domination import dominated
from evomerge.optimizers.protocol import Told, Worth
from evomerge.score import Score, Trial


@dataclass(frozen=True)
class Limit:
    """A constraint as numbers: what it is about, as its authors report it, and the bounds."""

    of: str
    low: float = -np.inf
    high: float = np.inf

    def missed(self, value: float) -> float:
        """By how much of the limit a value misses it; 0 where it keeps it."""
        if self.low <= value <= self.high:
            return 0.0
        limit = self.low if value < self.low else self.high
        return abs(value - limit) / (abs(limit) or 1.0)

    @property
    def bound(self) -> float:
        """The one of the two that is a limit."""
        return self.low if np.isfinite(self.low) else self.high

    @property
    def words(self) -> str:
        """How messages call it."""
        return f"{self.of} >= {self.low:g}" if np.isfinite(self.low) else f"{self.of} <= {self.high:g}"


@dataclass(frozen=True)
class Goals:
    """Objectives and constraints of one search.

    Attributes:
        objectives: "score", tasks, "depth", TASK.length.
        constraints: As the evaluator's file has them.
        limits: The same as numbers on one split, once the base has been scored there.
    """

    objectives: tuple[str, ...] = (SCORE,)
    constraints: tuple[Constraint, ...] = ()
    limits: tuple[Limit, ...] = ()

    @property
    def plain(self) -> bool:
        """Whether the score alone counts."""
        return self.objectives == (SCORE,) and not self.constraints

    @property
    def alone(self) -> Goals:
        """The same constraints with the score alone: what controls are searched for."""
        return replace(self, objectives=(SCORE,))

    @property
    def relative(self) -> bool:
        """Whether a limit is a share of what the base has."""
        return any(c.keep is not None for c in self.constraints)

    def limited(self, held: Sequence[Score], split: Split = "search") -> Goals:
        """With limits, those that ask to keep a share of what the base has by its score on the same items.

        Args:
            held: Scores on the split, of the base; without one of the sources, of which the best counts.
            split: Where the base has nothing above 0 on "select" or "test", it is to be kept as it is there.

        Raises:
            EvoMergeError: a share of something that is not above 0 on "search" is asked for.
        """
        limits = []
        for c in self.constraints:
            if c.keep is None:
                limits.append(Limit(c.of, -np.inf if c.at_least is None else c.at_least,
                                    np.inf if c.at_most is None else c.at_most))  # fmt: skip
                continue
            best = max((t for score in held if (t := score.task(c.of)) is not None), key=lambda t: t.value)
            share = c.keep
            if best.shown <= 0:
                if split == "search":
                    raise EvoMergeError(
                        f"constraints: keep {c.keep:g} of {c.of}: it is {best.shown:g} where it is to be kept; "
                        "expected a metric above 0, or at_least or at_most"
                    )
                share = 1.0
            low, high = (-np.inf, best.shown / share) if best.flipped else (best.shown * share, np.inf)
            limits.append(Limit(c.of, low, high))
        return replace(self, limits=tuple(limits))

    def values(self, score: Score, attributes: Mapping[str, Any]) -> tuple[float, ...]:
        """Of each objective, higher is better."""
        return tuple(_value(name, score, attributes) for name in self.objectives)

    def recorded(self, score: Score, attributes: Mapping[str, Any]) -> list[float]:
        """The same as the study keeps them: counts as they are."""
        values = self.values(score, attributes)
        return [-v if is_minimised(n) else v for n, v in zip(self.objectives, values, strict=True)]

    def reference(self, scores: Iterable[Score], trials: Sequence[Trial]) -> tuple[float, ...]:
        """The worst of some models in each objective, of the depth the worst of some candidates."""
        attributes = {DEPTH: max((t.attributes.get(DEPTH, 0) for t in trials), default=0)}
        values = [self.values(s, attributes) for s in scores]
        return tuple(np.min(values, axis=0).tolist())

    def violation(self, score: Score, attributes: Mapping[str, Any]) -> float:
        """How far a candidate misses its constraints, 0 where it keeps them: the sum of shares of their limits."""
        return float(sum(limit.missed(shown(limit.of, score, attributes)) for limit in self.limits))

    def told(self, generation: Sequence[Trial]) -> list[Told]:
        """What an optimizer is told of candidates."""
        return [self._worth(trial) for trial in generation]

    def _worth(self, trial: Trial) -> Told:
        if trial.score is None:
            return Worth((), math.inf) if self.limits else None
        return Worth(self.values(trial.score, trial.attributes), trial.violation if self.limits else None)


def is_minimised(objective: str) -> bool:
    """Whether less of an objective is better in the record: of counts. Of metrics more is, their sign flipped."""
    return objective == DEPTH or measured(objective)[1] == LENGTH


def front(trials: Sequence[Trial], values: Mapping[int, Sequence[float]]) -> list[Trial]:
    """The candidates that no other beats: none is nowhere worse and somewhere better. Of equals the earliest.

    Those that miss a constraint are not among them. The first objective's best stand last.

    Args:
        values: Of each candidate by number, what it is worth in each objective.
    """
    there = [t for t in trials if t.number in values and not t.violation]
    if not there:
        return []
    beaten = dominated(np.array([values[t.number] for t in there], dtype=np.float64))
    first: dict[tuple[float, ...], Trial] = {}
    for trial, worse in sorted(zip(there, beaten, strict=True), key=lambda pair: pair[0].number):
        if not worse:
            first.setdefault(tuple(values[trial.number]), trial)
    found = first.values()
    return sorted(found, key=lambda t: (*values[t.number], -t.number))


def path_front(trials: Sequence[Trial]) -> list[Trial]:
    """The paths that no other one beats: none at least as good has fewer layers, and none as deep is better.

    From the fewest layers on; of equals the earliest.
    """
    paths = [t for t in trials if t.score is not None and DEPTH in t.attributes]
    return front(paths, {t.number: (-float(t.attributes[DEPTH]), t.value or 0.0) for t in paths})[::-1]


def hypervolume(points: Sequence[Sequence[float]], reference: Sequence[float]) -> float:
    """The volume that some points dominate above a reference point, all objectives better when higher."""
    import moocore

    above = [p for p in points if all(a > r for a, r in zip(p, reference, strict=True))]
    return float(moocore.hypervolume(np.array(above), ref=np.array(reference), maximise=True)) if above else 0.0


def _value(name: str, score: Score, attributes: Mapping[str, Any]) -> float:
    if name == SCORE:
        return score.value
    if name == DEPTH:
        return -float(attributes[DEPTH])
    task = score.task(name)
    assert task is not None  # checked before the search
    return task.value


def shown(name: str, score: Score, attributes: Mapping[str, Any]) -> float:
    """An objective, or what a constraint is about, as its authors report it."""
    if name == SCORE:
        return score.value
    if name == DEPTH:
        return float(attributes[DEPTH])
    task = score.task(name)
    assert task is not None
    return task.shown
