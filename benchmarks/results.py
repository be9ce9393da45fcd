"""The whole table of controls on the zoo, over several training seeds: writes docs/results.md and docs/results.json.

    python benchmarks/results.py --work runs/results [--seeds 0 1 2] [--budget 200] [--workers 2]

For each training seed: train the zoo (base, three fine-tunes, the joint-training ceilings), search with all controls at
equal budget, then measure what only a table of controls asks for: the winner with each task vector zeroed, and the
ceilings. Then three searches of the quickstart (`--budget 100`, the shipped models) with different search seeds. Every
step is resumable: the same command goes on where it was. About an hour on two cores.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")

import torch

import evomerge
from evomerge.cli.progress import Progress
from evomerge.evaluation import load_evaluator
from evomerge.pipeline import Options, Plan, search
from evomerge.report.result import to_dict
from evomerge.score import Score, difference, interval
from evomerge.sources import open_sources
from evomerge.study.budget import Budget
from evomerge.study.builder import Builder
from evomerge.study.job import Job
from evomerge.study.outcome import Outcome
from evomerge.study.workers import Cluster

ROOT = Path(__file__).resolve().parents[1]
SOURCES = ("maths", "kovesh", "sorting")
CEILINGS = {"ceiling": "joint training on both experts' data", "ceiling_target": "training on the target skill itself"}
QUICKSTART_BUDGET = 100


def train(folder: Path, seed: int) -> None:
    """Train a zoo with its ceilings, unless it is there."""
    if not (folder / "figures.json").is_file():
        command = [sys.executable, "-m", "evomerge.zoo.train", "--seed", str(seed), "--out", str(folder), "--ceiling"]
        subprocess.run(command, check=True)


def options(folder: Path, out: Path, seed: int, args: argparse.Namespace) -> Options:
    """The search over one zoo."""
    return Options(
        budget=Budget(candidates=args.budget),
        space=args.space,
        models=[str(folder / name) for name in SOURCES],
        base=str(folder / "base"),
        evaluator="quickstart",
        study=f"zoo-{seed}",
        out=out,
        cluster=Cluster(workers=args.workers),
        seed=seed,
        controls=True,
    )


def extras(asked: Options, outcome: Outcome, folder: Path) -> dict[str, Score]:
    """Test scores of the winner with each vector zeroed, and of the ceilings."""
    plan = Plan(asked)
    paths = {name: str(folder / name) for name in CEILINGS if (folder / name).is_dir()}
    sources = {**plan.sources, **open_sources(list(paths.values()))}
    builder = Builder(sources, plan.live, load_evaluator("quickstart"))
    found: dict[str, Score] = {}
    for name in SOURCES:
        params = {k: 0.0 if k.startswith(f"weight.{name}") else v for k, v in outcome.best.params.items()}
        if params == dict(outcome.best.params):
            raise SystemExit(f"no parameter of the space is a weight of {name}")
        recipe = plan.space.decode(params, seed=asked.seed)
        found[f"winner, {name} zeroed"] = scored(builder, Job("test", recipe, exported=True))
    for name, path in paths.items():
        found[CEILINGS[name]] = scored(builder, Job("test", source=path, exported=True))
    return found


def scored(builder: Builder, job: Job) -> Score:
    """A job's score; its failure ends the run."""
    answer = builder.run(job)
    if answer.score is None:
        raise SystemExit(f"{job}: {answer.reason}")
    return answer.score


def one_zoo(seed: int, args: argparse.Namespace) -> dict[str, Any]:
    """Everything measured for one training seed."""
    folder, out = args.work / f"zoo-{seed}", args.work / f"search-{seed}"
    train(folder, seed)
    asked = options(folder, out, seed, args)
    with Progress() as progress:
        outcome = search(asked, progress)
    best = outcome.winner.test
    result = to_dict(outcome)
    for name, score in extras(asked, outcome, folder).items():
        result["baselines"][name] = {
            "test": interval(score).to_dict("score"),
            "difference": difference(best, score).to_dict(),
        }
    return result


def quickstart(seed: int, args: argparse.Namespace) -> dict[str, Any]:
    """`make search` with one search seed."""
    asked = Options(
        budget=Budget(candidates=QUICKSTART_BUDGET),
        out=args.work / f"quickstart-{seed}",
        cluster=Cluster(workers=args.workers),
        seed=seed,
    )
    with Progress() as progress:
        return to_dict(search(asked, progress))


def rows(result: Mapping[str, Any]) -> list[str]:
    """One result as the rows of a Markdown table."""

    def span(found: Mapping[str, Any], sign: str = "") -> str:
        return f"{found['low']:{sign}.3f} .. {found['high']:{sign}.3f}"

    test = result["best"]["test"]
    lines = [f"| **best found** | **{test['score']:.3f}** | {span(test)} | | |"]
    for name, found in result["baselines"].items():
        t, d = found["test"], found["difference"]
        lines.append(f"| {name} | {t['score']:.3f} | {span(t)} | {d['mean']:+.3f} | {span(d, '+')} |")
    return lines


def margins(result: Mapping[str, Any]) -> dict[str, float]:
    """Points of the winner above what it must beat (smallest difference of each kind)."""
    differences = {name: found["difference"]["mean"] for name, found in result["baselines"].items()}
    return {
        "best source": min(differences[n] for n in SOURCES),
        "uniform": differences["uniform"],
        "single vectors": min(differences[f"vector {n}"] for n in SOURCES),
        "random search": differences["random search"],
    }


def markdown(zoos: Mapping[int, Any], quick: Mapping[int, Any], args: argparse.Namespace) -> str:
    """docs/results.md."""
    head = "| model | test score | 95 % | best minus it | 95 % |\n|---|---|---|---|---|"
    lines = [
        "# Results",
        "",
        "Written by `python benchmarks/results.py --work runs/results`; the raw figures are in `results.json`. Scores",
        "are exact match on word problems in Kovesh, a skill no source was trained on, over the held-out test items.",
        "Intervals are 95 % (Wilson for a score; normal for a paired difference). Each control was searched at the",
        f"budget of the main search. evomerge {evomerge.__version__}, torch {torch.__version__}, "
        f"Python {platform.python_version()}, CPU.",
        "",
        f"## The zoo and its controls, {args.budget} candidates, {len(zoos)} training seeds",
        "",
        f"Search space: `{args.space}`.",
        "To hold: 10 points above the best source, 5 above the uniform merge, 5 above each single task vector.",
        "",
        "| training seed | above best source | above uniform | above best single vector | above random search |",
        "|---|---|---|---|---|",
    ]
    for seed, result in zoos.items():
        m = margins(result)
        lines.append(f"| {seed} | " + " | ".join(f"{100 * v:+.1f} points" for v in m.values()) + " |")
    for seed, result in zoos.items():
        best = result["best"]
        lines += ["", f"### Training seed {seed}", "", head, *rows(result), ""]
        lines.append(
            f"{best['test']['items']:,} test items; the winner is candidate {best['trial']}, search score "
            f"{best['search']:.3f}, select score {best['select']:.3f}; search time {result['seconds']:.0f} s."
        )
    lines += ["", f"## The quickstart, {QUICKSTART_BUDGET} candidates, {len(quick)} search seeds", ""]
    lines.append("The shipped models (training seed 0), as `make search` runs them.")
    for seed, result in quick.items():
        lines += ["", f"### Search seed {seed}", "", head, *rows(result), ""]
        lines.append(f"Search time {result['seconds']:.0f} s.")
    return "\n".join(lines) + "\n"


def main() -> None:
    """Measure, then write both files."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--work", type=Path, default=Path("runs/results"), help="models, studies; resumable")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2], help="training seeds")
    parser.add_argument("--space", default="task_arithmetic_layerwise", help="preset or file, over the trained models")
    parser.add_argument("--budget", type=int, default=200)
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--docs", type=Path, default=ROOT / "docs", help="where results.md and results.json go")
    args = parser.parse_args()
    zoos = {seed: one_zoo(seed, args) for seed in args.seeds}
    quick = {seed: quickstart(seed, args) for seed in args.seeds}
    args.docs.mkdir(parents=True, exist_ok=True)
    plain = {
        "zoo": {s: without_paths(r) for s, r in zoos.items()},
        "quickstart": {s: without_paths(r) for s, r in quick.items()},
    }
    (args.docs / "results.json").write_text(json.dumps(plain, indent=1) + "\n")
    (args.docs / "results.md").write_text(markdown(zoos, quick, args))
    print(f"wrote {args.docs / 'results.md'}")


def without_paths(result: Mapping[str, Any]) -> dict[str, Any]:
    """A result without the storage's path, which means nothing elsewhere."""
    return {k: v for k, v in result.items() if k != "storage"}


if __name__ == "__main__":
    main()
