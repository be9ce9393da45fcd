"""What is gained where the next candidate is saved while a command scores one: a ratio, beside the most there could be.

    python benchmarks/overlap.py [--candidates 8] [--rounds 3]

One real worker (Ray), merges of two models of llama's shape (half a GB each in bfloat16), and a command that only
waits, as one does whose work a GPU has: for as long as a candidate takes to be saved, which is where the two can hide
each other best. In turns: the next job is handed in with the answer of the one before, so that nothing can be prepared,
and so many at once as the pool takes. At best a candidate takes the longer of the two steps.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import sys
import tempfile
import time
from pathlib import Path

os.environ.setdefault("OMP_NUM_THREADS", "1")

import yaml

from benchmarks.sized_models import write_models
from evomerge.evaluation import load_evaluator
from evomerge.recipe import InputModel, Recipe
from evomerge.sources import open_sources
from evomerge.study.job import Answer, Job
from evomerge.study.workers import Cluster, RayPool
from evomerge.zoo import path

SHAPE = {"hidden": 1024, "inner": 2816, "layers": 12, "vocabulary": 32_000}
PROGRAM = """
import json, pathlib, time
time.sleep(float(pathlib.Path("seconds").read_text()))
print(json.dumps({"score": 0.5}))
"""


class Jobs:
    """Candidates that nobody has seen yet."""

    def __init__(self, folder: Path) -> None:
        self._names = [str(folder / name) for name in ("BASE", "A", "B")]
        self._number = 0

    def __next__(self) -> Job:
        self._number += 1
        weights = (0.3 + 0.001 * self._number, 0.7)
        models = [InputModel(model=n, parameters={"weight": w}) for n, w in zip(self._names[1:], weights, strict=True)]
        made = Recipe(merge_method="task_arithmetic", base_model=self._names[0], models=models, dtype="bfloat16")
        return Job("search", made, hash=made.hash())


def run(pool: RayPool, jobs: Jobs, candidates: int, in_flight: int) -> tuple[float, list[Answer]]:
    """Seconds per candidate with so many handed in at a time, and the answers."""
    started = time.perf_counter()
    for number in range(in_flight):
        pool.submit(number, next(jobs))
    answers = []
    for number in range(candidates):
        answers.append(pool.wait()[1])
        if number + in_flight < candidates:
            pool.submit(number, next(jobs))
    seconds = (time.perf_counter() - started) / candidates
    wrong = [a.reason for a in answers if a.score is None]
    if wrong:
        raise SystemExit(f"a candidate failed: {wrong[0]}")
    return seconds, answers


def main() -> None:
    """Print the ratio."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--candidates", type=int, default=8)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--layers", type=int, default=SHAPE["layers"])
    parser.add_argument("--json", action="store_true")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="evomerge-overlap-") as name:
        folder = Path(name)
        size = write_models(folder, **{**SHAPE, "layers": args.layers})
        for model in ("BASE", "A", "B"):
            for file in ("tokenizer.json", "tokenizer_config.json"):
                (folder / model / file).write_bytes((path("base") / file).read_bytes())
        (folder / "program.py").write_text(PROGRAM)
        (folder / "seconds").write_text("0")
        command = [sys.executable, "-I", "program.py", "{model}"]
        (folder / "e.yaml").write_text(yaml.safe_dump({"kind": "command", "command": command, "tasks": ["score"]}))
        sources = open_sources([str(folder / model) for model in ("BASE", "A", "B")])
        jobs = Jobs(folder)
        pool = RayPool(Cluster(workers=1), sources, str(folder / "BASE"), load_evaluator(folder / "e.yaml"))
        try:
            _, answers = run(pool, jobs, 4, 1)
            build = statistics.median(a.seconds["build"] for a in answers[1:])
            (folder / "seconds").write_text(str(build))
            apart, together, longer = [], [], []
            for _ in range(args.rounds):
                seconds, answers = run(pool, jobs, args.candidates, 1)
                apart.append(seconds)
                steps = [[a.seconds[step] for a in answers] for step in ("build", "evaluate")]
                longer.append(max(statistics.mean(s) for s in steps))
                together.append(run(pool, jobs, args.candidates, pool.size + pool.ahead)[0])
        finally:
            pool.close()
    gain = statistics.median(a / t for a, t in zip(apart, together, strict=True))
    most = statistics.median(a / x for a, x in zip(apart, longer, strict=True))
    found = {"bytes": size, "apart": apart, "together": together, "gain": gain, "most": most}
    if args.json:
        print(json.dumps(found))
        return
    print(f"{size / 1e9:.2f} GB; seconds per candidate: {statistics.median(apart):.2f} one after the other, "
          f"{statistics.median(together):.2f} prepared: {gain:.2f}x (at most {most:.2f}x)")  # fmt: skip


if __name__ == "__main__":
    main()
