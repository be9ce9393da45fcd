"""A finished search made by hand, with results whose figures can be checked by hand too."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from evomerge.optimizers.behaviours import Grid
from evomerge.recipe import parse_recipe
from evomerge.score import Score, State, TaskScore, Trial
from evomerge.study.archive import Archive, Member
from evomerge.study.outcome import Measured, Outcome

RECIPE = """
merge_method: task_arithmetic
base_model: zoo:base
models:
  - {model: zoo:maths, parameters: {weight: 0.8}}
  - {model: zoo:kovesh, parameters: {weight: 0.6}}
dtype: bfloat16
evomerge:
  sources: {"zoo:base": aaaa, "zoo:maths": bbbb, "zoo:kovesh": cccc}
"""


def score(right: int, other: float = 0.5, items: int = 100) -> Score:
    """`right` of `items` solved (the first ones), and a second, unweighted task whose metric is an error rate."""
    solved = (np.arange(items) < right).astype(np.float32)
    ids = tuple(f"item{i:03d}" for i in range(items))
    errors = np.full(10, -other, np.float32)
    return Score(
        (
            TaskScore("target", "exact_match,none", float(solved.mean()), 1.0, ids, solved),
            TaskScore("other", "error", -other, 0.0, tuple(f"o{i}" for i in range(10)), errors, flipped=True),
        )
    )


def searched(value: float) -> Score:
    """A score on four search items, of the weighted task alone."""
    results = np.full(4, value, np.float32)
    return Score((TaskScore("target", "exact_match,none", value, 1.0, ("a", "b", "c", "d"), results),))


@pytest.fixture
def outcome() -> Outcome:
    trials = (
        Trial(0, {"weight.maths": 0.5, "method": "ties"}, State.COMPLETE, searched(0.25), seconds={"build": 0.1}),
        Trial(1, {"weight.maths": 0.9, "method": "ties"}, State.FAIL, reason="model.norm.weight is NaN"),
        Trial(2, {"weight.maths": 0.7, "method": "dare_ties"}, State.PRUNED),
        Trial(
            3,
            {"weight.maths": 0.8, "method": "ties"},
            State.COMPLETE,
            searched(0.75),
            seconds={"build": 0.1, "evaluate": 1.5},
            attributes={"generation": 1, "where": {"node": "a"}},
        ),
    )
    recipe = parse_recipe(RECIPE)
    return Outcome(
        study="space-evaluator-7",
        storage="sqlite:///runs/x/study.db",
        seed=7,
        space="quickstart",
        evaluator="quickstart",
        trials=trials,
        best=trials[3],
        recipe=recipe,
        recipe_hash=recipe.hash(),
        measured=(
            Measured("base", "base", score(20)),
            Measured("maths", "source", score(36)),
            Measured("kovesh", "source", score(27)),
            Measured("uniform", "uniform", score(47)),
            Measured("best", "best", score(49, 0.25), search=searched(0.75), select=searched(0.5), recipe=recipe),
        ),
        looks=1,
        stopped="budget",
        seconds=75.0,
        model=Path("runs/x/model"),
        lines={"base": 0.2, "maths": 0.36, "uniform": 0.47},
    )


@pytest.fixture
def mapped(outcome: Outcome) -> Outcome:
    """The same search, by map-elites, with two tasks: what it keeps in a grid."""

    def valued(trial: Trial, first: float, second: float) -> Trial:
        tasks = tuple(TaskScore(name, "acc", v) for name, v in (("one", first), ("two", second)))
        return replace(trial, score=Score(tasks))

    kept = (
        Member(valued(outcome.trials[3], 0.5, 1.0), (3, 9), None),
        Member(valued(outcome.trials[0], 0.25, -0.25), (0, 0), None),
    )
    grid = Grid((10, 10), (0.0, -0.3), (1.0, 1.0), 0.02, 0.95, 0.0095, -0.1)
    return replace(outcome, archive=Archive("map-elites", kept, grid))


@pytest.fixture
def shared(outcome: Outcome) -> Outcome:
    """The same search, by m2n2: what shares the items."""
    kept = (Member(outcome.trials[3], None, 2.5), Member(outcome.trials[0], None, 0.5))
    return replace(outcome, archive=Archive("m2n2", kept, None))


@pytest.fixture
def with_best(outcome: Outcome) -> Callable[[Score], Outcome]:
    """The same search with another test score of the winner."""

    def made(test: Score) -> Outcome:
        return replace(outcome, measured=(*outcome.measured[:-1], replace(outcome.winner, test=test)))

    return made
