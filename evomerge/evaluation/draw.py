"""The random order in which a study's search items are scored, and parts of it.

What is drawn is a unit: one item of one task, or, where all tasks have the same items, one item with its results in
all of them. The mean of the units, each with its weight, is the score.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np
import numpy.typing as npt

from evomerge.evaluation.splits import Places
from evomerge.score import Score, TaskScore

Numbers = npt.NDArray[np.float64]


@dataclass(frozen=True)
class Draw:
    """Items in the order in which they are scored.

    Attributes:
        items: Ids of each task's items, in the evaluator's order.
        shares: Of each task, its share in the score; they add up to 1.
        units: Of each unit, the tasks and the places of their items.
    """

    items: Mapping[str, tuple[str, ...]]
    shares: Mapping[str, float]
    units: tuple[tuple[tuple[str, int], ...], ...]

    @classmethod
    def of(cls, items: Mapping[str, Sequence[str]], weights: Mapping[str, float], seed: int) -> Draw:
        """Draw an order.

        Args:
            items: Ids of each task's search items.
            weights: Of the tasks that count.
        """
        total = sum(weights.values())
        held = {task: tuple(items[task]) for task in weights}
        if len(set(held.values())) == 1:
            count = len(next(iter(held.values())))
            units = [tuple((task, place) for task in held) for place in range(count)]
        else:
            units = [((task, place),) for task, ids in held.items() for place in range(len(ids))]
        order = np.random.default_rng([seed, len(units)]).permutation(len(units))
        return cls(held, {t: w / total for t, w in weights.items()}, tuple(units[i] for i in order))

    def __len__(self) -> int:
        return len(self.units)

    @property
    def weights(self) -> Numbers:
        """Of each unit, what it counts in the score, shape (units,); they add up to 1."""
        return np.array([sum(self.shares[t] / len(self.items[t]) for t, _ in unit) for unit in self.units])

    def turned(self, by: int) -> Draw:
        """The same order from a later unit on; what was before it follows at the end.

        Args:
            by: How many units it begins later; round and round.
        """
        by %= len(self.units)
        return replace(self, units=self.units[by:] + self.units[:by])

    @cached_property
    def all_places(self) -> Places:
        """All items: `places` of all units."""
        return self.places(0, len(self.units))

    def places(self, start: int, end: int) -> Places:
        """The items of some units that follow each other."""
        found: dict[str, list[int]] = {}
        for unit in self.units[start:end]:
            for task, place in unit:
                found.setdefault(task, []).append(place)
        return {task: tuple(sorted(found[task])) for task in self.items if task in found}

    def results(self, score: Score, start: int, end: int) -> Numbers:
        """A score's results of some units, shape (end - start,)."""
        at = {t.task: dict(zip(t.items, t.results.tolist(), strict=True)) for t in score.tasks}
        return np.array(
            [
                sum(self.shares[t] * at[t][self.items[t][p]] for t, p in unit) / sum(self.shares[t] for t, _ in unit)
                for unit in self.units[start:end]
            ]
        )

    def known(self, score: Score) -> Numbers:
        """A score's results of all units, NaN where it has not all of one's items, shape (units,)."""
        at = {t.task: dict(zip(t.items, t.results.tolist(), strict=True)) for t in score.tasks}
        found = np.full(len(self.units), np.nan)
        for i, unit in enumerate(self.units):
            results = [at.get(t, {}).get(self.items[t][p]) for t, p in unit]
            if None not in results:
                shares = [self.shares[t] for t, _ in unit]
                found[i] = sum(s * r for s, r in zip(shares, results, strict=True) if r is not None) / sum(shares)
        return found

    def estimate(self, score: Score, seen: int) -> float:
        """A score on the first units alone."""
        weights = self.weights[:seen]
        return float(weights @ self.results(score, 0, seen) / weights.sum())

    def represented(self, items: int) -> int:
        """After how many units every task has had so many items, or all it has."""
        left = {task: min(items, len(ids)) for task, ids in self.items.items()}
        for count, unit in enumerate(self.units, 1):
            for task, _ in unit:
                left[task] -= 1
            if all(n <= 0 for n in left.values()):
                return count
        return len(self.units)

    def joined(self, parts: Sequence[Score]) -> Score:
        """Scores of different items as one, its items in the evaluator's order.

        A task's value is the mean over its items.
        """
        tasks = []
        for name, ids in self.items.items():
            found = [t for part in parts if (t := part.task(name)) is not None]
            if found:
                first = found[0]
                if len(found) == 1 and first.items == ids:  # nothing to be put in order
                    kept, values = ids, first.results.astype(np.float32)
                else:
                    results = {i: r for t in found for i, r in zip(t.items, t.results, strict=True)}
                    kept = tuple(i for i in ids if i in results)
                    values = np.array([results[i] for i in kept], np.float32)
                tasks.append(
                    TaskScore(
                        name, first.metric, float(values.astype(np.float64).mean()), first.weight, kept, values,
                        first.flipped,
                    )
                )  # fmt: skip
        return Score(tuple(tasks))
