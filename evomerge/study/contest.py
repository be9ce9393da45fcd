"""How one generation is scored block by block: who goes on after each block, and what the optimizer is told.

Candidates stop where more items would hardly change the order of those that are left. The best of them then goes on
alone as long as it is ahead of the best candidate so far: what is chosen in the end is chosen among candidates
that have all items. Before that, one stops that can no longer be among the parents (`racing.Race`).

When the order is settled says Hoyt's reliability of a table of candidates by items (Psychometrika 6, 1941; for results
of 0 and 1 it is Kuder and Richardson's formula 20, else Cronbach's alpha), here of items drawn without replacement: the
share of the variance between the candidates' means that is theirs and not the draw's.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

from evomerge.study.racing import Race

Numbers = npt.NDArray[np.float64]

# After which shares of the items one looks.
LOOKS = (0.05, 0.1, 0.2, 0.35, 0.5, 0.75, 1.0)
# Fewer items than this say too little for a block of their own, and fewer than twice as many are scored at once.
LEAST = 16
DROP = 0.1
RELIABILITY = 0.5
# The best of a settled generation goes on while its lead over the best so far is above minus this many standard errors.
# Without it the same scores take as many items, but few candidates get all of them, and there is little to choose from.
HOPE = 1.0
RACED_OUT, SETTLED, FAILED = "raced out", "settled", "failed"


@dataclass(frozen=True)
class Rules:
    """When candidates stop.

    Attributes:
        weights: What each item counts, in the order in which they are drawn; they add up to 1.
        ends: Numbers of items after which one looks; the last is all of them.
        drop: Largest probability with which one that belongs among the parents is dropped. 0: none is.
        reliability: From which reliability on the order of those left is settled. Above 1: never.
        settle_from: Number of items before which no order is settled: every task must have its say.
    """

    weights: Numbers
    ends: tuple[int, ...]
    drop: float = DROP
    reliability: float = RELIABILITY
    settle_from: int = 0

    @classmethod
    def over(
        cls,
        weights: Sequence[float] | Numbers,
        drop: float = DROP,
        reliability: float = RELIABILITY,
        settle_from: int = 0,
    ) -> Rules:
        """The rules over so many items, in blocks of at least `LEAST`."""
        count = len(weights)
        ends = dict.fromkeys(e for share in LOOKS[:-1] if LEAST <= (e := round(share * count)) <= count - LEAST)
        return cls(np.asarray(weights, dtype=np.float64), (*ends, count), drop, reliability, settle_from)


    def next_end(self, seen: int) -> int:
        """The number of items after which one looks next."""
        return next(e for e in self.ends if e > seen)


@dataclass
class Contest:
    """The race of one generation.

    Args:
        candidates: How many there are.
        parents: Of how many the optimizer learns (with `rivals`: among those too).
        leader: Results of the best candidate so far, shape (items,).
        rivals: Results of earlier candidates that compete for the parents' places, shape (rivals, items).

    Attributes:
        left: Candidates that go on.
        stopped: Why the others stopped: "raced out", "settled", or "failed".
    """

    rules: Rules
    candidates: int
    parents: int
    leader: Numbers | None = None
    rivals: Numbers | None = None
    left: list[int] = field(init=False)
    stopped: dict[int, str] = field(init=False, default_factory=dict)

    def __post_init__(self) -> None:
        self.left = list(range(self.candidates))
        self._results: list[list[float]] = [[] for _ in self.left]
        self._race: Race | None = None
        if self.rules.drop > 0:
            rivals = () if self.rivals is None else self.rivals
            self._race = Race(self.candidates, self.parents, self.rules.weights, self.rules.drop, rivals)
        self._settled = False

    def blocks(self) -> Iterator[tuple[int, int]]:
        """Where the next items start and end, as long as anybody is left."""
        start = 0
        for end in self.rules.ends:
            if not self.left:
                return
            yield start, end
            start = end

    def stop(self, candidate: int, why: str) -> None:
        """A candidate that is left stops here."""
        self.left.remove(candidate)
        self.stopped[candidate] = why

    def fail(self, candidate: int) -> None:
        """A candidate that is left has failed; it takes no further part."""
        self.stop(candidate, FAILED)
        if self._race is not None:
            self._race.leave(candidate)

    def see(self, results: Mapping[int, Sequence[float] | Numbers]) -> list[int]:
        """Look at a block's results of those that are left.

        Returns:
            Candidates that stop here, the worst first.
        """
        for candidate, came in results.items():
            self._results[candidate] += [float(x) for x in came]
        if not self.left:
            return []
        before = list(self.left)
        seen = self.seen(before[0])
        whole = seen == len(self.rules.weights)
        # Looked at before anybody is raced out: those that are left alone are more alike, and would need more items.
        settled = self._settled or self._reliable(seen)
        if self._race is not None and not settled:
            if not all(0.0 <= x <= 1.0 for came in results.values() for x in came):
                self._race = None  # nothing is known of how far results may lie apart: the order alone decides
            elif not whole:
                for candidate in self._race.see(results):
                    self.stop(candidate, RACED_OUT)
        if whole:
            self.left = []
        elif self.left and (settled or len(self.left) < 2):
            self.settle()
        return [c for c in self.stopped if c in before]

    def settle(self) -> list[int]:
        """Let nobody go on but the best of those left, and that one only as long as it may be the best of all.

        Returns:
            Candidates that stop here, the worst first.
        """
        self._settled = True
        best = max(self.left, key=lambda c: (self.estimate(c), -c))
        stopped = [
            c
            for c in sorted(self.left, key=lambda c: (self.estimate(c), -c))
            if c != best or not self._hopeful(best, self.seen(best))
        ]
        for candidate in stopped:
            self.stop(candidate, SETTLED)
        return stopped

    def estimate(self, candidate: int) -> float:
        """A candidate's score on the items that it has."""
        results = np.array(self._results[candidate])
        weights = self.rules.weights[: len(results)]
        return float(weights @ results / weights.sum())

    def seen(self, candidate: int) -> int:
        """How many items a candidate has."""
        return len(self._results[candidate])

    def _reliable(self, seen: int) -> bool:
        if len(self.left) < 2:
            return True
        if seen < self.rules.settle_from:
            return False
        table = np.array([self._results[c] for c in self.left]) * self.rules.weights[:seen]
        return reliability(table, len(self.rules.weights)) >= self.rules.reliability

    def _hopeful(self, candidate: int, seen: int) -> bool:
        """Whether it may be better than the best so far, over all items."""
        return hopeful(np.array(self._results[candidate][:seen]), self.leader, self.rules.weights)


def hopeful(results: Numbers, leader: Numbers | None, weights: Numbers) -> bool:
    """Whether a candidate may be better than the best so far, over all items.

    Args:
        results: Of the items that it has, the first ones.
        leader: Of the best so far, on all items; None: there is none.
        weights: Of all items.
    """
    if leader is None:
        return True
    seen, count = len(results), len(weights)
    lead = (results - leader[:seen]) * weights[:seen] * count
    error = float(lead.std(ddof=1)) * math.sqrt((1 - seen / count) / seen) if seen > 1 else math.inf
    return float(lead.mean()) + HOPE * error > 0


def below(values: Sequence[float | None], dropped: Mapping[int, int], limit: float = math.inf) -> list[float | None]:
    """Values of which those raced out are at most what puts them at their rank: below all others.

    Those that went further before they were dropped stand higher, then those with the higher value.

    Args:
        values: Score or estimate of each candidate; None where it failed.
        dropped: Of those raced out, how many items they had.
        limit: What they stand below beside that.
    """
    found = list(values)
    low = min((v for i, v in enumerate(values) if v is not None and i not in dropped), default=math.inf)
    low = min(low, limit)
    estimates = {i: v for i in dropped if (v := values[i]) is not None}
    for i in sorted(estimates, key=lambda i: (-dropped[i], -estimates[i], i)):
        low = min(estimates[i], float(np.nextafter(low, -math.inf)))
        found[i] = low
    return found


def reliability(table: Numbers, items: int) -> float:
    """Reliability of candidates' means over some items for their means over all of them.

    1 - (1 - n/N) MS_residual / MS_candidates of the two-way analysis of variance without replication.

    Args:
        table: Results, shape (candidates, n), of n items drawn out of `items`.
    """
    rows, columns = table.shape
    if rows < 2 or columns < 2:
        return 0.0
    means = table.mean(axis=1)
    residual = table - means[:, None] - table.mean(axis=0)[None] + table.mean()
    within = float((residual**2).sum()) / ((rows - 1) * (columns - 1))
    between = columns * float(((means - means.mean()) ** 2).sum()) / (rows - 1)
    # Where nobody differs on any item nothing is known of their order.
    return 1.0 - (1.0 - columns / items) * within / between if between > 0 else 0.0
