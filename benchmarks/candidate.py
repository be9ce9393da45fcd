"""Seconds per candidate, split by step, and the same candidates the way mergekit-evolve works, in one run.

    python benchmarks/candidate.py [--candidates 26] [--workers 2]

Both sides score the same candidates (the first ones that CMA-ES proposes on the quickstart space) on the same items
with the same number of worker processes, after every worker has scored one model to warm up. mergekit-evolve's way, as
its on-disk actor does it: mergekit writes a merge to disk, `lm_eval.simple_evaluate` loads it with transformers and
scores it. The task manager is built once per process on both sides. Only the ratios mean something elsewhere.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import tempfile
import time
from collections import defaultdict
from collections.abc import Callable
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")

from evomerge.pipeline import Options, Plan
from evomerge.study.budget import Budget
from evomerge.study.job import Job
from evomerge.study.loop import Search
from evomerge.study.scoring import Scoring
from evomerge.study.store import Store
from evomerge.study.watcher import Silent
from evomerge.study.workers import Cluster, RayPool


class PeerWorker:
    """One process of mergekit-evolve's on-disk way, on a CPU."""

    def __init__(self, include_path: str, samples: dict[str, list[int]], batch_size: int) -> None:
        import torch
        from lm_eval.tasks import TaskManager

        torch.set_num_threads(1)
        self._manager = TaskManager(include_path=include_path, include_defaults=False)
        self._samples, self._batch = samples, batch_size

    def score(self, recipe: dict[str, Any], metrics: dict[str, str]) -> tuple[dict[str, float], dict[str, float]]:
        import lm_eval
        from mergekit.config import MergeConfiguration
        from mergekit.merge import MergeOptions, run_merge

        folder = tempfile.mkdtemp(prefix="merged")
        try:
            started = time.perf_counter()
            run_merge(MergeConfiguration.model_validate(recipe), folder, MergeOptions(quiet=True, copy_tokenizer=True))
            merged = time.perf_counter()
            results = lm_eval.simple_evaluate(
                model="hf",
                model_args={"pretrained": folder, "dtype": "float32"},
                tasks=list(self._samples),
                samples=self._samples,
                batch_size=self._batch,
                device="cpu",
                log_samples=False,
                task_manager=self._manager,
            )["results"]
            done = time.perf_counter()
        finally:
            shutil.rmtree(folder, ignore_errors=True)
        scores = {task: float(results[task][f"{metric},none"]) for task, metric in metrics.items()}
        return scores, {"build": merged - started, "evaluate": done - merged}


def timed(clock: dict[str, float], step: str, function: Callable[..., Any]) -> Callable[..., Any]:
    """The function, its seconds added to a step."""

    def run(*args: Any, **kwargs: Any) -> Any:
        started = time.perf_counter()
        try:
            return function(*args, **kwargs)
        finally:
            clock[step] += time.perf_counter() - started

    return run


def ours(plan: Plan, pool: RayPool, folder: Path) -> tuple[list[Any], dict[str, float], float]:
    """Search as `evomerge search` does. Returns trials, seconds per candidate by step, and wall seconds."""
    study = Store(f"sqlite:///{folder / 'study.db'}", create=True).create("b", plan.space.parameters, {})
    clock: dict[str, float] = defaultdict(float)
    optimizer = plan.optimizer(plan.space)
    optimizer.ask = timed(clock, "propose", optimizer.ask)
    optimizer.tell = timed(clock, "propose", optimizer.tell)
    decode = timed(clock, "propose", plan.decode(plan.space))
    for name in ("start", "complete", "note"):
        setattr(study, name, timed(clock, "record", getattr(study, name)))
    started = time.perf_counter()
    trials, _ = Search(study, optimizer, decode, plan.hash, Scoring(pool), plan.options.budget, Silent()).run()
    wall = time.perf_counter() - started
    steps = {step: seconds / len(trials) for step, seconds in clock.items()}
    for step in ("build", "evaluate"):
        steps[step] = sum(t.seconds[step] for t in trials) / len(trials)
    return trials, {s: steps[s] for s in ("propose", "build", "evaluate", "record")}, wall


def peers(plan: Plan, trials: list[Any], workers: int) -> tuple[list[float], dict[str, float], float]:
    """The same candidates the way mergekit-evolve works."""
    import ray

    from evomerge.evaluation import open_evaluator

    file = plan.evaluator
    opened: Any = open_evaluator(file)
    samples = {t.name: [i.index for i in t.items["search"]] for t in opened._tasks if t.weight}
    metrics = {t.name: t.metric for t in opened._tasks if t.weight}
    decode = plan.decode(plan.space)
    recipes = [on_disk(decode(t.params).to_dict(), plan) for t in trials]
    actor = ray.remote(num_cpus=1)(PeerWorker)
    size = file.config.batch_size if isinstance(file.config.batch_size, int) else 64
    hands = [actor.remote(str(file.folder / (file.config.include_path or "")), samples, size) for _ in range(workers)]
    ray.get([hand.score.remote(recipes[0], metrics) for hand in hands])
    from ray.util import ActorPool

    started = time.perf_counter()
    found = list(ActorPool(hands).map(lambda hand, recipe: hand.score.remote(recipe, metrics), recipes))
    wall = time.perf_counter() - started
    values = [sum(scores.values()) / len(scores) for scores, _ in found]
    return values, {s: sum(steps[s] for _, steps in found) / len(found) for s in ("build", "evaluate")}, wall


def on_disk(recipe: dict[str, Any], plan: Plan) -> dict[str, Any]:
    """A recipe that mergekit can read: folders for `zoo:` names, without our own key."""
    places = {reference: str(source.path) for reference, source in plan.sources.items()}

    def walk(value: Any) -> Any:
        if isinstance(value, dict):
            return {k: walk(v) for k, v in value.items() if k != "evomerge"}
        if isinstance(value, list):
            return [walk(v) for v in value]
        return places.get(value, value) if isinstance(value, str) else value

    return dict(walk(recipe))


def main() -> None:
    """Run both sides, print the table and one JSON line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--candidates", type=int, default=26)
    parser.add_argument("--workers", type=int, default=2)
    args = parser.parse_args()
    folder = Path(tempfile.mkdtemp(prefix="evomerge-benchmark-"))
    try:
        options = Options(budget=Budget(candidates=args.candidates), out=folder, cluster=Cluster(workers=args.workers))
        plan = Plan(options)
        pool = RayPool(options.cluster, plan.sources, plan.live, plan.evaluator)
        for i in range(args.workers):
            pool.submit(f"warm {i}", Job("search", plan.uniform()))
        for _ in range(args.workers):
            pool.wait()
        trials, steps, wall = ours(plan, pool, folder)
        pool._actors.close()  # its workers, but not Ray, on which the peer's run
        values, theirs, peer_wall = peers(plan, trials, args.workers)
        pool.close()
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    report(args, plan, trials, steps, wall, values, theirs, peer_wall)


def report(
    args: argparse.Namespace, plan: Plan, trials: list[Any], steps: dict[str, float], wall: float,
    values: list[float], theirs: dict[str, float], peer_wall: float,
) -> None:  # fmt: skip
    """Print what was measured."""
    whole = sum(steps.values())
    share = (steps["build"] + steps["record"]) / whole
    gap = max(abs(t.value - v) for t, v in zip(trials, values, strict=True))
    items = sum(n["count"] for n in plan.items["search"].values())
    print(f"{len(trials)} candidates x {items} items, {args.workers} workers")
    print("evomerge, seconds per candidate:  " + "  ".join(f"{k} {v:.4f}" for k, v in steps.items()))
    print(f"  build + record: {share:.1%} of it (limit 15 %)")
    print("mergekit-evolve's way:            " + "  ".join(f"{k} {v:.4f}" for k, v in theirs.items()))
    ours_rate, peer_rate = 60 * len(trials) / wall, 60 * len(trials) / peer_wall
    print(
        f"candidates per minute: {ours_rate:.1f} against {peer_rate:.1f}: {ours_rate / peer_rate:.1f}x (to reach: 3x)"
    )
    print(f"largest difference between the two sides' scores: {gap:.4f}")
    result = {
        "candidates": len(trials), "items": items, "workers": args.workers, "seconds": steps,
        "build_and_record": share, "peer_seconds": theirs, "per_minute": ours_rate, "peer_per_minute": peer_rate,
        "ratio": ours_rate / peer_rate, "largest_score_difference": gap,
    }  # fmt: skip
    print(json.dumps(result))


if __name__ == "__main__":
    main()
