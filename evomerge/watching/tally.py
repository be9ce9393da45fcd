"""What a search has done so far and how quickly: what the live view, lines and events have in common."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace

from evomerge.score import State, Trial, Value
from evomerge.study.watcher import Beginning

# Rates are those of the last so many seconds.
WINDOW = 120.0
AT_ONCE = 0.1
# No time left is told before there are so many seconds and answers to tell it from, for each worker too, and this share
# of the budget is spent: the first candidates are cheap or known, and workers are still warming up.
LEAST_SECONDS, LEAST_ANSWERS, LEAST_PER_WORKER, LEAST_SHARE = 10.0, 8, 2, 0.02


@dataclass(frozen=True)
class _Sample:
    """Fresh work up to a moment: candidates that ended, items that were scored, budget that was spent."""

    at: float
    ended: int
    items: int
    units: float


class Tally:
    """Counts one search.

    Args:
        clock: Seconds; another one in tests.

    Attributes:
        best: The best complete candidate so far, by the constraints first.
        units: Candidates' worth of items spent by those that ended.
        complete, pruned, failed: How many ended so, those of earlier runs too.
    """

    def __init__(self, beginning: Beginning, clock: Callable[[], float] = time.monotonic) -> None:
        self.beginning = beginning
        self._clock = clock
        self._started_at = clock()
        self._running: set[int] = set()
        self.complete = self.pruned = self.failed = 0
        self.best: Trial | None = None
        self.units = 0.0
        self._replayed = 0.0
        self._answers = self._items = self._ended = 0
        self._first: _Sample | None = None
        self._recent: deque[_Sample] = deque()

    def started(self, number: int, params: Mapping[str, Value]) -> None:
        """A candidate is being run."""
        self._running.add(number)

    def scored(self, items: int) -> None:
        """An answer came."""
        self._answers += 1
        self._items += items
        self._sample()

    def finished(self, trial: Trial, replayed: bool) -> bool:
        """A candidate ended. Returns whether it is the best so far."""
        self._running.discard(trial.number)
        self.units += trial.cost
        self.complete += trial.state is State.COMPLETE
        self.pruned += trial.state is State.PRUNED
        self.failed += trial.state is State.FAIL
        if replayed:
            self._replayed += trial.cost
        else:
            self._ended += 1
            if self._answers or not self.beginning.items:  # else it was known: nothing has been scored yet
                self._sample()
        better = trial.score is not None and (self.best is None or _rank(trial) < _rank(self.best))
        if better:
            self.best = trial
        return better

    def _sample(self) -> None:
        now = self._clock()
        found = _Sample(now, self._ended, self._items, self._fresh)
        # What comes at once is one sample: an answer, and the candidates that ended by it.
        if self._recent and now - self._recent[-1].at < AT_ONCE:
            found = self._recent[-1] = replace(found, at=self._recent[-1].at)
        else:
            self._recent.append(found)
        if self._first is None or self._first.at == found.at:
            self._first = found  # before the first answer, workers were still starting
        while len(self._recent) > 2 and self._recent[1].at < now - WINDOW:
            self._recent.popleft()

    @property
    def _fresh(self) -> float:
        """What was spent by this run: by items as they come, where they are counted."""
        items = self.beginning.items
        return self._items / items if items else self.units - self._replayed

    @property
    def running(self) -> int:
        """How many candidates are being run."""
        return len(self._running)

    @property
    def ended(self) -> int:
        """How many candidates ended, those of earlier runs too."""
        return self.complete + self.pruned + self.failed

    @property
    def seconds(self) -> float:
        """Seconds of the search so far, earlier runs too."""
        return self.beginning.spent + self._clock() - self._started_at

    @property
    def share(self) -> float:
        """The share of the budget that is spent, from 0 to 1; blocks of candidates under way count."""
        return self.beginning.budget.share(max(self.units, self._replayed + self._fresh), self.seconds)

    @property
    def rates(self) -> tuple[float, float] | None:
        """(candidates per minute, items per second) of the last minutes; None before there is much to tell from."""
        if len(self._recent) < 2:
            return None
        first, last = self._recent[0], self._recent[-1]
        length = last.at - first.at
        if length < 2.0:
            return None
        return 60.0 * (last.ended - first.ended) / length, (last.items - first.items) / length

    @property
    def left(self) -> float | None:
        """Seconds until the budget is spent; None where it cannot be told yet.

        By the slower of two paces: since the first answer, and of the last minutes.
        """
        budget = self.beginning.budget
        if budget.candidates is None:
            return max(0.0, (budget.seconds or 0.0) - self.seconds)
        if self._first is None or self._answers < max(LEAST_ANSWERS, LEAST_PER_WORKER * self.beginning.workers):
            return None
        now, last = self._clock(), self._recent[-1]
        if now - self._first.at < LEAST_SECONDS or last.units < LEAST_SHARE * budget.candidates:
            return None
        paces = [
            (last.units - since.units) / (last.at - since.at)
            for since in (self._first, self._recent[0])
            if last.at > since.at
        ]
        pace = min(paces, default=0.0)
        if pace <= 0.0:
            return None
        ahead = budget.candidates - max(self.units, self._replayed + last.units)
        return max(0.0, ahead / pace - (now - last.at))


def _rank(trial: Trial) -> tuple[float, float]:
    return trial.violation, -(trial.value or 0.0)
