"""Races without generations: a candidate is compared with those that ended last and those that are under way.

All see the items in the same order, so that any two can be compared on the first so many.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

from evomerge.study.contest import RACED_OUT, SETTLED, Rules, hopeful, reliability
from evomerge.study.racing import Race

Numbers = npt.NDArray[np.float64]


@dataclass
class Runner:
    """A candidate that is scored block by block.

    Attributes:
        results: Of the items that it has, in the order in which they are drawn.
        race: Against those that had all items when it started; None where nobody is raced out.
    """

    race: Race | None
    results: Numbers = field(default_factory=lambda: np.zeros(0))

    @property
    def seen(self) -> int:
        """How many items it has."""
        return len(self.results)


class Window:
    """Those that a candidate is compared with.

    Args:
        rules: When candidates stop.
        size: How many of those that ended last count: a generation's size.
        parents: Of how many of those the optimizer learns.
    """

    def __init__(self, rules: Rules, size: int, parents: int) -> None:
        self._rules = rules
        self._parents = parents
        self._ended: deque[Numbers] = deque(maxlen=size)
        self._running: dict[int, Runner] = {}
        self._leader: Numbers | None = None

    def start(self, number: int) -> Runner:
        """A candidate starts; it races with those of the window that have all items."""
        count = len(self._rules.weights)
        whole = [r for r in self._ended if len(r) == count]
        race = None
        if self._rules.drop > 0 and len(whole) >= self._parents:
            race = Race(1, self._parents, self._rules.weights, self._rules.drop, np.array(whole))
        self._running[number] = Runner(race)
        return self._running[number]

    def see(self, number: int, came: Numbers) -> str | None:
        """Look at a block's results of a candidate.

        Returns:
            Why it stops here ("raced out", "settled"), or None: it goes on, or has all items.
        """
        runner = self._running[number]
        runner.results = np.concatenate([runner.results, came])
        if runner.seen == len(self._rules.weights):
            return None
        out = False
        if runner.race is not None:
            if ((came < 0) | (came > 1)).any():
                runner.race = None
            else:
                out = bool(runner.race.see({0: came}))
        if self._settled(runner) and not self._hopeful(runner):
            return SETTLED
        return RACED_OUT if out else None

    def end(self, number: int, failed: bool = False) -> None:
        """A candidate has ended, however."""
        runner = self._running.pop(number)
        if failed:
            return
        self.add(runner.results)

    def add(self, results: Numbers) -> None:
        """One that ended, in an earlier run or this one."""
        self._ended.append(results)
        if len(results) == len(self._rules.weights):
            weights = self._rules.weights
            if self._leader is None or float(weights @ results) > float(weights @ self._leader):
                self._leader = results

    def _beside(self, runner: Runner) -> list[Numbers]:
        """First results of those that have as many items as a candidate."""
        others = [*self._ended, *(r.results for r in self._running.values() if r is not runner)]
        return [r[: runner.seen] for r in others if len(r) >= runner.seen]

    def _settled(self, runner: Runner) -> bool:
        if runner.seen < self._rules.settle_from:
            return False
        beside = self._beside(runner)
        if not beside:
            return False
        table = np.array([runner.results, *beside]) * self._rules.weights[: runner.seen]
        return reliability(table, len(self._rules.weights)) >= self._rules.reliability

    def _hopeful(self, runner: Runner) -> bool:
        """Whether none of the window is better on the same items, and it may be better than the best so far."""
        weights = self._rules.weights[: runner.seen]
        own = float(weights @ runner.results)
        if any(float(weights @ r) > own for r in self._beside(runner)):
            return False
        return hopeful(runner.results, self._leader, self._rules.weights)
