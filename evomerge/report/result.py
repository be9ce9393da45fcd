"""An outcome as plain data: what result.json holds, `--json` prints, and the table and the model card show."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from evomerge.comparison import Difference
from evomerge.evaluation.goals import DEPTH
from evomerge.report.path import path_text
from evomerge.score import Interval, State, Trial, cost
from evomerge.study.archive import Archive
from evomerge.study.goals import shown as value_of
from evomerge.study.outcome import Measured, Outcome, Role


@dataclass(frozen=True)
class Row:
    """One measured model, ready to be shown.

    Attributes:
        name: The model's name, unlike every other row's.
        test: Its weighted score on the test items.
        difference: Paired difference, best minus this one, with its test; None for the best itself.
        tasks: Each task's interval by task name, the metric as its authors report it (an error rate stays one).
    """

    name: str
    role: Role
    test: Interval
    difference: Difference | None
    tasks: Mapping[str, Interval]


def rows(outcome: Outcome) -> list[Row]:
    """Every measured model in the outcome's order, the winner last."""
    return list(_rows(outcome))


def _rows(outcome: Outcome) -> Iterator[Row]:
    taken: set[str] = set()
    for measured, against in zip(outcome.measured, outcome.differences, strict=True):
        name = _free(measured, taken)
        taken.add(name)
        yield Row(name, measured.role, measured.interval, against, measured.tasks)


def _free(measured: Measured, taken: set[str]) -> str:
    """A source may be called "uniform"; two models under one key would hide one of them."""
    name, count = measured.name, 2
    if name in taken:
        name = f"{measured.name} ({measured.role})"
    while name in taken:
        name, count = f"{measured.name} ({measured.role} {count})", count + 1
    return name


def to_dict(outcome: Outcome) -> dict[str, Any]:
    """The content of result.json.

    Returns:
        {"study", "storage", "seed", "candidates": {"complete", "pruned", "failed"}, "cost",
        "best": {"trial", "recipe_hash", "search", "select", "test": {"score", "low", "high", "items"},
        "shrinkage": {"search": {"mean", "low", "high"}, "select": {...}}},
        "baselines": {NAME: {"test": {...}, "difference": {"mean", "low", "high", "p", "holm", "test", "gained",
        "lost"}}},
        "tasks": {TASK: {NAME: {"score", "low", "high", "items", "metric"}}}, "seconds"}.
        With several objectives "objectives": [NAME], "front": [{"trial", "search", NAME: value}] and "hypervolume":
        {"reference": {NAME: value}, "value", "history": [[candidates, value]]}; with constraints "constraints":
        [{"of", "at_least" | "at_most", "search", "select", "test", "kept", "limits"}] of the winner; the limit is the
        search's, "limits" has it of each split, "kept" is about test.
        Of a search that keeps different candidates "archive": {"sampler", "elites": [{"trial", "search", "tasks":
        {TASK: value}}]}, the best first, with constraints each with its "violation"; of map-elites and cma-me each with
        its "cell" [place on the first task's axis, ...], and "grid": {TASK: {"cells", "low", "high"}}, "coverage",
        "qd_score", "norm_qd_score", "offset"; of m2n2 each with its shared "fitness".
        "cost" is what the candidates took of the budget, in candidates on all search items; a control's entry in
        "baselines" has that of its own search. A hybrid's "candidates" have "first_stage" too: how many there were
        before. A path has "path" (in words), "front": [{"trial", "depth", "search"}] and "layer_evaluations":
        {"asked", "run", "saved"}.
        Scores of `best` and `baselines` are weighted means, higher is better; those of `tasks` are the metric as its
        authors report it, but in "archive", where higher is better. The difference is best minus baseline, paired by
        item: `p` by the `test` named, `holm` corrected for all baselines; where results are 0 or 1 and one task counts,
        `gained` and `lost` items. Shrinkage is the winner's score on the search (select) items minus the one on test.
        "overlaps", where they were looked for, is `evaluation.overlaps.Overlaps.to_dict`. What is unknown is null.
    """
    from evomerge.study import database

    shown = rows(outcome)
    winner = outcome.winner
    states = [t.state for t in outcome.trials]
    metrics = {t.task: t.metric for m in outcome.measured for t in m.test.tasks}
    search = winner.search if winner.search is not None else outcome.best.score
    data: dict[str, Any] = {
        "study": outcome.study,
        "storage": database.shown(outcome.storage),
        "seed": outcome.seed,
        "candidates": {
            "complete": states.count(State.COMPLETE),
            "pruned": states.count(State.PRUNED),
            "failed": states.count(State.FAIL),
        },
        "cost": round(cost(outcome.trials), 6),
        "best": {
            "trial": outcome.best.number,
            "recipe_hash": outcome.recipe_hash,
            "search": None if search is None else search.value,
            "select": None if winner.select is None else winner.select.value,
            "test": shown[-1].test.to_dict("score"),
            "shrinkage": {
                split: {"mean": found.mean, "low": found.low, "high": found.high}
                for split, found in outcome.shrinkage.items()
            },
        },
        "baselines": {
            r.name: {
                "test": r.test.to_dict("score"), "difference": _difference(r.difference),
                **({"cost": round(m.cost, 6)} if m.cost is not None else {}),
            }
            for r, m in zip(shown, outcome.measured, strict=True)
            if r.difference is not None
        },
        "tasks": {
            task: {r.name: {**r.tasks[task].to_dict("score"), "metric": metric} for r in shown if task in r.tasks}
            for task, metric in metrics.items()
        },
        "seconds": outcome.seconds,
    }
    if outcome.first_stage:
        data["candidates"]["first_stage"] = outcome.first_stage
    if outcome.path is not None:
        data["path"] = path_text(outcome.path, outcome.names)
    if outcome.aims.front:
        data["front"] = [_on_front(outcome, t) for t in outcome.aims.front]
    data |= _aims(outcome)
    if outcome.archive is not None:
        data["archive"] = _archive(outcome.archive, bool(outcome.aims.goals.limits))
    if outcome.layers is not None:
        asked, ran = outcome.layers
        data["layer_evaluations"] = {"asked": asked, "run": ran, "saved": 1 - ran / asked if asked else 0.0}
    if outcome.overlaps is not None:
        data["overlaps"] = dict(outcome.overlaps)
    finite: dict[str, Any] = _finite(data)
    return finite


def _on_front(outcome: Outcome, trial: Trial) -> dict[str, Any]:
    aims = outcome.aims
    depth = {"depth": trial.attributes[DEPTH]} if DEPTH in trial.attributes else {}
    values = dict(zip(aims.goals.objectives, aims.values.get(trial.number, ()), strict=False))
    return {"trial": trial.number, **depth, "search": trial.value, **values}


def _aims(outcome: Outcome) -> dict[str, Any]:
    aims, goals = outcome.aims, outcome.aims.goals
    data: dict[str, Any] = {}
    if len(goals.objectives) > 1:
        reference = dict(zip(goals.objectives, aims.reference, strict=True))
        history = [list(point) for point in aims.hypervolume]
        volume = history[-1][1] if history else 0.0
        data["objectives"] = list(goals.objectives)
        data["hypervolume"] = {"reference": reference, "value": volume, "history": history}
    if goals.limits:
        data["constraints"] = [_kept(outcome, i) for i in range(len(goals.limits))]
    return data


def _archive(archive: Archive, limited: bool) -> dict[str, Any]:
    data: dict[str, Any] = {
        "sampler": archive.sampler,
        "elites": [
            {
                "trial": m.trial.number,
                "search": m.trial.value,
                "tasks": m.tasks,
                **({"violation": m.trial.violation} if limited else {}),
                **({"cell": list(m.cell)} if m.cell is not None else {}),
                **({"fitness": m.fitness} if m.fitness is not None else {}),
            }
            for m in archive.members
        ],
    }
    grid = archive.grid
    if grid is not None:
        axes = zip(archive.tasks, grid.cells, grid.low, grid.high, strict=True) if archive.members else ()
        data["grid"] = {task: {"cells": n, "low": low, "high": high} for task, n, low, high in axes}
        data |= {name: getattr(grid, name) for name in ("coverage", "qd_score", "norm_qd_score", "offset")}
    return data


def _kept(outcome: Outcome, constraint: int) -> dict[str, Any]:
    winner, attributes = outcome.winner, outcome.best.attributes
    limits = {split: found[constraint] for split, found in outcome.aims.limits.items()}
    limit = limits["search"]
    bounds = {"at_least": limit.low, "at_most": limit.high}
    search = winner.search if winner.search is not None else outcome.best.score
    splits = {"search": search, "select": winner.select, "test": winner.test}
    values = {k: None if s is None else value_of(limit.of, s, attributes) for k, s in splits.items()}
    kept = values["test"] is not None and not limits.get("test", limit).missed(values["test"])
    return {
        "of": limit.of, **{k: v for k, v in bounds.items() if math.isfinite(v)}, **values, "kept": kept,
        "limits": {split: found.bound for split, found in limits.items()},
    }  # fmt: skip


def _difference(found: Difference) -> dict[str, Any]:
    names = ("mean", "low", "high", "p", "holm", "test", "gained", "lost")
    return {name: getattr(found, name) for name in names}


def _finite(value: Any) -> Any:
    """NaN and infinities, which JSON does not have, become None."""
    if isinstance(value, dict):
        return {k: _finite(v) for k, v in value.items()}
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value
