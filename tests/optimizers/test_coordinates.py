"""Numbers <-> the unit interval, and scores as losses and ranks."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import rankdata

from evomerge.optimizers.coordinates import from_unit, to_unit
from evomerge.optimizers.generation import losses, ranks
from evomerge.optimizers.protocol import Worth
from evomerge.space import Float, Integer

LINEAR, LOG = Float("x", -1.5, 2.5, 0.0), Float("x", 1e-4, 10.0, 0.1, log=True)


@given(st.floats(0, 1))
def test_floats_stay_in_bounds_and_come_back(u: float) -> None:
    for p in (LINEAR, LOG):
        value = from_unit(p, u)
        assert p.low <= value <= p.high
        assert to_unit(p, value) == pytest.approx(u, abs=1e-9)


def test_ends_and_middles() -> None:
    assert [from_unit(LINEAR, u) for u in (0, 0.25, 1)] == [-1.5, -0.5, 2.5]
    assert from_unit(LOG, 0.6) == pytest.approx(10 ** (-4 + 0.6 * 5))
    assert (from_unit(LOG, -3), from_unit(LOG, 7)) == (pytest.approx(1e-4), pytest.approx(10.0))
    assert to_unit(LOG, math.sqrt(1e-4 * 10)) == pytest.approx(0.5)


def test_integers_have_bins_of_equal_width() -> None:
    p = Integer("k", 3, 7, 4)
    values = [from_unit(p, u) for u in np.linspace(0, 1, 1001)]
    assert [values.count(k) for k in range(3, 8)] == [200, 200, 200, 200, 201]
    assert [from_unit(p, to_unit(p, k)) for k in range(3, 8)] == [3, 4, 5, 6, 7]


@given(st.lists(st.none() | st.floats(-1e6, 1e6), min_size=1, max_size=20))
def test_failed_are_worst_and_the_rest_keep_their_order(scores: list[float | None]) -> None:
    found = losses([Worth.of(s) for s in scores])
    assert np.isfinite(found).all()
    told = [-s for s in scores if s is not None]
    assert found[[s is not None for s in scores]].tolist() == told
    assert all(loss > max(told, default=-np.inf) for loss, s in zip(found, scores, strict=True) if s is None)


@given(st.lists(st.none() | st.sampled_from([0.0, 0.25, 0.5, 1.0]), min_size=1, max_size=20))
def test_ranks_are_scipys(scores: list[float | None]) -> None:
    expected = rankdata([math.inf if s is None else -s for s in scores], method="ordinal") - 1
    assert ranks([Worth.of(s) for s in scores]).tolist() == expected.tolist()


WORTHS = st.none() | st.tuples(st.floats(-1e9, 1e9), st.sampled_from([0.0, 0.0, 1e-9, 0.5, 2.0]))


@given(st.lists(WORTHS, min_size=1, max_size=20))
def test_ranks_are_debs_whatever_the_values(told: list[tuple[float, float] | None]) -> None:
    """Those that keep the constraints by value, then the others by what they miss, failed ones last."""
    worths = [Worth((), math.inf) if t is None else Worth((t[0],), t[1]) for t in told]
    expected = sorted(
        range(len(told)), key=lambda i: (told[i] is None, (told[i] or (0, 0))[1], -(told[i] or (0, 0))[0], i)
    )  # Python's sort is stable
    assert np.argsort(ranks(worths)).tolist() == expected
    assert np.isfinite(losses(worths)).all()


def test_floats_on_a_grid_have_bins_of_equal_width() -> None:
    p = Float("scale", 0.7, 1.3, 1.0, step=0.1)
    values = [from_unit(p, u) for u in np.linspace(0, 1, 7001)]
    grid = [0.7, 0.8, 0.9, 1.0, 1.1, 1.2, 1.3]
    assert [values.count(v) for v in grid] == [1000] * 6 + [1001]  # to the bit
    assert [from_unit(p, to_unit(p, v)) for v in grid] == grid
