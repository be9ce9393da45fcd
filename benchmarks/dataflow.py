"""What reusing the beginnings of paths saves: layer evaluations and time, with and without, in one run.

    python benchmarks/dataflow.py [--budget 100] [--space dataflow] [--json]

The compact preset's search over the zoo's layer-local experts, on a loglikelihood task (one right answer under teacher
forcing), twice with the same seed: without memory for hidden states of common beginnings, and with it. Both must score
every candidate alike. Around the layers stand embeddings, head and lm-eval, most of a tiny model's time, so a second
pair of searches, of 40 candidates, runs on models of the same kind with more and wider layers; its items' results are
loglikelihoods (benchmarks/likelihood.py), so that equal scores are equal floats.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")

import torch

from evomerge import presets
from evomerge.pipeline import Options, Plan
from evomerge.pipeline.one_space import opened
from evomerge.score import State
from evomerge.study.budget import Budget
from evomerge.study.candidates import layer_evaluations
from evomerge.study.loop import Search
from evomerge.study.scoring import Scoring
from evomerge.study.stopping import Stop
from evomerge.study.watcher import Silent
from evomerge.study.workers import Cluster
from evomerge.zoo.model import build_model, save

EVALUATOR = "quickstart_likelihood"
GIBIBYTE = 1 << 30
# Candidates over the larger models: seconds each.
LARGER = 40


def measured(options: Options) -> dict[str, Any]:
    """Search, and nothing after it."""
    plan = Plan(options)
    with opened(plan, Silent(), Stop()) as (_, study, pool):
        pool.submit("warm", plan.baselines()[0].job("search"))  # tasks are loaded and rendered once
        pool.wait()
        began = time.perf_counter()
        trials, _ = Search(
            study, plan.optimizer(plan.space), plan.decode(plan.space), plan.hash, Scoring(pool), options.budget,
            Silent(), order=plan.order,
        ).run()  # fmt: skip
        seconds = time.perf_counter() - began
    layers = layer_evaluations(trials)
    assert layers is not None and all(t.state is State.COMPLETE for t in trials), "a candidate failed"
    scored = sum(sum(t.seconds.values()) for t in trials)
    results = [t.score.tasks[0].results.tolist() for t in trials if t.score is not None]
    depth = sum(t.attributes["depth"] for t in trials) / len(trials)
    return {
        "candidates": len(trials), "asked": layers[0], "run": layers[1], "seconds": seconds, "scored": scored,
        "depth": depth, "results": results,
    }  # fmt: skip


def pair(
    name: str, args: argparse.Namespace, folder: Path, budget: int, models: list[str], evaluator: str
) -> dict[str, Any]:
    """The same search without and with memory for prefixes."""
    found = {}
    for label, size in (("without", 0), ("with", GIBIBYTE)):
        found[label] = measured(
            Options(
                budget=Budget(candidates=budget),
                space=args.space,
                models=models,
                evaluator=evaluator,
                out=folder / f"{name}-{label}",
                cluster=Cluster(workers=0),
                seed=args.seed,
                prefix_bytes=size,
            )
        )
    without, with_ = found["without"], found["with"]
    same = without.pop("results") == with_.pop("results")
    return {
        "models": name,
        "candidates": with_["candidates"],
        "layers a path": with_["depth"],
        "layer evaluations": {"without": without["run"], "with": with_["run"]},
        "fewer layer evaluations": without["run"] / with_["run"],
        "seconds a candidate": {label: f["scored"] / f["candidates"] for label, f in found.items()},
        "faster": without["scored"] / with_["scored"],
        "same scores to the bit": same,
    }


def larger(folder: Path) -> list[str]:
    """Two random models of the zoo's kind, 8 layers of width 192."""
    paths = []
    for seed in (0, 1):
        path = folder / f"random-{seed}"
        save(build_model(192, 8, torch.Generator().manual_seed(seed)), path)
        paths.append(str(path))
    return paths


def floats(folder: Path) -> str:
    """An evaluator whose results are loglikelihoods of the zoo's right answers."""
    items = presets.folder("evaluators") / "zoo" / "kovesh_problems.jsonl"
    shutil.copy(items, folder / "items.jsonl")
    shutil.copy(Path(__file__).with_name("likelihood.py"), folder / "likelihood.py")
    file = folder / "likelihood.yaml"
    file.write_text(
        "kind: python\nfunction: likelihood.py:score\nitems: items.jsonl\ntasks: [loglikelihood]\n"
        "splits: {search: {share: 0.2}}\n"
    )
    return str(file)


def main() -> int:
    """Measure and print; exit 1 where scores differ."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--budget", type=int, default=100)
    parser.add_argument("--space", default="dataflow", help="preset or file (default: the compact preset)")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--json", action="store_true")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="evomerge-benchmark-") as temporary:
        folder = Path(temporary)
        rows = [
            pair("zoo, 4 layers of width 96", args, folder, args.budget, [], EVALUATOR),
            pair(
                "random, 8 layers of width 192", args, folder, min(args.budget, LARGER), larger(folder), floats(folder)
            ),
        ]
    if args.json:
        print(json.dumps(rows, indent=1))
    else:
        for row in rows:
            counts, seconds = row["layer evaluations"], row["seconds a candidate"]
            print(
                f"{row['models']}: {row['candidates']} candidates of {row['layers a path']:.1f} layers on average\n"
                f"  layer evaluations {counts['without']:,} without, {counts['with']:,} with prefixes: "
                f"{row['fewer layer evaluations']:.2f} times fewer\n"
                f"  seconds a candidate {seconds['without']:.3f} without, {seconds['with']:.3f} with: "
                f"{row['faster']:.2f} times faster\n"
                f"  scores of every item {'the same to the bit' if row['same scores to the bit'] else 'DIFFER'}"
            )
    return 0 if all(row["same scores to the bit"] for row in rows) else 1


if __name__ == "__main__":
    sys.exit(main())
