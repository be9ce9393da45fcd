"""A search by which no rule of the search was chosen: ours, CMA-ES in the same race, and the plain way, seed by seed.

    python benchmarks/untuned.py --work runs/untuned

Real merges of the shipped models: the space of the preset `ties_dare_layerwise` (36 numbers: a weight and a density
for every source in embeddings, four layers and head) and three tasks together, each search with the items of 100
candidates. The plain way is mergekit-evolve's as far as the command has it: CMA-ES with a first step of 1/6, every
candidate on all items, no starts. What is compared is the winner's score on the test items, paired by seed. A run that
was cut off goes on by the same command.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np

from benchmarks.workers import interval
from evomerge import presets

EVALUATOR = """\
kind: lm_eval
include_path: {tasks}
tasks:
  - {{name: kovesh_problems, metric: exact_match, weight: 1, greedy_likelihood: true}}
  - {{name: into_kovesh, metric: acc, weight: 1}}
  - {{name: ambri_problems, metric: exact_match, weight: 1, greedy_likelihood: true}}
split_seed: 5
splits:
  search: {{share: 0.2}}
  select: {{share: 0.3}}
  test: {{share: 0.5}}
batch_size: 256
"""
PLAIN = "--sampler cma --fidelity full --no-starts --sigma 0.1667 --estimates plain --restarts none"
WAYS = {"ours": "", "cma": "--sampler cma", "plain": PLAIN}


def run(work: Path, way: str, seed: int, budget: int) -> dict[str, float]:
    """One search; its winner's and the best source's test score, and how many candidates it saw."""
    out = f"out-{way}-{seed}"
    command = [
        sys.executable,
        "-m",
        "evomerge",
        "search",
        "ties_dare_layerwise",
        "--evaluator",
        "two.yaml",
        "--out",
        out,
    ]
    command += ["--budget", str(budget), "--seed", str(seed), "--workers", "0", *WAYS[way].split()]
    with open(work / f"log-{way}-{seed}", "w") as log:
        subprocess.run(command, cwd=work, check=True, stdout=log, stderr=subprocess.STDOUT)
    result = json.loads((work / out / "result.json").read_text())
    best = max(b["test"]["score"] for b in result["baselines"].values())
    return {"test": result["best"]["test"]["score"], "other": best, "seen": sum(result["candidates"].values())}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--work", type=Path, default=Path("runs/untuned"), help="where the searches are kept")
    parser.add_argument("--seeds", type=int, nargs="+", default=[20, 21, 22])
    parser.add_argument("--budget", type=int, default=100)
    args = parser.parse_args()
    tasks = presets.find("evaluators", "quickstart")
    assert tasks is not None
    args.work.mkdir(parents=True, exist_ok=True)
    (args.work / "two.yaml").write_text(EVALUATOR.format(tasks=(tasks.parent / "zoo").resolve()))
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    found: dict[str, list[dict[str, float]]] = {way: [] for way in WAYS}
    for seed in args.seeds:
        for way in WAYS:
            row = run(args.work, way, seed, args.budget)
            found[way].append(row)
            seen = f"of {row['seen']:,} candidates (best other {row['other']:.3f})"
            print(f"seed {seed}  {way:6} {row['test']:.3f}  {seen}", flush=True)
    tests = {way: np.array([row["test"] for row in rows]) for way, rows in found.items()}
    for way in list(WAYS)[1:]:
        if len(args.seeds) > 1:
            print(f"ours minus {way}: {interval(list(tests['ours'] - tests[way]))}")


if __name__ == "__main__":
    main()
