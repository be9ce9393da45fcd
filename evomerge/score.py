"""What comes back from a candidate: scores per item and their sums.

Inside the program higher is always better: the sign of a metric that is better when lower is flipped once, where the
evaluator makes the `TaskScore`. What scores prove is in evomerge/comparison.py. No torch here.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any

import numpy as np
import numpy.typing as npt

from evomerge.errors import EvoMergeError

Results = npt.NDArray[np.float32]
Value = float | int | str
# Attributes of a trial: what it cost where that is less than all search items, and how far it went in a race.
COST, RACE = "cost", "race"
# How far it misses the constraints of its search.
VIOLATION = "violation"
# Without generations: its place among those that the optimizer was told of.
TOLD = "told"


@dataclass(frozen=True)
class TaskScore:
    """One task's result on one split.

    Attributes:
        task: Name of the task.
        metric: Name of the metric, as lm-eval has it.
        value: The aggregated metric, higher is better.
        weight: Share of the task in the candidate's score; 0 is measured but not optimised.
        items: Id (content hash) of each item, in the order of `results`.
        results: Result of each item, shape (len(items),), higher is better. Empty where the metric has no form per
            item (corpus perplexity, F1 of a whole set).
        flipped: Whether the metric is better when lower, so that `value` is its negative.
    """

    task: str
    metric: str
    value: float
    weight: float = 1.0
    # Not in what is printed: thousands of hashes and numbers.
    items: tuple[str, ...] = field(default=(), repr=False)
    results: Results = field(default_factory=lambda: np.zeros(0, np.float32), repr=False)
    flipped: bool = False

    @property
    def by_item(self) -> bool:
        """Whether the value is the mean of results per item."""
        return len(self.results) > 0

    @property
    def shown(self) -> float:
        """The metric as its authors report it (the sign flipped back)."""
        return -self.value if self.flipped else self.value


@dataclass(frozen=True)
class Score:
    """A model's result on one split: the tasks in the evaluator's order."""

    tasks: tuple[TaskScore, ...]

    @property
    def value(self) -> float:
        """Weighted mean of the tasks' values: sum w v / sum w over the tasks with a weight above 0."""
        total = sum(t.weight for t in self.tasks)
        if not total:
            raise EvoMergeError("a score without a task of weight above 0 has no value")
        return sum(t.weight * t.value for t in self.tasks if t.weight) / total

    @property
    def weighted(self) -> tuple[TaskScore, ...]:
        """The tasks that count."""
        return tuple(t for t in self.tasks if t.weight)

    @property
    def items(self) -> int:
        """Number of items behind `value`."""
        return sum(len(t.items) for t in self.weighted)

    def task(self, name: str) -> TaskScore | None:
        """The task of that name, or None."""
        return next((t for t in self.tasks if t.task == name), None)


@dataclass(frozen=True)
class Interval:
    """A mean with its 95 % confidence interval; low and high are None where the metric has no form per item."""

    mean: float
    low: float | None
    high: float | None
    items: int

    def to_dict(self, mean: str = "mean") -> dict[str, float | int | None]:
        """Plain data, the mean under the name asked for."""
        return {mean: self.mean, "low": self.low, "high": self.high, "items": self.items}


class State(StrEnum):
    """How a candidate ended (Optuna's trial states, by its names)."""

    RUNNING = "RUNNING"
    COMPLETE = "COMPLETE"
    PRUNED = "PRUNED"
    FAIL = "FAIL"


@dataclass(frozen=True)
class Trial:
    """One candidate of a study.

    Attributes:
        number: Its place in the order of asks, from 0.
        params: The optimizer's parameters, by name.
        score: Its result on the search items; None unless COMPLETE.
        reason: Why it failed, in words; None unless FAIL.
        seconds: Time spent per step (build, evaluate, ...).
        part: Of one that was stopped: its result on the items that it had.
    """

    number: int
    params: Mapping[str, Value]
    state: State
    score: Score | None = None
    reason: str | None = None
    seconds: Mapping[str, float] = field(default_factory=dict)
    attributes: Mapping[str, Any] = field(default_factory=dict)
    part: Score | None = None

    @property
    def value(self) -> float | None:
        """The score's value, or None."""
        return None if self.score is None else self.score.value

    @property
    def cost(self) -> float:
        """What it took of the budget: the share of the search items that were scored for it, or failed to be."""
        if self.state is State.RUNNING:
            return 0.0  # it was cut off, and will be run again
        return float(self._race.get(COST, self.attributes.get(COST, 1.0)))

    @property
    def estimate(self) -> float | None:
        """Of one that was stopped: its score on the items that it had."""
        return self._race.get("estimate")

    @property
    def seen(self) -> int | None:
        """Of one that was raced: how many items it had."""
        return self._race.get("seen")

    @property
    def stopped(self) -> str | None:
        """Of one that was stopped: why ("raced out", "settled")."""
        return self._race.get("stopped")

    @property
    def told(self) -> int:
        """Its place among those that the optimizer was told of, from 0: in generations its number."""
        return int(self.attributes.get(TOLD, self.number))

    @property
    def violation(self) -> float:
        """How far it misses the constraints of its search; 0: it keeps them."""
        return float(self.attributes.get(VIOLATION, 0.0))

    @property
    def _race(self) -> Mapping[str, Any]:
        found: Mapping[str, Any] = self.attributes.get(RACE, {})
        return found


def cost(trials: Iterable[Trial]) -> float:
    """What candidates took of the budget together."""
    return sum(t.cost for t in trials)
