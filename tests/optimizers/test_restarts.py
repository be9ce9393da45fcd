"""Restarts: the published schedules, when a run has come to nothing more, and what they bring."""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import pytest

from evomerge.optimizers import Optimizer, make_optimizer
from evomerge.optimizers.protocol import Told, Worth
from evomerge.optimizers.restarts import Schedule, Stagnation
from evomerge.score import Value
from evomerge.space import Categorical, Float, Parameter

SPACE: tuple[Parameter, ...] = tuple(Float(f"x{i}", -1.0, 1.0, -0.6) for i in range(4))
Score = Callable[[Mapping[str, Value]], float | None]


def numbers(params: Mapping[str, Value]) -> np.ndarray:
    return np.array([v for v in params.values() if isinstance(v, float)])


def rastrigin(params: Mapping[str, Value]) -> float:
    z = 4 * (numbers(params) - 0.31)
    return -float(np.sum(z**2 + 10 - 10 * np.cos(2 * np.pi * z)))


def sphere(params: Mapping[str, Value]) -> float:
    return -float(np.sum((numbers(params) - 0.31) ** 2))


def runs(optimizer: Optimizer, score: Score, budget: int) -> tuple[list[list[list[dict[str, Value]]]], float]:
    """Generations by inner run (told apart by the size), and the best score."""
    found: list[list[list[dict[str, Value]]]] = []
    size, spent, best = 0, 0, -math.inf
    while spent < budget and not optimizer.done:
        asked = optimizer.ask(optimizer.generation)
        scores = [score(p) for p in asked]
        if len(asked) != size:
            found.append([])
            size = len(asked)
        found[-1].append(asked)
        optimizer.tell(asked, scores)
        spent += len(asked)
        best = max(best, *(s for s in scores if s is not None))
    return found, best


@pytest.mark.parametrize("name", ["cma", "catcma"])
def test_ipop_doubles_the_population_and_begins_elsewhere(name: str) -> None:
    optimizer = make_optimizer(name, SPACE, seed=1, population=6, restarts="ipop")
    found, _ = runs(optimizer, lambda _: 0.5, 2500)  # a plateau: each run ends as soon as it may
    assert [len(r[0]) for r in found][:4] == [6, 12, 24, 48]
    lengths = [10 + math.ceil(30 * 4 / n) for n in (6, 12, 24)]
    assert [len(r) for r in found[:3]] == lengths
    means = [np.mean([numbers(p) for p in r[0]], axis=0) for r in found]
    assert np.abs(means[0] + 0.6).max() < 0.5  # the first at the start
    assert all(np.abs(a - b).max() > 0.2 for i, a in enumerate(means) for b in means[:i])
    # `parents` are those of the run that goes on.
    assert optimizer.parents == optimizer.generation // 2
    again, _ = runs(make_optimizer(name, SPACE, seed=1, population=6, restarts="ipop"), lambda _: 0.5, 2500)
    assert again == found


def test_bipop_spends_and_draws_as_pycma_does() -> None:
    """Its author's own loop, `cma.fmin`: its runs' evaluations are told to ours, which must choose like it."""
    import cma

    states: list[tuple[int, float, int]] = []

    def note(es: Any) -> None:
        if es.countiter == 1:
            states.append((es.popsize, es.sigma0, 0))
        states[-1] = (*states[-1][:2], es.countevals)

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        cma.fmin(
            lambda x: float(np.sum(np.square(x)) + 10 * np.sum(1 - np.cos(2 * np.pi * np.array(x)))),
            [2.2] * 4, 0.3, {"seed": 5, "verbose": -9, "tolfun": 1e-2, "maxfevals": 12_000}, restarts=4, bipop=True,
            callback=note,
        )  # fmt: skip
    first, *later = states
    schedule = Schedule("bipop", first[0], 0.3, np.random.default_rng(0))
    before, small, large, doublings = first[2], first[2], 0, 0
    kinds = []
    for (population, sigma, total), spent in zip(later, np.diff([0, *(s[2] for s in states)]), strict=False):
        run = schedule.after(int(spent))
        assert run is not None
        if math.isinf(run.limit):
            doublings += 1
            # pycma doubles 4 + 3 ln n before it takes the floor.
            assert (population, sigma) == (math.floor((4 + 3 * math.log(4)) * 2**doublings), 0.3)
            assert (run.population, run.sigma) == (first[0] * 2**doublings, 0.3)
            large += total - before
        else:
            assert run.limit == large / 2 and small < large
            for size, step in ((population, sigma), (run.population, run.sigma)):
                assert first[0] <= size <= (first[0] + 1) * 2**doublings and 0.003 <= step <= 0.3
            # pycma ends a small run with the iteration that reaches its limit, and scores the last mean.
            assert total - before <= run.limit + population + 1
            small += total - before
        before = total
        kinds.append(math.isinf(run.limit))
    assert kinds.count(True) >= 2 and kinds.count(False) >= 2


def test_small_runs_are_drawn_as_published() -> None:
    """floor(λ₀ 2^(k U²)) and σ₀ 10^(-2U): by quantiles, after two doublings."""
    sizes, steps = [], []
    for seed in range(2000):
        schedule = Schedule("bipop", 10, 0.2, np.random.default_rng(seed))
        for spent in (100, 900, 300, 300, 300, 5000):  # small, large, small (300 < 900) twice, large by then
            run = schedule.after(spent)
        assert run is not None and run.limit == (900 + 5000) / 2
        sizes.append(run.population)
        steps.append(run.sigma)
    u = np.linspace(0.005, 0.995, 100)
    expected = np.floor(10 * 4 ** (u**2))
    assert np.quantile(sizes, [0.25, 0.5, 0.75]) == pytest.approx(np.quantile(expected, [0.25, 0.5, 0.75]), abs=1)
    assert np.quantile(np.log10(steps), [0.25, 0.5, 0.75]) == pytest.approx(np.log10(0.2) - [1.5, 1, 0.5], abs=0.1)


def test_a_small_run_ends_at_its_limit() -> None:
    optimizer = make_optimizer("cma", SPACE, seed=2, restarts="bipop", sigma=0.3)
    found, _ = runs(optimizer, sphere, 6000)
    spent = [sum(map(len, r)) for r in found]
    sizes = [len(r[0]) for r in found]
    large, small = 0, spent[0]
    for size, n in list(zip(sizes, spent, strict=True))[1:-1]:
        if small < large:
            assert n <= large / 2 + size
            small += n
        else:
            large += n
    assert large and small > spent[0]


def test_stagnation() -> None:
    draw = np.random.default_rng(0)

    def ends(score: Callable[[int], list[Told]], most: int = 300) -> int | None:
        stagnation = Stagnation(5, 10)  # a window of 25 generations
        return next((i + 1 for i in range(most) if stagnation.hear([Worth.of(s) for s in score(i)])), None)

    assert ends(lambda i: [0.25] * 10) == 25
    assert ends(lambda i: [None] * 10) == 25
    assert ends(lambda i: [0.01 * (i // 8)] * 10) is None  # ties for eight generations, then a step
    assert ends(lambda i: [*(draw.normal(0.02 * i, 0.1, size=9)), None]) is None  # noise on progress
    # A lucky one in the third generation is no end as long as the median rises.
    assert ends(lambda i: [9.0 if i == 2 else 0.0, *[0.01 * i] * 9], 40) is None
    # Progress that ends after 60 generations is noticed within a window.
    end = ends(lambda i: [0.01 * min(i, 60)] * 10)
    assert end is not None and 60 < end <= 61 + 25
    # To miss the constraints by less is progress, whatever becomes of the value; to keep them is more.
    assert ends(lambda i: [Worth((-float(i),), 100.0 - i)] * 10, 60) is None
    assert ends(lambda i: [Worth((9.0,), 1.0) if i < 30 else Worth((-9.0 + i,), 0.0)] * 10, 29) == 25
    assert ends(lambda i: [Worth((9.0,), 1.0) if i < 20 else Worth((-9.0 + i,), 0.0)] * 10, 60) is None


def test_restarts_find_what_one_run_does_not() -> None:
    best = {
        kind: [runs(make_optimizer("cma", SPACE, seed=s, restarts=kind), rastrigin, 1800)[1] for s in range(5)]
        for kind in ("none", "ipop", "bipop")
    }
    assert np.median(best["ipop"]) > np.median(best["none"]) + 0.9  # the next ring of optima
    assert np.median(best["bipop"]) > np.median(best["none"]) + 0.9


def test_a_search_that_starts_on_a_plateau_gets_off_it() -> None:
    """Zero around the start, whatever the steps: single runs wander there."""

    def score(params: Mapping[str, Value]) -> float:
        return round(200 * math.exp(-4 * float(np.sum((numbers(params) - 0.6) ** 2)))) / 200

    def solved(kind: str) -> int:
        return sum(
            runs(make_optimizer("cma", SPACE, seed=s, sigma=0.05, restarts=kind), score, 1000)[1] > 0.9
            for s in range(6)
        )

    assert solved("ipop") >= solved("none") + 2


def test_without_restarts_it_is_done_and_with_them_never() -> None:
    ended = make_optimizer("cma", SPACE, seed=0, restarts="none")
    _, best = runs(ended, sphere, 3000)
    assert ended.done and best > -1e-4
    for name in ("cma", "catcma"):
        optimizer = make_optimizer(name, SPACE, seed=0)
        runs(optimizer, sphere, 1500)
        assert not optimizer.done


def test_late_tells_of_an_earlier_run_are_taken_and_not_learned_from() -> None:
    def after(score: float) -> list[dict[str, Value]]:
        optimizer = make_optimizer("cma", SPACE, seed=0, population=6, restarts="ipop", asynchronous=True)
        late = optimizer.ask(4)
        while optimizer.generation == 6:
            optimizer.tell(asked := optimizer.ask(3), [0.5] * len(asked))
        optimizer.tell(late, [score] * 4)
        optimizer.tell(asked := optimizer.ask(12), [rastrigin(p) for p in asked])
        return optimizer.ask(3)

    assert after(9.0) == after(-9.0)


def test_catcma_draws_categories_anew() -> None:
    space = (*SPACE, Categorical("m", ("a", "b", "c"), "a"))
    optimizer = make_optimizer("catcma", space, seed=0, population=8, restarts="ipop")
    for _ in range(30):  # until nothing but b is asked
        asked = optimizer.ask(optimizer.generation)
        optimizer.tell(asked, [float(p["m"] == "b") for p in asked])
        if optimizer.generation != 8:
            break
    assert optimizer.generation == 16
    assert {p["m"] for p in optimizer.ask(16)} == {"a", "b", "c"}
