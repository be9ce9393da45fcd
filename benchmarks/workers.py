"""How busy workers are, and what is found, with generations and without, where evaluation times have a heavy tail.

    python benchmarks/workers.py

Replays `evomerge search` and `evomerge search --async` over 64 workers in simulated time: each job takes a log-normal
time by its share of the items, and the scores are those of the surrogate of the zoo's task (benchmarks/search.py), with
the real loop, optimizers and database and without models. Searches that race and such that score every candidate on all
items have budgets of their own. What is found is compared with generations as large as there are workers, which use all
of them too, seed by seed.

A driver that takes no time would keep a queue full by construction. So the last rows add the CPU time that loop,
optimizer and database took between two answers, at a stated length of a median evaluation; the queue between the
processes (Ray) is not in it. They are of two seeds, for the times alone.
"""

from __future__ import annotations

import argparse
import heapq
import time
from collections import deque
from collections.abc import Callable, Hashable, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, field, replace
from itertools import repeat

import numpy as np
from scipy import stats

from benchmarks.replayed import ITEMS, StandIn, curve, load, replay
from evomerge.optimizers import Optimizer, make_optimizer
from evomerge.space import Float, load_space
from evomerge.study.contest import Rules
from evomerge.study.job import Answer, Job
from evomerge.study.workers import Pool

TIMED = 2  # seeds with the driver's own time
SIGMA = 1.0  # of the logarithm of the time: the longest of a thousand takes 22 times as long as the median


@dataclass
class Clock:
    """Simulated time: now, for the driver, and when each job started and ended. In median evaluations of all items.

    Attributes:
        out: When the last new candidate started: from there on there is not enough work for all.
    """

    now: float = 0.0
    jobs: list[tuple[float, float]] = field(default_factory=list)
    out: float = 0.0

    def busy(self, workers: int, until: float) -> float:
        """The share of a time that workers worked."""
        return sum(min(end, until) - start for start, end in self.jobs if start < until) / (workers * until)

    @property
    def ended(self) -> float:
        """When the last job ended."""
        return max(end for _, end in self.jobs)


class TimedPool(StandIn):
    """A pool of workers in simulated time, around one that knows the answers.

    Args:
        evaluation: Seconds that a median evaluation of all items takes: the driver's own CPU seconds pass beside them.
            None: the driver takes no time.
    """

    def __init__(self, inner: Pool, size: int, seed: int, clock: Clock, evaluation: float | None = None) -> None:
        super().__init__()
        self.size = size
        self._inner = inner
        self._random = np.random.default_rng([seed, 1])
        self._clock = clock
        self._evaluation = evaluation
        self._running: list[tuple[float, int, Hashable, Job]] = []
        self._done: deque[tuple[Hashable, Job]] = deque()
        self._begun: set[Hashable] = set()
        self._count = 0
        self._since = time.process_time()

    def submit(self, key: Hashable, job: Job) -> None:
        self._pass(self._driver())
        if len(self._running) < self.size:
            self._start(self._clock.now, key, job)
        else:
            self._waiting.append((key, job))

    def wait(self, poll: Callable[[], None] | None = None) -> tuple[Hashable, Answer]:
        self._pass(self._driver())
        if not self._done:
            self._pass(self._running[0][0])
        key, job = self._done.popleft()
        self._inner.submit(key, job)
        answer = self._inner.wait()
        self._since = time.process_time()  # the surrogate is no part of the driver
        return answer

    def _driver(self) -> float:
        """When it is by the driver's clock."""
        spent, self._since = time.process_time() - self._since, time.process_time()
        return self._clock.now + (spent / self._evaluation if self._evaluation is not None else 0.0)

    def _pass(self, until: float) -> None:
        """Let time pass: whoever ends goes on with what waits."""
        while self._running and self._running[0][0] <= until:
            end, _, key, job = heapq.heappop(self._running)
            self._done.append((key, job))
            if self._waiting:
                self._start(end, *self._waiting.popleft())
        self._clock.now = until

    def _start(self, at: float, key: Hashable, job: Job) -> None:
        items = ITEMS if job.only is None else sum(map(len, job.only.values()))
        seconds = float(self._random.lognormal(0.0, SIGMA)) * items / ITEMS
        self._clock.jobs.append((at, at + seconds))
        if key not in self._begun:
            self._begun.add(key)
            self._clock.out = at
        self._count += 1
        heapq.heappush(self._running, (at + seconds, self._count, key, job))


@dataclass(frozen=True)
class Way:
    """A way to search.

    Attributes:
        population: Of a generation; None: the optimizer's own.
        evaluation: See `TimedPool`.
    """

    asynchronous: bool
    race: bool
    population: int | None
    budget: int
    workers: int
    evaluation: float | None = None
    sampler: str = "auto"

    def make(self, parameters: Sequence[Float], seed: int) -> Optimizer:
        """Its optimizer, with the starts that `evomerge search` gives it."""
        made = make_optimizer(
            self.sampler, parameters, seed, population=self.population, asynchronous=self.asynchronous
        )
        for start in load_space("quickstart").bind(4).starts():  # type: ignore[union-attr]
            made.enqueue(start.params)
        return made


def run(seed: int, way: Way) -> tuple[float, float, float, float]:
    """One search.

    Returns:
        The share of the time that workers were busy until the last candidate started, and until the last ended; when
        that was; the held-out score at the end.
    """
    clock, surrogate = Clock(), load()[0]
    trials = replay(
        surrogate, seed, way.budget, way.make, rules=Rules.over if way.race else None,
        around=lambda inner: TimedPool(inner, way.workers, seed, clock, way.evaluation), asynchronous=way.asynchronous,
    )  # fmt: skip
    scores = curve(surrogate, trials, seed)[1]
    return clock.busy(way.workers, clock.out), clock.busy(way.workers, clock.ended), clock.ended, scores[-1]


def interval(differences: Sequence[float]) -> str:
    """The mean of paired differences with its 95 % interval (Student's t)."""
    mean, error = float(np.mean(differences)), float(stats.sem(differences))
    half = float(stats.t.ppf(0.975, len(differences) - 1)) * error
    return f"{mean:+.3f} ({mean - half:+.3f} .. {mean + half:+.3f})"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--workers", type=int, default=64)
    parser.add_argument("--budget", type=int, default=120, help="candidates of each search that races (default: 120)")
    parser.add_argument("--long", type=int, default=300, help="the same for those without a race (default: 300)")
    parser.add_argument("--sampler", default="auto", help="default: that of `evomerge search`")
    parser.add_argument("--seeds", type=int, default=10)
    parser.add_argument("--evaluation", type=float, default=10.0, help="seconds of a median evaluation (default: 10)")
    parser.add_argument("--processes", type=int, default=2)
    args = parser.parse_args()
    if args.seeds < 2:
        parser.error(f"--seeds {args.seeds}: expected 2 or more, for intervals")
    print(
        f"{args.workers} workers, log-normal times (sigma {SIGMA:g}), {args.seeds} seeds; times in median evaluations; "
        "difference: held-out, to generations as large as there are workers"
    )
    with ProcessPoolExecutor(args.processes) as pool:
        for race, budget in ((True, args.budget), (False, args.long)):
            print(f"\n{'race' if race else 'all items'}, {budget} candidates' items")
            wide = Way(False, race, args.workers, budget, args.workers, sampler=args.sampler)
            ways = {
                f"generations of {args.workers}": wide,
                "generations, lambda of its own": replace(wide, population=None),
                f"--async, lambda {args.workers}": replace(wide, asynchronous=True),
                "--async, lambda of its own": replace(wide, asynchronous=True, population=None),
            }
            # Blocks are the shortest jobs, so that the driver has least time for each.
            for name in list(ways)[::2] if race else ():
                ways[f"{name}, {args.evaluation:g} s"] = replace(ways[name], evaluation=args.evaluation)
            reference = None
            for name, way in ways.items():
                seeds = range(args.seeds if way.evaluation is None else TIMED)
                found = np.array(list(pool.map(run, seeds, repeat(way))))
                spent, ended, lasted, score = found.T
                words = ""
                if reference is None:
                    reference = score
                elif way.evaluation is None:
                    words = f"   difference {interval(score - reference)}"
                print(
                    f"{name:32} busy while candidates start {spent.mean():6.1%} ({spent.min():.1%}), until the end "
                    f"{ended.mean():6.1%} ({ended.min():.1%})   time {lasted.mean():6.1f}   held-out "
                    f"{score.mean():.3f} ({score.min():.3f} .. {score.max():.3f}){words}", flush=True,
                )  # fmt: skip


if __name__ == "__main__":
    main()
