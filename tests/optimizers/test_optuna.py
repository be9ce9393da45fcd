"""Optuna's samplers: what is special to the Gaussian process and to NSGA."""

from __future__ import annotations

import math

import numpy as np
import pytest

from evomerge.optimizers import make_optimizer
from evomerge.optimizers.protocol import Worth
from evomerge.score import Value
from evomerge.space import Float, Integer, Parameter

SPACE: tuple[Parameter, ...] = (Float("x", 0.0, 1.0, 0.9), Float("y", 0.0, 1.0, 0.9), Integer("k", 0, 5, 0))
Params = dict[str, Value]


def score(p: Params) -> float:
    return -((float(p["x"]) - 0.3) ** 2) - (float(p["y"]) - 0.6) ** 2 - 0.1 * (float(p["k"]) - 3) ** 2


def after_ten(asynchronous: bool, stand_in: float | None = None) -> tuple[list[Params], list[Params]]:
    """Ten candidates, of which those with a small x fail, and the two that follow."""
    optimizer = make_optimizer("gp", SPACE, seed=1, population=2, asynchronous=asynchronous)
    log: list[Params] = []
    for _ in range(5):
        asked = optimizer.ask(2)
        told = asked[::-1] if asynchronous else asked
        optimizer.tell(told, [stand_in if float(p["x"]) < 0.2 else score(p) for p in told])
        log += asked
    return log, optimizer.ask(2)


@pytest.mark.parametrize("asynchronous", [False, pytest.param(True, marks=pytest.mark.slow)])
def test_a_gaussian_process_proposes_after_ten_the_same_again(asynchronous: bool) -> None:
    log, proposed = after_ten(asynchronous)
    assert log[0] == {p.name: p.init for p in SPACE}
    assert (log, proposed) == after_ten(asynchronous)
    assert all(p.problem(params[p.name]) is None for params in proposed for p in SPACE)
    # Better than what was drawn at random, as it is for a smooth function.
    assert max(map(score, proposed)) > np.median([score(p) for p in log])
    # The second takes the first, which is not told yet, into account.
    assert proposed[0] != proposed[1]


@pytest.mark.slow
def test_to_a_gaussian_process_a_failure_is_the_worst_of_the_others() -> None:
    log, proposed = after_ten(False)
    failed = [p for p in log if float(p["x"]) < 0.2]
    worst = min(score(p) for p in log if p not in failed)
    assert failed
    assert after_ten(False, worst)[1] == proposed
    assert after_ten(False, 1.0)[1] != proposed


@pytest.mark.parametrize("name", ["nsga2", "nsga3"])
def test_children_of_nsga_are_made_of_the_best_of_all_generations(name: str) -> None:
    """A generation is a population: from the second on, most values are those of parents, the best so far."""
    space = tuple(Float(f"x{i}", 0.0, 1.0, 0.5) for i in range(8))
    optimizer = make_optimizer(name, space, seed=2, population=10)
    known: list[tuple[float, Params]] = []
    for generation in range(8):
        asked = optimizer.ask(10)
        if generation:
            best = [p for _, p in sorted(known, key=lambda t: -t[0])[:10]]
            # But for the last bits: Optuna crosses values over after scaling them.
            inherited = [
                min(abs(float(p[g.name]) - float(b[g.name])) for b in best) < 1e-12 for p in asked for g in space
            ]
            assert np.mean(inherited) > 0.75  # each is mutated with a chance of one in eight
        scores = [-sum((float(v) - 0.3) ** 2 for v in p.values()) for p in asked]
        optimizer.tell(asked, scores)
        known += zip(scores, asked, strict=True)


@pytest.mark.slow
@pytest.mark.parametrize("objectives", [1, 2])
def test_a_gaussian_process_models_constraints(objectives: int) -> None:
    """It proposes where they are kept, though all that it has seen there is far worse; failed ones have one too."""

    def worth(p: Params) -> Worth:
        if float(p["y"]) < 0.15:
            return Worth((), math.inf)
        over = max(0.0, float(p["x"]) - 0.5) / 0.5
        value = 1e3 * score(p) - 500.0 if not over else 1e3 * (1.0 + over)
        return Worth((value, -float(p["k"]))[:objectives], over)

    optimizer = make_optimizer("gp", SPACE, seed=3, population=2, objectives=objectives)
    proposed: list[Params] = []
    for generation in range(9):
        asked = optimizer.ask(2)
        optimizer.tell(asked, [worth(p) for p in asked])
        proposed += asked if generation >= 5 else []
    # Values alone would have x at 1.
    assert np.mean([float(p["x"]) <= 0.5 for p in proposed]) >= 0.5


def test_a_gaussian_process_where_all_fail_or_none_keeps_a_constraint() -> None:
    for violation in (math.inf, 2.0):
        optimizer = make_optimizer("gp", SPACE, seed=1, population=2)
        for _ in range(5):
            asked = optimizer.ask(2)
            optimizer.tell(asked, [Worth(() if violation == math.inf else (1e4,), violation) for _ in asked])
        assert len(optimizer.ask(2)) == 2
