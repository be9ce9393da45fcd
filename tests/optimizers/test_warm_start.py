"""Beginning from the best of another search: the distribution against cmaes' own, and what it saves."""

from __future__ import annotations

import numpy as np
import pytest
from cmaes import get_warm_start_mgd

from evomerge.optimizers import OPTIMIZERS, make_optimizer
from evomerge.optimizers.warm_start import promising
from evomerge.space import Categorical, Float, Integer

FLOATS = tuple(Float(f"w{i}", 0.0, 1.0, 0.5) for i in range(8))
MIXED = (*FLOATS[:4], Integer("k", 0, 9, 5), Categorical("m", ("a", "b", "c"), "a"))
OPTIMUM = np.array([0.1, 0.9, 0.2, 0.8, 0.15, 0.85, 0.25, 0.75])


def test_the_distribution_is_the_one_of_cmaes():
    random = np.random.default_rng(0)
    points = random.uniform(size=(7, 5))
    expected = get_warm_start_mgd([(p, 0.0) for p in points], gamma=1.0, alpha=0.1)
    found = promising(points.tolist())
    for one, other in zip(found, expected, strict=True):
        assert np.allclose(one, other)
    assert np.linalg.det(found[2]) == pytest.approx(1.0)


def test_of_many_parameters_too():
    _, sigma, covariance = promising([[0.5] * 400, [0.5] * 400])
    assert sigma == pytest.approx(0.1) and np.allclose(covariance, np.eye(400))


def quality(params):
    return -float(((np.array([params[p.name] for p in FLOATS]) - OPTIMUM) ** 2).sum())


def around(count, seed=0):
    random = np.random.default_rng(seed)
    return [
        {p.name: float(x) for p, x in zip(FLOATS, np.clip(random.normal(OPTIMUM, 0.03), 0, 1), strict=True)}
        for _ in range(count)
    ]


@pytest.mark.parametrize("name", [n for n, e in OPTIMIZERS.items() if e.tasks is None and n not in ("random", "gp")])
def test_a_warm_search_is_ahead_from_the_start(name):
    def reached(warm, seed):
        optimizer = make_optimizer(name, FLOATS, seed, warm=warm)
        if optimizer.whole:
            pytest.skip("told with behaviours: only enqueued")
        values = []
        for _ in range(3):
            asked = optimizer.ask(optimizer.generation)
            values += [quality(p) for p in asked]
            optimizer.tell(asked, values[-len(asked) :])
        return np.mean(values)

    assert np.mean([reached(around(8), s) for s in range(3)]) > np.mean([reached((), s) for s in range(3)])


def test_cma_draws_from_the_distribution_of_the_best():
    warm = around(8)
    mean, sigma, covariance = promising([[p[q.name] for q in FLOATS] for p in warm])
    asked = make_optimizer("cma", FLOATS, 1, warm=warm, population=4000).ask(4000)
    drawn = np.array([[p[q.name] for q in FLOATS] for p in asked])
    inside = (drawn > 0.02).all(axis=1) & (drawn < 0.98).all(axis=1)
    assert np.allclose(drawn[inside].mean(axis=0), mean, atol=0.05)
    assert np.std(drawn[:, 2]) == pytest.approx(sigma * covariance[2, 2] ** 0.5, rel=0.25)


def test_catcma_takes_numbers_grids_and_categories_over():
    warm = [{**p, "k": 7, "m": "c"} for p in around(6)]
    warm = [{q.name: p[q.name] for q in MIXED} for p in warm]
    asked = make_optimizer("catcma", MIXED, 1, warm=warm, population=400).ask(400)
    assert np.mean([p["m"] == "c" for p in asked]) == pytest.approx(7 / 9, abs=0.08)
    assert np.mean([p["k"] for p in asked]) == pytest.approx(7, abs=0.5)
    assert np.mean([p["w1"] for p in asked]) == pytest.approx(0.9, abs=0.05)
