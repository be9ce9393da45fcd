"""What the driver of a search takes for each candidate, and what of it is the storage's.

    python benchmarks/scale.py                       # 10,000 candidates of 100 parameters, 1, 100 and 1,000 workers
    python benchmarks/scale.py --candidates 2000 --workers 1000 --databases sqlite

The real loop (ask, record, dispatch, tell), optimizer, space, table of known results and lease, on a real database; the
workers are simulated: in simulated time each candidate takes an exponential time, and its answer costs nothing. One
worker works through generations, more of them go without (`--async`), as one would search.

The optimizer is the one that a search of these parameters has by default, or `--sampler` names it.

What is reported for each candidate, in milliseconds: the driver without the storage (wall and CPU), the optimizer's ask
and tell of that, the storage, and as its measure one Optuna `add_trial` of a trial with as many parameters into the
same database, done now and then in the same run. Flat: the time of the last 1,000 candidates by that of candidates
100 to 1,100.

PostgreSQL is started for the run (Debian's package), or `--postgresql URL` names an empty database.
"""

from __future__ import annotations

import argparse
import heapq
import json
import tempfile
import time
from collections.abc import Callable, Hashable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.replayed import StandIn
from evomerge.evaluation.draw import Draw
from evomerge.optimizers import make_optimizer
from evomerge.score import Score, TaskScore
from evomerge.space import Float, Space, SpaceConfig, load_space
from evomerge.study.budget import Budget
from evomerge.study.contest import Rules
from evomerge.study.job import Answer, Job
from evomerge.study.known import KnownResults
from evomerge.study.leases import leased
from evomerge.study.loop import Search
from evomerge.study.raced import Raced
from evomerge.study.scoring import Scoring
from evomerge.study.store import Store
from evomerge.study.watcher import Silent

TASK = "items"
SAMPLERS = ("cma", "catcma", "thompson", "tpe", "random")
FROM = 100  # candidates before the early window
# Parts of a search's time that are told apart.
STORAGE, OPTIMIZER, BESIDE = "storage", "optimizer", "beside"


@dataclass
class Clock:
    """Seconds of the wall and of the CPU by part; what runs inside another part counts for the outer one.

    Attributes:
        marks: (wall, CPU) of the whole and of the parts beside it and of the storage, as each answer came.
    """

    parts: dict[str, np.ndarray] = field(default_factory=dict)
    marks: list[tuple[np.ndarray, np.ndarray, np.ndarray]] = field(default_factory=list)
    _open: bool = False

    @contextmanager
    def part(self, name: str) -> Iterator[None]:
        """Count what is inside the block."""
        if self._open:
            yield
            return
        self._open, before = True, now()
        try:
            yield
        finally:
            self._open = False
            self.parts[name] = self.of(name) + now() - before

    def of(self, name: str) -> np.ndarray:
        """What a part took so far."""
        return self.parts.get(name, np.zeros(2))

    def mark(self) -> None:
        """An answer comes."""
        self.marks.append((now(), self.of(BESIDE), self.of(STORAGE)))

    def around(self, thing: Any, names: Sequence[str], part: str) -> None:
        """Count what some methods of an object take."""
        for name in names:
            setattr(thing, name, self._counted(getattr(thing, name), part))

    def _counted(self, method: Callable[..., Any], part: str) -> Callable[..., Any]:
        def counted(*args: Any, **options: Any) -> Any:
            with self.part(part):
                return method(*args, **options)

        return counted


def now() -> np.ndarray:
    """Seconds of the wall's clock and of this process's CPU time."""
    return np.array([time.perf_counter(), time.process_time()])


class SimulatedPool(StandIn):
    """Workers in simulated time that need none: answers are random, and come in random order.

    Args:
        beside: Called with each answer, outside of the driver's time.
    """

    ahead, eager = 1, True

    def __init__(self, size: int, items: int, clock: Clock, beside: Callable[[int], None]) -> None:
        super().__init__()
        self.size = size
        self._ids = tuple(f"{i:016x}" for i in range(items))
        self._clock, self._beside = clock, beside
        self._random = np.random.default_rng(0)
        self._time = 0.0
        self._count = self._answered = 0
        self._running: list[tuple[float, int, Hashable, Job]] = []

    def submit(self, key: Hashable, job: Job) -> None:
        with self._clock.part(BESIDE):
            self._waiting.append((key, job))
            self._fill()

    def wait(self, poll: Callable[[], None] | None = None) -> tuple[Hashable, Answer]:
        self._clock.mark()
        with self._clock.part(BESIDE):
            self._beside(self._answered)
            self._answered += 1
            self._time, _, key, job = heapq.heappop(self._running)
            self._fill()
            at = range(len(self._ids)) if job.only is None else job.only[TASK]
            found = (self._random.random(len(at)) < 0.5).astype(np.float32)
            ids = tuple(self._ids[i] for i in at)
            score = Score((TaskScore(TASK, "acc", float(found.mean(dtype=np.float64)), 1.0, ids, found),))
            return key, Answer(score, None, {"build": 1.0, "evaluate": 10.0})

    def _fill(self) -> None:
        while self._waiting and len(self._running) < self.size:
            key, job = self._waiting.popleft()
            self._count += 1
            ends = self._time + float(self._random.exponential())
            heapq.heappush(self._running, (ends, self._count, key, job))


def space() -> Space:
    """100 parameters: four sources over 36 layers, a weight per three layers and module, and one for the embeddings."""
    data = load_space("task_arithmetic_layerwise").model_dump(mode="json", exclude_unset=True)  # type: ignore[union-attr]
    data["granularity"] = {**data["granularity"], "layer_groups": 12}
    del data["granularity"]["layers_per_group"]
    sources = [{"name": name, "model": f"org/{name}"} for name in "abcd"]
    return SpaceConfig.model_validate({**data, "base_model": "org/base", "sources": sources}).bind(36)


def add_trial(storage: Any, parameters: Sequence[Float]) -> Callable[[], None]:
    """Optuna's own way to record a trial of these parameters, into a study of its own."""
    import optuna
    from optuna.distributions import FloatDistribution

    optuna.logging.set_verbosity(optuna.logging.WARNING)
    study = optuna.create_study(study_name="optuna", storage=storage, direction="maximize")
    distributions = {p.name: FloatDistribution(p.low, p.high) for p in parameters}
    random = np.random.default_rng(1)

    def add() -> None:
        params = {p.name: float(random.uniform(p.low, p.high)) for p in parameters}
        study.add_trial(optuna.create_trial(params=params, distributions=distributions, value=0.5))

    return add


@dataclass(frozen=True)
class Row:
    """What was measured, in milliseconds (wall, CPU) per candidate."""

    driver: np.ndarray
    optimizer: np.ndarray
    storage: np.ndarray
    add_trial: np.ndarray
    flat: np.ndarray
    flat_storage: np.ndarray


def run(url: str, workers: int, args: argparse.Namespace) -> Row:
    """One search with simulated workers."""
    candidates, items, race, samples = args.candidates, args.items, args.race, args.samples
    found, clock, adding = space(), Clock(), []
    store = Store(url, create=True)
    # Under the same settings of the database, by another connection, and with no lease to look at.
    add = add_trial(Store(url).optuna, found.parameters)  # type: ignore[arg-type]
    add()

    def beside(answered: int) -> None:
        if answered % max(1, candidates // samples) == 0:
            before = now()
            add()
            adding.append(now() - before)

    asynchronous = workers > 1
    pool = SimulatedPool(workers, items, clock, beside)
    optimizer = make_optimizer(args.sampler, found.parameters, 0, asynchronous=asynchronous)
    if asynchronous and workers > optimizer.generation:  # as a search does
        optimizer = make_optimizer(args.sampler, found.parameters, 0, population=workers, asynchronous=True)
    contents = {r: f"{i:064x}" for i, r in enumerate(["org/base", *(f"org/{n}" for n in "abcd")])}
    with leased(store, "scale"):
        study = store.create("scale", found.parameters, {"space": found.fingerprint()})
        draw = Draw.of({TASK: pool._ids}, {TASK: 1.0}, 0)
        known = KnownResults(study.results, draw, {TASK: "noop"}, Score((TaskScore(TASK, "acc", 0.0),)))
        raced = Raced(draw, Rules.over(draw.weights, settle_from=draw.represented(8))) if race else None
        clock.around(study, STUDY, STORAGE)
        clock.around(study.scores, ("write", "read"), STORAGE)
        clock.around(study.results, ("write", "read"), STORAGE)
        clock.around(optimizer, ("ask", "tell"), OPTIMIZER)
        search = Search(
            study, optimizer, lambda p: found.decode(p), lambda r: r.hash(contents), Scoring(pool, known),
            Budget(candidates=candidates), Silent(), race=raced, asynchronous=asynchronous,
        )  # fmt: skip
        before = now()
        trials, _ = search.run()
        whole = now() - before
    driver = whole - clock.of(BESIDE) - clock.of(STORAGE)
    count = len(trials)
    return Row(
        *(1e3 * x / count for x in (driver, clock.of(OPTIMIZER), clock.of(STORAGE))), 1e3 * np.median(adding, axis=0),
        *flatness(clock, workers, args.window),
    )  # fmt: skip


# Everything of a study that touches the database.
STUDY = ("start", "attribute", "complete", "prune", "fail", "note", "notes", "trials")


def flatness(clock: Clock, workers: int, window: int) -> tuple[np.ndarray, np.ndarray]:
    """How much longer late candidates take than early ones: the driver with its storage, and the storage alone.

    The last ones that were still followed by another: at the end nothing new is asked for.
    """
    end = len(clock.marks) - workers - 2

    def taken(first: int, last: int) -> tuple[np.ndarray, np.ndarray]:
        (whole, beside, storage), (whole1, beside1, storage1) = clock.marks[first], clock.marks[last]
        return (whole1 - whole) - (beside1 - beside), storage1 - storage

    early, late = taken(FROM, FROM + window), taken(end - window, end)
    return late[0] / early[0], late[1] / early[1]


@contextmanager
def databases(names: Sequence[str], postgresql: str | None) -> Iterator[dict[str, Callable[[], str]]]:
    """By name, what makes the URL of an empty database."""
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="evomerge-scale-")))
        made: dict[str, Callable[[], str]] = {}
        for name in names:
            if name == "sqlite":
                made[name] = lambda: f"sqlite:///{tempfile.mkdtemp(dir=folder)}/study.db"
            elif postgresql is not None:
                made[name] = lambda: str(postgresql)
            else:
                from tests.servers import PostgreSQL

                server = PostgreSQL()
                stack.callback(server.close)
                made[name] = server.url
        yield made


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--candidates", type=int, default=10_000)
    parser.add_argument("--workers", type=int, nargs="+", default=[1, 100, 1000], help="(default: 1 100 1000)")
    parser.add_argument("--databases", nargs="+", choices=("sqlite", "postgresql"), default=["sqlite", "postgresql"])
    parser.add_argument("--sampler", choices=SAMPLERS, help="(default: a search's)")
    parser.add_argument("--items", type=int, default=500, help="search items (default: 500)")
    parser.add_argument("--race", action="store_true", help="candidates are scored block by block")
    parser.add_argument("--window", type=int, default=1000, help="early candidates, and late ones (default: 1000)")
    parser.add_argument("--samples", type=int, default=100, help="times that Optuna adds a trial (default: 100)")
    parser.add_argument("--postgresql", metavar="URL", help="an empty database; one for a single row")
    args = parser.parse_args()
    least = FROM + 2 * args.window + max(args.workers) + 3
    if args.candidates < least:
        parser.error(f"--candidates {args.candidates}: expected {least} or more, for two windows of {args.window}")
    rows = []
    searched = space()
    args.sampler = args.sampler or searched.sampler
    print(
        f"{args.candidates} candidates by {args.sampler} of {len(searched.parameters)} parameters, {args.items} items; "
        "ms per candidate"
    )
    with databases(args.databases, args.postgresql) as made:
        for name, url in made.items():
            for workers in args.workers:
                row = run(url(), workers, args)
                ratio = row.storage / row.add_trial
                print(
                    f"{name:10} {workers:5} workers: driver {row.driver[0]:6.2f} (CPU {row.driver[1]:.2f}; of it the "
                    f"optimizer {row.optimizer[1]:.2f})   storage {row.storage[0]:6.2f} (CPU {row.storage[1]:.2f}) = "
                    f"{ratio[0]:.2f} (CPU {ratio[1]:.2f}) add_trial of {row.add_trial[0]:.1f} "
                    f"(CPU {row.add_trial[1]:.1f})   late / early {row.flat[0]:.2f} (CPU {row.flat[1]:.2f}), "
                    f"storage {row.flat_storage[0]:.2f}", flush=True,
                )  # fmt: skip
                found = {k: v.round(3).tolist() for k, v in vars(row).items()}
                rows.append({"database": name, "workers": workers} | found)
    asked = {k: getattr(args, k) for k in ("sampler", "candidates", "items", "race")}
    print(json.dumps({**asked, "rows": rows}))


if __name__ == "__main__":
    main()
