"""Real Ray workers: what it takes to dispatch a candidate, two workers against one, and how busy they are.

    python benchmarks/scale_ray.py

Dispatch: candidates of 100 parameters (benchmarks/scale.py) go through the pool's actors to workers that do nothing.
Two against one: the real loop, database and workers on the zoo's task, each candidate on all items, after every worker
has scored one to warm up. Busy is the time that workers spent on building and evaluating by all the time that they had.
Both searches are run in turns, several times, for other processes make the times noisy.
"""

from __future__ import annotations

import argparse
import json
import os
import tempfile
import time
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")

import numpy as np

from benchmarks.scale import now, space
from evomerge.pipeline import Options, Plan
from evomerge.study.budget import Budget
from evomerge.study.job import Answer, Job
from evomerge.study.loop import Search
from evomerge.study.scoring import Scoring
from evomerge.study.store import Store
from evomerge.study.watcher import Silent
from evomerge.study.workers import Cluster, RayPool
from evomerge.study.workers.actors import Actors
from evomerge.study.workers.connection import Connection


def nothing(device: str) -> Any:
    """What a worker holds that does nothing."""
    return lambda job: Answer(None, "none", {"build": 0.0, "evaluate": 0.0})


def dispatch(workers: int, candidates: int) -> np.ndarray:
    """Milliseconds (wall, CPU of the driver) per candidate, with one more at hand than there are workers."""
    found = space()
    job = Job("search", found.decode(found.initial()))
    connection = Connection(Cluster(workers=workers))
    try:
        actors = Actors(connection, nothing)
        for i in range(workers + 1):
            actors.submit(i, job)
        for _ in range(20 * workers):  # all workers are up, and warm
            actors.wait()
            actors.submit(0, job)
        before = now()
        for _ in range(candidates):
            actors.wait()
            actors.submit(0, job)
        return 1e3 * (now() - before) / candidates
    finally:
        connection.close()


def search(workers: int, candidates: int, asynchronous: bool) -> tuple[float, float]:
    """Candidates per second of one search, and the share of the workers' time that was build and evaluation."""
    with tempfile.TemporaryDirectory(prefix="evomerge-scale-") as folder:
        options = Options(
            budget=Budget(candidates=candidates), out=Path(folder) / "out", cluster=Cluster(workers=workers),
            asynchronous=asynchronous,
        )  # fmt: skip
        plan = Plan(options)
        pool = RayPool(options.cluster, plan.sources, plan.live, plan.evaluator)
        try:
            for i in range(2 * workers):
                pool.submit(f"warm {i}", Job("search", plan.uniform()))
            for _ in range(2 * workers):
                pool.wait()
            study = Store(f"sqlite:///{folder}/study.db", create=True).create("s", plan.space.parameters, {})
            started = time.perf_counter()
            trials, _ = Search(
                study, plan.optimizer(plan.space), plan.decode(plan.space), plan.hash, Scoring(pool), options.budget,
                Silent(), asynchronous=asynchronous,
            ).run()  # fmt: skip
            wall = time.perf_counter() - started
        finally:
            pool.close()
    return len(trials) / wall, sum(sum(t.seconds.values()) for t in trials) / (workers * wall)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--dispatched", type=int, default=1000, help="candidates that are dispatched (default: 1000)")
    parser.add_argument("--candidates", type=int, default=48, help="of each search (default: 48)")
    parser.add_argument("--rounds", type=int, default=2, help="searches with each number of workers (default: 2)")
    args = parser.parse_args()
    result: dict[str, Any] = {}
    for workers in (1, 2) if args.dispatched else ():
        wall, cpu = dispatch(workers, args.dispatched)
        print(f"dispatch, {workers} workers that do nothing: {wall:.2f} ms per candidate (CPU {cpu:.2f})", flush=True)
        result[f"dispatch {workers}"] = [wall, cpu]
    found: dict[int, list[tuple[float, float]]] = {1: [], 2: []}
    for _ in range(args.rounds):
        for workers, each in found.items():
            each.append(search(workers, args.candidates, asynchronous=True))
            print(
                f"{workers} workers: {each[-1][0]:.3f} candidates/s, busy {each[-1][1]:.1%} (load of the machine: "
                f"{os.getloadavg()[0]:.1f})", flush=True,
            )  # fmt: skip
    if args.rounds:
        one, two = (np.mean(found[n], axis=0) for n in (1, 2))
        print(f"two workers against one: {two[0] / one[0]:.2f}x; busy {one[1]:.1%}, {two[1]:.1%}")
        result |= {"speedup": two[0] / one[0], "busy": [one[1], two[1]]}
    print(json.dumps(result))


if __name__ == "__main__":
    main()
