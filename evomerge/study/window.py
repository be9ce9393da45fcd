"""Races without generations: at each look a candidate is compared with those that came to it last.

All see the items in the same order, so that any two can be compared on the first so many. Those that came to a look
are those that stopped there and those that went on alike, ended or not: those that ended are mostly the ones that
stopped early, and to be better than these says little.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable
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
        race: Against those that had ended last when it started; None where nobody is raced out.
        results: Of the items that it has, in the order in which they are drawn.
        settled: Whether it was the best at a look where the order was settled. Only the best so far can stop it then.
    """

    race: Race | None
    results: Numbers = field(default_factory=lambda: np.zeros(0))
    settled: bool = False

    @property
    def seen(self) -> int:
        """How many items it has."""
        return len(self.results)


class Window:
    """Those that a candidate is compared with.

    Args:
        rules: When candidates stop.
        size: How many of those that came last count: a generation's size.
        parents: Of how many of those the optimizer learns.
    """

    def __init__(self, rules: Rules, size: int, parents: int) -> None:
        self._rules = rules
        self._running: dict[int, Runner] = {}
        # Results of the last that ended; by number, of the last that came to each look, as far as they were.
        self._ended: deque[Numbers] = deque()
        self._looks: dict[int, deque[tuple[int, Numbers]]] = {end: deque() for end in rules.ends}
        self._leader: tuple[int, Numbers] | None = None
        self._bounded = True  # else nothing is known of how far results may lie apart
        self.resize(size, parents)

    def resize(self, size: int, parents: int) -> None:
        """The optimizer's generations have another size from here on."""
        self._parents = parents
        if size != self._ended.maxlen:
            self._ended = deque(self._ended, size)
            self._looks = {end: deque(came, size) for end, came in self._looks.items()}

    @property
    def led(self) -> bool:
        """Whether anybody has had all items."""
        return self._leader is not None

    def start(self, number: int) -> Runner:
        """A candidate starts; it races with those that ended last, with each on the items that both have."""
        race = None
        if self._rules.drop > 0 and self._bounded and len(self._ended) >= self._parents:
            race = Race(1, self._parents, self._rules.weights, self._rules.drop, self._ended)
        self._running[number] = Runner(race)
        return self._running[number]

    def see(self, number: int, came: Numbers) -> str | None:
        """Look at a block's results of a candidate.

        Returns:
            Why it stops here ("raced out", "settled"), or None: it goes on, or has all items.
        """
        runner = self._running[number]
        runner.results = np.concatenate([runner.results, came])
        beside = dict(self._looks[runner.seen])
        self._looks[runner.seen].append((number, runner.results))
        if runner.seen == len(self._rules.weights):
            return None
        if ((came < 0) | (came > 1)).any():
            self._bounded, runner.race = False, None
        out = runner.race is not None and bool(runner.race.see({0: came}))
        if not runner.settled and self._reliable([runner.results, *beside.values()]):
            runner.settled = True
            # It need not be ahead of the best so far to become better: how far behind it may be is asked below.
            if any(self._better(r, runner.results) for n, r in beside.items() if not self._leads(n)):
                return SETTLED
        if runner.settled and not self.hopeful(number):
            return SETTLED
        return RACED_OUT if out else None

    def end(self, number: int, failed: bool = False) -> None:
        """A candidate has ended, however."""
        runner = self._running.pop(number)
        if not failed:
            self._end(number, runner.results)

    def add(self, number: int, results: Numbers) -> None:
        """One that ended in an earlier run."""
        for end, came in self._looks.items():
            if end <= len(results):
                came.append((number, results[:end]))
        self._end(number, results)

    def hopeful(self, number: int) -> bool:
        """Whether a candidate under way may be better than the best so far, over all items."""
        leader = None if self._leader is None else self._leader[1]
        return hopeful(self._running[number].results, leader, self._rules.weights)

    def best(self, numbers: Iterable[int]) -> int | None:
        """Of some of those under way the best, each two compared on the items that both have; None: there are none."""
        found: int | None = None
        # Those that came further first: they are not replaced by one that is only as good.
        for n in sorted(numbers, key=lambda n: (-self._running[n].seen, n)):
            if found is None or self._better(self._running[n].results, self._running[found].results):
                found = n
        return found

    def _end(self, number: int, results: Numbers) -> None:
        self._ended.append(results)
        self._bounded = self._bounded and not bool(((results < 0) | (results > 1)).any())
        whole = len(results) == len(self._rules.weights)
        if whole and (self._leader is None or self._better(results, self._leader[1])):
            self._leader = (number, results)

    def _leads(self, number: int) -> bool:
        return self._leader is not None and self._leader[0] == number

    def _better(self, one: Numbers, other: Numbers) -> bool:
        """On the items that both have."""
        shared = min(len(one), len(other))
        weights = self._rules.weights[:shared]
        return float(weights @ one[:shared]) > float(weights @ other[:shared])

    def _reliable(self, results: list[Numbers]) -> bool:
        """Whether the order of those that came to a look is known well enough."""
        seen, weights = len(results[0]), self._rules.weights
        if seen < self._rules.settle_from or len(results) < 2:
            return False
        return reliability(np.array(results) * weights[:seen], len(weights)) >= self._rules.reliability
