"""What every optimizer makes of what it is told: it improves, avoids failures, and survives them."""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from functools import cache
from typing import Any

import numpy as np
import pytest

from evomerge.errors import EvoMergeError, SpaceError
from evomerge.optimizers import OPTIMIZERS
from evomerge.score import Value
from tests.contracts.optimizers import (
    ALONE,
    FLOATS,
    NUMBERS,
    SPACES,
    best,
    each,
    every,
    every_mode,
    make_optimizer,
    quality,
    run,
    sometimes,
    takes,
    tell,
)


@pytest.mark.ci
@every_mode
def test_a_failure_is_told_as_worse_than_every_score(name: str, space: str, asynchronous: bool) -> None:
    """Told None or NaN, an optimizer goes on as if told a score below all others; told something good it does not."""

    def sequence(stand_in: float | None) -> list[Any]:
        def score(params: Mapping[str, Value]) -> float | None:
            found = sometimes(params)
            return stand_in if found is None else found

        optimizer = make_optimizer(name, SPACES[space], seed=6, population=8, asynchronous=asynchronous)
        return [p for p, _ in run(optimizer, 5, score, asynchronous)]

    failed = sequence(None)
    assert failed == sequence(float("nan"))
    if name == "random":
        assert failed == sequence(1e3)
        return
    # An archive over the tasks keeps a bad candidate that is alone in its cell, a failed one never.
    assert OPTIMIZERS[name].tasks or failed == sequence(-1e3)
    assert failed != sequence(1e3) or space in ("category", "integer") or (name in ALONE and space == "one float")


@each
def test_failures_are_avoided(name: str) -> None:
    if name == "random":
        pytest.skip("random search learns nothing")
    if name == "cma-me":
        pytest.skip("where nothing is new it starts again from any elite; tests/optimizers/test_quality_diversity.py")

    def score(params: Mapping[str, Value]) -> float | None:
        return None if float(params["weight.a"]) < 0.2 else 0.5  # half the space fails, the rest ties

    log = run(make_optimizer(name, FLOATS, seed=0), 20, score)
    failed = [s is None for _, s in log]
    early, late = sum(failed[: len(failed) // 2]), sum(failed[len(failed) // 2 :])
    assert late < max(early, 0.1 * len(failed))  # or is far below what fails of the space from the beginning


@every
def test_survives_generations_that_fail_or_tie_altogether(name: str, space: str) -> None:
    optimizer = make_optimizer(name, SPACES[space], seed=9)
    with warnings.catch_warnings():
        warnings.simplefilter("error", RuntimeWarning)
        run(optimizer, 2, lambda _: None)
        run(optimizer, 2, lambda _: 0.25)
        run(optimizer, 1, lambda _: float("inf"))
    assert not optimizer.done
    for params, _ in run(optimizer, 3):
        assert all(p.problem(params[p.name]) is None for p in SPACES[space])


@pytest.mark.ci
@each
def test_several_objectives(name: str) -> None:
    """Two that contradict each other in k: an entry that takes them comes near the front, failures or not."""
    if not OPTIMIZERS[name].several:
        with pytest.raises(SpaceError, match=f'"{name}" has one objective, 2 are asked for'):
            make_optimizer(name, NUMBERS, seed=1, objectives=2)
        return

    def front(which: str, asynchronous: bool, fails: bool = False) -> float:
        """Mean over k of the best second value; the sum is on the front where it is 0."""
        optimizer = make_optimizer(which, NUMBERS, 3, population=8, objectives=2, asynchronous=asynchronous)
        found: dict[int, float] = {}
        told = 0
        while told < 160:
            asked = optimizer.ask(5 if asynchronous else optimizer.generation)
            values = [(float(p["k"]), quality({**p, "k": 5}) - float(p["k"])) for p in asked]
            failed = [fails and float(p["weight.a"]) > 1.6 for p in asked]
            optimizer.tell(asked, [None if f else v for f, v in zip(failed, values, strict=True)])
            for (k, value), f in zip(values, failed, strict=True):
                found[int(k)] = max(found.get(int(k), -9.0), -9.0 if f else value + k)
            told += len(asked)
        with pytest.raises(EvoMergeError, match="told 1 values of a candidate, expected 2"):
            optimizer.tell(optimizer.ask(optimizer.generation), [0.0] * optimizer.generation)
        return sum(found.values()) / 6

    for asynchronous in (False, True):
        reached = front(name, asynchronous)
        assert front(name, asynchronous, fails=True) > -3
        assert name == "random" or reached > front("random", asynchronous)


@pytest.mark.ci
@each
@pytest.mark.parametrize("objectives", [1, 3])
def test_objectives_that_all_fail_or_tie(name: str, objectives: int) -> None:
    if objectives > 1 and not OPTIMIZERS[name].several:
        pytest.skip("one objective")
    optimizer = make_optimizer(name, FLOATS, seed=3, objectives=objectives)
    for generation in range(7):
        asked = optimizer.ask(optimizer.generation)
        tie = 0.5 if objectives == 1 else (0.5,) * objectives
        tell(optimizer, asked, [None if generation < 3 else tie] * len(asked))
    assert all(p.problem(params[p.name]) is None for params in asked for p in FLOATS)


@cache
def reached(name: str, space: str, seed: int, asynchronous: bool) -> float:
    budget = 160
    size = 8 if name in ALONE else None  # of more there would be too few generations
    optimizer = make_optimizer(name, SPACES[space], seed, population=size, asynchronous=asynchronous)
    return best(run(optimizer, budget // optimizer.generation, quality, asynchronous))


@pytest.mark.ci
@each
@pytest.mark.parametrize("space", ["floats", "mixed"])
@pytest.mark.parametrize("asynchronous", [False, True], ids=["in turn", "asynchronous"])
def test_improves(name: str, space: str, asynchronous: bool) -> None:
    """The search gets nearer than uniform draws do at equal budget.

    But random search itself, and archives over tasks, whose candidates go to all cells (they have a test of their own).
    """
    if asynchronous:
        space = "floats" if space == "floats" else "numbers"
    if not takes(name, space):
        pytest.skip("refuses categories")
    seeds = range(3)
    found = np.median([reached(name, space, seed, asynchronous) for seed in seeds])
    assert found > quality({p.name: p.init for p in SPACES[space]}) / 2
    if name != "random" and not OPTIMIZERS[name].tasks:
        assert found > np.median([reached("random", space, seed, False) for seed in seeds])
