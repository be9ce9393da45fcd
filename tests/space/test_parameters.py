"""Parameters on a grid: every value has one spelling."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from evomerge.errors import SpaceError
from evomerge.space import Float
from evomerge.space.parameters import check

SCALE = Float("scale", 0.5, 1.5, 1.0, step=0.1)


def test_the_grid_is_spelled_as_it_is_written() -> None:
    assert SCALE.count == 11
    assert [SCALE.at(k) for k in range(11)] == [0.5, 0.6, 0.7, 0.8, 0.9, 1.0, 1.1, 1.2, 1.3, 1.4, 1.5]
    assert Float("x", 0.0, 1.0, 0.5).count is None


@given(st.floats(-1, 3))
def test_snaps_to_the_nearest(value: float) -> None:
    found = SCALE.snap(value)
    assert SCALE.problem(found) is None
    assert abs(found - value) <= min(abs(SCALE.at(k) - value) for k in range(11)) + 1e-12
    assert SCALE.snap(found) == found


def test_without_a_grid_values_are_kept_within_the_bounds() -> None:
    p = Float("x", 0.0, 1.0, 0.5)
    assert [p.snap(v) for v in (-1, 0.123, 7)] == [0.0, 0.123, 1.0]


def test_values_between_are_refused_but_for_rounding() -> None:
    assert check([SCALE], {"scale": 0.1 + 0.7}) == {"scale": 0.1 + 0.7}
    with pytest.raises(SpaceError, match=r"^scale = 0\.85: expected 0\.5 plus a multiple of 0\.1$"):
        check([SCALE], {"scale": 0.85})
