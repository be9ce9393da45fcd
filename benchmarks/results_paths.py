"""Paths over layers: data-flow and hybrid searches over two layer-local experts, with their controls.

`kovesh_lower` learned Kovesh in its embeddings and lower layers alone, `maths_upper` all facts in its upper layers
alone: what a path needs stands in different layers of different models.
"""

from __future__ import annotations

import argparse
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from by_seed import paired
from results_shared import HEAD, rows, scored, searched, train, with_extras

from evomerge.evaluation import load_evaluator
from evomerge.pipeline import Options, Plan
from evomerge.recipe import Path as RecipePath
from evomerge.score import Score
from evomerge.study.budget import Budget
from evomerge.study.builder import Builder
from evomerge.study.job import Job
from evomerge.study.outcome import Outcome
from evomerge.study.workers import Cluster

LOWER, UPPER = "kovesh_lower", "maths_upper"
SOURCES = (UPPER, LOWER)
EVALUATOR = "quickstart_likelihood"
BUDGET = 200
STACK = "hand-made stack"
PARAMETER = "parameter space"


def dataflow(seed: int, args: argparse.Namespace) -> dict[str, Any]:
    """A data-flow search over the experts of a training seed."""
    asked = _asked("dataflow", seed, args)
    outcome = searched(asked)
    stack = _stack(Plan(asked))
    extras = {STACK: stack}
    return with_extras(outcome, extras) | {"items": _items(outcome, extras)}


def hybrid(seed: int, args: argparse.Namespace) -> dict[str, Any]:
    """A hybrid search over the experts of a training seed, and the parameter space alone at its budget."""
    outcome = searched(_asked("hybrid", seed, args))
    return with_extras(outcome, {}) | {"items": _items(outcome, {})}


def _asked(space: str, seed: int, args: argparse.Namespace) -> Options:
    folder = args.work / f"zoo-{seed}"
    train(folder, seed, ("base", *SOURCES))
    return Options(
        budget=Budget(candidates=args.budget or BUDGET),
        space=space,
        models=[str(folder / name) for name in SOURCES],
        base=str(folder / "base"),
        evaluator=EVALUATOR,
        study=f"{space}-{seed}",
        out=args.work / f"{space}-{seed}",
        cluster=Cluster(workers=args.workers),
        seed=seed,
        fidelity="full",
        controls=True,
    )


def _stack(plan: Plan) -> Score:
    """What one would build by hand: the lower expert's embeddings and lower half, the upper expert's upper half."""
    model = {name: reference for reference, name in plan.names.items()}
    depth = plan.sources[plan.live].num_layers
    layers = [(model[LOWER if i < depth // 2 else UPPER], i) for i in range(depth)]
    recipe = RecipePath.scaled(layers, embeddings=model[LOWER]).recipe((), out_dtype=plan.config.out_dtype)
    builder = Builder(plan.sources, plan.live, load_evaluator(EVALUATOR))
    return scored(builder, Job("test", recipe, exported=True))


def _items(outcome: Outcome, extras: Mapping[str, Score]) -> dict[str, str]:
    """Right (1) or wrong (0) on every test item of the target skill, in the order of their ids: pooled over seeds."""
    scores = {m.name: m.test for m in outcome.measured} | dict(extras)
    return {
        name: "".join(str(int(r)) for _, r in sorted(zip(task.items, task.results.tolist(), strict=True)))
        for name, score in scores.items()
        for task in score.weighted
    }


def _difference(results: Mapping[str, Any], against: str | Sequence[str]) -> tuple[list[float], str]:
    """The winner minus another model, of each seed and of all together.

    Args:
        against: A model; of several, in each seed the one that did best on the test items.

    Returns:
        Mean differences by seed, and in words: over all seeds, paired by item (an item's differences are averaged over
        the seeds first, for it is the same item), and as a t interval over the seeds.
    """
    names = [against] if isinstance(against, str) else list(against)
    by_seed, by_item = [], []
    for result in results.values():
        items = {name: np.array([int(r) for r in right]) for name, right in result["items"].items()}
        other = max(names, key=lambda name: items[name].sum())
        differences = items["best"] - items[other]
        by_seed.append(float(differences.mean()))
        by_item.append(differences)
    mean, half, wide = paired(by_item)
    words = f"{mean:+.3f} ({mean - half:+.3f} .. {mean + half:+.3f})"
    if len(by_seed) > 1:
        words += f"; over seeds ({mean - wide:+.3f} .. {mean + wide:+.3f})"
    return by_seed, words


def _table(results: Mapping[str, Any], against: Mapping[str, str | Sequence[str]]) -> list[str]:
    """The winner minus what it is held against: a row each, a column for each seed and one for all."""
    lines = [
        "| best found minus | " + " | ".join(f"seed {s}" for s in results) + " | all seeds, paired (95 %) |",
        "|---|" + "---|" * (len(results) + 1),
    ]
    for name, models in against.items():
        by_seed, words = _difference(results, models)
        lines.append(f"| {name} | " + " | ".join(f"{d:+.3f}" for d in by_seed) + f" | {words} |")
    return lines


def _winners(results: Mapping[str, Any]) -> list[str]:
    lines = ["", "| seed | winner | layers evaluated | search time |", "|---|---|---|---|"]
    for seed, result in results.items():
        layers = result["layer_evaluations"]
        lines.append(
            f"| {seed} | {result['path']} | {layers['run']:,} of {layers['asked']:,} ({layers['saved']:.0%} saved) | "
            f"{result['seconds']:.0f} s |"
        )
    return lines


def _single(results: Mapping[str, Any]) -> list[str]:
    lines: list[str] = []
    for seed, result in results.items():
        lines += ["", f"### Training seed {seed}", "", HEAD, *rows(result)]
    return lines


def dataflow_text(results: Mapping[str, Any]) -> list[str]:
    """Its section of docs/results.md."""
    against = {
        "the better source": SOURCES,
        "uniform": "uniform",
        "parameter space, equal budget": PARAMETER,
        "the hand-made stack": STACK,
        "random paths, equal budget": "random paths",
    }
    return [
        f"## Data-flow space, {BUDGET} candidates, {len(results)} training seeds",
        "",
        f"Search space `dataflow` (compact), evaluator `{EVALUATOR}`, over layer-local experts: `{LOWER}` (embeddings",
        f"and layers 0-1 fine-tuned) and `{UPPER}` (layers 2-3). To hold: above the better source in every seed, and",
        "the paired interval over all seeds above 0.",
        "",
        *_table(results, against),
        *_winners(results),
        *_single(results),
    ]


def hybrid_text(results: Mapping[str, Any]) -> list[str]:
    """Its section of docs/results.md."""
    against = {
        "parameter space alone, equal budget": PARAMETER,
        "its own first stage": "merged",
        "the better source": SOURCES,
        "uniform": "uniform",
        "random paths, equal budget": "random paths",
    }
    return [
        f"## Hybrid, {BUDGET} candidates, {len(results)} training seeds",
        "",
        "Search space `hybrid` over the same experts: half of the budget merges weights, the rest searches paths over",
        "that merge and the experts. To hold: no more than 2 points below the parameter space alone (bound of the",
        "paired interval).",
        "",
        *_table(results, against),
        *_winners(results),
        *_single(results),
    ]
