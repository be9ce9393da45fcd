"""What every optimizer of the table makes of constraints: Deb's order, for values on any scale and over generations."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence

import numpy as np
import pytest

from evomerge.optimizers import OPTIMIZERS
from evomerge.optimizers.protocol import Told, Worth
from evomerge.score import Value
from tests.contracts.optimizers import SPACES, behaviour, each, make_optimizer, quality, quick, widest

FAILS = 0.15  # of weight.b


def missed(params: Mapping[str, Value]) -> float:
    """By how much of the limit a constraint is missed that the best of `quality` does not keep."""
    return max(0.0, float(params["weight.a"]) - 0.4) / 0.4


def constrained(
    name: str,
    worth: Callable[[Mapping[str, Value]], Told],
    asynchronous: bool,
    objectives: int = 1,
    generations: int = 6,
) -> list[dict[str, Value]]:
    """What it asks where it is told what a function of quality and what is missed says; some fail."""
    optimizer = make_optimizer(
        name, SPACES[widest[name]], 6, population=8, asynchronous=asynchronous, objectives=objectives
    )
    out: list[dict[str, Value]] = []
    for _ in range(generations):
        asked = optimizer.ask(optimizer.generation)
        told = [worth(p) for p in asked]
        if optimizer.whole:
            scores = [None if Worth.of(w).failed else quality(p) for p, w in zip(asked, told, strict=True)]
            behaviours = [behaviour(p, s) for p, s in zip(asked, scores, strict=True)]
            optimizer.tell(asked, told, behaviours)
        else:
            optimizer.tell(asked, told)
        out += asked
    return out


def worth_of(reached: Callable[[float, float], float], objectives: int = 1) -> Callable[[Mapping[str, Value]], Worth]:
    """Of quality times 1000 what is kept by who keeps the constraint; what others reach, a function says of it."""

    def worth(params: Mapping[str, Value]) -> Worth:
        if float(params["weight.b"]) < FAILS:
            return Worth((), math.inf)
        over, value = missed(params), 1e3 * quality(params) - 50.0
        found = reached(value, over) if over else value
        return Worth((found, *(-found - 1e4 * float(params["lambda"]) for _ in range(objectives - 1))), over)

    return worth


SEVERAL = [(n, objectives) for n in quick for objectives in (1, 2) if objectives == 1 or OPTIMIZERS[n].several]


@pytest.mark.ci
@pytest.mark.parametrize(("name", "objectives"), SEVERAL)
def test_who_misses_a_constraint_counts_by_how_far_whatever_it_reaches(name: str, objectives: int) -> None:
    """Deb's order over all generations: where those that miss one lie among the values changes nothing.

    Values lie far outside [0, 1], as perplexities and lengths do; the best of them miss the constraint. (Of two that
    miss it alike the better one counts more, so all are moved alike.)
    """

    def asks(reached: Callable[[float, float], float]) -> list[dict[str, Value]]:
        return constrained(name, worth_of(reached, objectives), False, objectives)

    high = asks(lambda value, over: 1e6 + value)
    assert high == asks(lambda value, over: -1e6 + value) == asks(lambda value, over: value)
    without = worth_of(lambda value, over: 1e6 + value, objectives)
    plain = constrained(name, lambda p: without(p).values or None, False, objectives)
    assert plain != high or name == "random"


@pytest.mark.parametrize("asynchronous", [False, True], ids=["in turn", "asynchronous"])
@pytest.mark.parametrize("name", [n for n in quick if not OPTIMIZERS[n].whole and n != "thompson"])
def test_constraints_are_debs_order(name: str, asynchronous: bool) -> None:
    """Told apart what is reached and what is missed, it goes on as if told numbers in Deb's order.

    But for what learns from the numbers themselves, and is told places in that order instead.
    """

    def number(params: Mapping[str, Value]) -> float | None:
        worth = worth_of(lambda value, over: 1e6 + value)(params)
        return None if worth.failed else worth.values[0] - (1e9 * (1.0 + worth.missed) if worth.missed else 0.0)

    told = constrained(name, worth_of(lambda value, over: 1e6 + value), asynchronous)
    assert told == constrained(name, number, asynchronous)


@each
def test_a_search_ends_where_constraints_are_kept(name: str) -> None:
    if name == "random":
        pytest.skip("random search learns nothing")
    asked = constrained(name, worth_of(lambda value, over: 1e6 + value), False, generations=20)
    drawn = constrained("random", worth_of(lambda value, over: value), False, generations=20)
    late = asked[-len(asked) // 3 :]
    assert len(keep(late)) / len(late) > 1.25 * len(keep(drawn)) / len(drawn)
    assert OPTIMIZERS[name].tasks or np.mean(keep(late)) > np.mean(keep(drawn))


def keep(asked: Sequence[Mapping[str, Value]]) -> list[float]:
    """The quality of those that keep the constraint and do not fail."""
    return [quality(p) for p in asked if not missed(p) and float(p["weight.b"]) >= FAILS]


@each
def test_no_candidate_keeps_the_constraints(name: str) -> None:
    """Then less missed is better; survives generations that fail altogether first."""
    seen = iter(range(10**6))

    def worth(params: Mapping[str, Value]) -> Worth:
        return Worth((), math.inf) if next(seen) < 8 else Worth((-50.0,), 5.0 + float(params["weight.a"]))

    asked = constrained(name, worth, False, generations=15)
    late, early = ([float(p["weight.a"]) for p in part] for part in (asked[-40:], asked[:40]))
    assert np.mean(late) < np.mean(early) or name == "random"
