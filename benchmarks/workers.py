"""How busy workers are, with generations and without, where evaluation times have a heavy tail.

    python benchmarks/workers.py

Replays `evomerge search` and `evomerge search --async` over 64 workers in simulated time: each candidate takes a
log-normal time, and the scores are those of the surrogate of the zoo's task (benchmarks/search.py), so that what a
search finds is told beside how long it took. No models.
"""

from __future__ import annotations

import argparse
import heapq
from collections import deque
from collections.abc import Hashable
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, field
from itertools import repeat

import numpy as np

from benchmarks.replayed import ITEMS, curve, load, replay
from evomerge.optimizers import make_optimizer
from evomerge.study.job import Answer, Job
from evomerge.study.workers import Pool

SIGMA = 1.0  # of the logarithm of the time: the longest of a thousand takes 22 times as long as the median


@dataclass
class Clock:
    """Simulated time: now, and when each job started and ended."""

    now: float = 0.0
    jobs: list[tuple[float, float]] = field(default_factory=list)

    def busy(self, workers: int) -> float:
        """The share of the time that workers worked, until the last job was given out: then the budget was spent."""
        last = max(start for start, _ in self.jobs)
        return sum(min(end, last) - start for start, end in self.jobs) / (workers * last)


class TimedPool:
    """A pool of workers in simulated time, around one that knows the answers."""

    device = "cpu"

    def __init__(self, inner: Pool, size: int, seed: int, clock: Clock) -> None:
        self.size = size
        self._inner = inner
        self._random = np.random.default_rng([seed, 1])
        self._clock = clock
        self._waiting: deque[tuple[Hashable, Job]] = deque()
        self._running: list[tuple[float, int, Hashable, Job]] = []
        self._count = 0

    def submit(self, key: Hashable, job: Job) -> None:
        self._waiting.append((key, job))
        self._start()

    def _start(self) -> None:
        while self._waiting and len(self._running) < self.size:
            key, job = self._waiting.popleft()
            items = ITEMS if job.only is None else sum(map(len, job.only.values()))
            seconds = float(self._random.lognormal(0.0, SIGMA)) * items / ITEMS
            self._clock.jobs.append((self._clock.now, self._clock.now + seconds))
            self._count += 1
            heapq.heappush(self._running, (self._clock.now + seconds, self._count, key, job))

    def wait(self) -> tuple[Hashable, Answer]:
        self._clock.now, _, key, job = heapq.heappop(self._running)
        self._start()
        self._inner.submit(key, job)
        return self._inner.wait()

    def close(self) -> None:
        pass


def run(seed: int, budget: int, workers: int, asynchronous: bool, population: int) -> tuple[float, float, float]:
    """One search. Returns (share of the time that workers were busy, simulated time, held-out score at the end)."""
    clock, surrogate = Clock(), load()[0]
    trials = replay(
        surrogate, seed, budget,
        lambda p, s: make_optimizer("cma", p, s, population=population, asynchronous=asynchronous),
        around=lambda inner: TimedPool(inner, workers, seed, clock), asynchronous=asynchronous,
    )  # fmt: skip
    scores: list[float] = curve(surrogate, trials, seed)[1]
    return clock.busy(workers), clock.now, scores[-1]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--workers", type=int, default=64)
    parser.add_argument("--budget", type=int, default=1500)
    parser.add_argument("--seeds", type=int, default=5)
    args = parser.parse_args()
    print(f"{args.workers} workers, {args.budget} candidates, log-normal times (sigma {SIGMA:g}), {args.seeds} seeds")
    for name, asynchronous, population in (
        ("generations of 64", False, 64), ("--async, lambda 64", True, 64), ("--async, lambda 12", True, 12),
    ):  # fmt: skip
        with ProcessPoolExecutor(2) as pool:
            found = pool.map(
                run, range(args.seeds), *(repeat(x) for x in (args.budget, args.workers, asynchronous, population))
            )
            busy, time, score = np.array(list(found)).T
        print(
            f"{name:20} busy {busy.mean():5.1%} ({busy.min():.1%} .. {busy.max():.1%})   time {time.mean():7.1f} "
            f"median evaluations   held-out {score.mean():.3f} ({score.min():.3f} .. {score.max():.3f})", flush=True,
        )  # fmt: skip


if __name__ == "__main__":
    main()
