"""CMA-ES of many parameters, and of integers."""

from __future__ import annotations

import numpy as np
import pytest

from evomerge.optimizers import make_optimizer
from evomerge.optimizers.cma_es import FULL, CmaEs
from evomerge.score import Value
from evomerge.space import Float, Integer, Parameter


def floats(n: int) -> tuple[Parameter, ...]:
    return tuple(Float(f"x{i}", 0.0, 1.0, 0.5) for i in range(n))


@pytest.mark.parametrize("n", [FULL, FULL + 1])
def test_of_more_than_200_only_variances_are_adapted(n: int) -> None:
    optimizer = make_optimizer("cma", floats(n), seed=0)
    assert isinstance(optimizer, CmaEs)
    for _ in range(4):
        asked = optimizer.ask(optimizer.generation)
        optimizer.tell(asked, [-sum((float(v) - 0.3) ** 2 for v in p.values()) for p in asked])
    es = optimizer._es
    assert hasattr(es.sm, "C") == (n <= FULL)  # else there is no matrix at all
    assert n > FULL or np.abs(es.sm.C - np.diag(np.diag(es.sm.C))).max() > 0
    assert (np.ptp(es.sigma_vec.scaling * np.ones(n)) > 0) == (n > FULL)


def test_it_gets_down_an_ellipsoid_of_250_parameters() -> None:
    """Condition 10^4. In 1,500 candidates: far below the start, and below pycma with all covariances (its default)."""
    import cma

    n, budget = 250, 1500
    scale = 10 ** np.linspace(0, 2, n)
    optimum = np.random.default_rng(5).uniform(0.3, 0.7, n)

    def loss(x: np.ndarray) -> float:
        return float(np.sum((scale * (x - optimum)) ** 2))

    optimizer = make_optimizer("cma", floats(n), seed=0)
    best = np.inf
    for _ in range(budget // optimizer.generation):
        asked = optimizer.ask(optimizer.generation)
        found = [loss(np.array(list(p.values()), dtype=float)) for p in asked]
        optimizer.tell(asked, [-f for f in found])
        best = min(best, *found)
    normal = np.random.default_rng(0)
    options = {
        "bounds": [0.0, 1.0], "seed": float("nan"), "verbose": -9, "randn": lambda *shape: normal.standard_normal(shape)
    }  # fmt: skip
    es = cma.CMAEvolutionStrategy(n * [0.5], 1 / 6, options)
    while es.countevals < budget:
        points = es.ask()
        es.tell(points, [loss(np.asarray(x)) for x in points])
    assert best < loss(np.full(n, 0.5)) / 4
    assert best < es.best.f


def test_enqueued_ones_and_the_two_that_are_compared_keep_their_places() -> None:
    """More enqueued than two generations hold: in the second pycma wants its two points back first."""
    space = floats(FULL + 10)
    optimizer = make_optimizer("cma", space, seed=0, population=6)
    mine: list[dict[str, Value]] = [{p.name: k / 10 for p in space} for k in range(9)]
    for params in mine:
        optimizer.enqueue(params)
    log: list[dict[str, Value]] = []
    for _ in range(6):
        asked = optimizer.ask(6)
        optimizer.tell(asked, [-sum((float(v) - 0.3) ** 2 for v in p.values()) for p in asked])
        log += asked
    places = [log.index(p) for p in mine]
    assert places == sorted(places) and places[:5] == list(range(5))


def test_integers_keep_moving_and_their_best_is_found_with_the_floats() -> None:
    """Six switches and four floats, rotated: what equal bins alone take three times as long for (docs/decisions)."""
    space: tuple[Parameter, ...] = (
        *(Float(f"x{i}", 0.0, 1.0, 0.5) for i in range(4)),
        *(Integer(f"k{i}", 0, 1, 0) for i in range(6)),
    )
    scale, width = 10 ** np.linspace(0, 1, 10), np.array([1.0] * 4 + [0.5] * 6)
    bests = []
    for seed in range(5):
        draw = np.random.default_rng(1000 + seed)
        q = np.linalg.qr(draw.standard_normal((10, 10)))[0]
        optimum = np.concatenate([draw.uniform(0.1, 0.9, 4), draw.integers(0, 2, 6)])
        optimizer = make_optimizer("cma", space, seed=seed)
        best = -np.inf
        for _ in range(80):
            asked = optimizer.ask(optimizer.generation)
            points = [np.array(list(p.values()), dtype=float) for p in asked]
            scores = [-float(np.sum((scale * (q @ ((x - optimum) * width))) ** 2)) for x in points]
            optimizer.tell(asked, scores)
            best = max(best, *scores)
        bests.append(best)
    assert np.median(bests) > -0.05
