"""Merges in parameter space: the zoo with all its controls, and the quickstart."""

from __future__ import annotations

import argparse
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from results_shared import HEAD, rows, scored, searched, train, with_extras

from evomerge.evaluation import load_evaluator
from evomerge.pipeline import Options, Plan
from evomerge.score import Score
from evomerge.sources import open_sources
from evomerge.study.budget import Budget
from evomerge.study.builder import Builder
from evomerge.study.job import Job
from evomerge.study.outcome import Outcome
from evomerge.study.workers import Cluster

SOURCES = ("maths", "kovesh", "sorting")
CEILINGS = {"ceiling": "joint training on both experts' data", "ceiling_target": "training on the target skill itself"}
SPACE = "task_arithmetic_layerwise"
BUDGET = 200
QUICKSTART_BUDGET = 100


def zoo(seed: int, args: argparse.Namespace) -> dict[str, Any]:
    """Search with all controls over the zoo of a training seed, and what only a table of controls asks for."""
    folder = args.work / f"zoo-{seed}"
    train(folder, seed, ("base", *SOURCES, *CEILINGS))
    asked = Options(
        budget=Budget(candidates=BUDGET),
        space=SPACE,
        models=[str(folder / name) for name in SOURCES],
        base=str(folder / "base"),
        evaluator="quickstart",
        study=f"zoo-{seed}",
        out=args.work / f"search-{seed}",
        cluster=Cluster(workers=args.workers),
        seed=seed,
        fidelity="full",
        controls=True,
    )
    outcome = searched(asked)
    return with_extras(outcome, _extras(asked, outcome, folder))


def _extras(asked: Options, outcome: Outcome, folder: Path) -> dict[str, Score]:
    """Test scores of the winner with each vector zeroed, and of the ceilings."""
    plan = Plan(asked)
    paths = {name: str(folder / name) for name in CEILINGS}
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


def quickstart(seed: int, args: argparse.Namespace) -> dict[str, Any]:
    """`make search` with one search seed."""
    asked = Options(
        budget=Budget(candidates=QUICKSTART_BUDGET),
        out=args.work / f"quickstart-{seed}",
        cluster=Cluster(workers=args.workers),
        seed=seed,
    )
    return with_extras(searched(asked), {})


def _margins(result: Mapping[str, Any]) -> dict[str, float]:
    """Points of the winner above what it must beat (smallest difference of each kind)."""
    differences = {name: found["difference"]["mean"] for name, found in result["baselines"].items()}
    return {
        "best source": min(differences[n] for n in SOURCES),
        "uniform": differences["uniform"],
        "single vectors": min(differences[f"vector {n}"] for n in SOURCES),
        "random search": differences["random search"],
    }


def zoo_text(results: Mapping[str, Any]) -> list[str]:
    """Its section of docs/results.md."""
    lines = [
        f"## The zoo and its controls, {BUDGET} candidates, {len(results)} training seeds",
        "",
        f"Search space: `{SPACE}`.",
        "To hold: 10 points above the best source, 5 above the uniform merge, 5 above each single task vector.",
        "",
        "| training seed | above best source | above uniform | above best single vector | above random search |",
        "|---|---|---|---|---|",
    ]
    for seed, result in results.items():
        lines.append(f"| {seed} | " + " | ".join(f"{100 * v:+.1f} points" for v in _margins(result).values()) + " |")
    for seed, result in results.items():
        best = result["best"]
        lines += ["", f"### Training seed {seed}", "", HEAD, *rows(result), ""]
        lines.append(
            f"{best['test']['items']:,} test items; the winner is candidate {best['trial']}, search score "
            f"{best['search']:.3f}, select score {best['select']:.3f}; search time {result['seconds']:.0f} s."
        )
    return lines


def quickstart_text(results: Mapping[str, Any]) -> list[str]:
    """Its section of docs/results.md."""
    lines = [f"## The quickstart, {QUICKSTART_BUDGET} candidates, {len(results)} search seeds", ""]
    lines.append("The shipped models (training seed 0), as `make search` runs them.")
    for seed, result in results.items():
        lines += ["", f"### Search seed {seed}", "", HEAD, *rows(result), ""]
        lines.append(f"Search time {result['seconds']:.0f} s.")
    return lines
