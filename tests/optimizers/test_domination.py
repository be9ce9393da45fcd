"""Who is best among candidates of several values, against the definitions worked out by hand."""

from __future__ import annotations

from collections.abc import Sequence

from hypothesis import given
from hypothesis import strategies as st

from evomerge.optimizers import domination
from evomerge.optimizers.protocol import Worth

Point = tuple[float, ...]


def best_first(values: Sequence[Point | None]) -> list[int]:
    return domination.best_first([Worth.of(v) for v in values])


def dominates(a: Point, b: Point) -> bool:
    return a != b and all(x >= y for x, y in zip(a, b, strict=True))


def rank(points: list[Point], i: int) -> int:
    """Number of the front: one more than the highest of those that dominate the point."""
    return max((rank(points, j) + 1 for j in range(len(points)) if dominates(points[j], points[i])), default=0)


@given(st.lists(st.tuples(st.integers(0, 3), st.integers(0, 3)), min_size=1, max_size=7))
def test_fronts_come_in_order(points: list[Point]) -> None:
    order = best_first(points)
    assert sorted(order) == list(range(len(points)))
    found = [rank(points, i) for i in order]
    assert found == sorted(found)


@given(st.lists(st.none() | st.floats(-1, 1).map(lambda x: (x,)), min_size=1, max_size=12))
def test_of_one_value_the_order_is_that_of_the_values(values: list[Point | None]) -> None:
    expected = sorted(
        range(len(values)), key=lambda i: (values[i] is None, -(values[i] or (0.0,))[0])
    )  # Python's sort is stable
    assert best_first(values) == expected


def test_the_ends_of_a_front_come_first_then_the_least_crowded() -> None:
    # One front; the distances of the inner points, by hand: (0.4 + 0.4), (0.7 + 0.7), (0.6 + 0.6)
    front = [(0.0, 1.0), (0.3, 0.7), (0.4, 0.6), (1.0, 0.0)]
    assert best_first(front) == [0, 3, 2, 1]


def test_of_equal_points_the_first_stands_for_all() -> None:
    assert best_first([(0.0, 1.0), (0.0, 1.0), (0.5, 0.5), (1.0, 0.0), (1.0, 0.0)]) == [0, 3, 2, 1, 4]


def test_failed_ones_are_last() -> None:
    assert best_first([None, (0.0, 0.0), None, (1.0, 1.0)]) == [3, 1, 0, 2]


@given(st.lists(st.tuples(st.integers(0, 3), st.integers(0, 3), st.sampled_from([0.0, 0.0, 0.5, 1.0])), max_size=9))
def test_who_misses_constraints_comes_after_all_that_keep_them(told: list[tuple[int, int, float]]) -> None:
    """Constrained domination (Deb et al. 2002, definition 1), pair by pair."""
    order = domination.best_first([Worth((1e6 * a, -1e6 * b), missed) for a, b, missed in told])
    missed = [told[i][2] for i in order]
    assert missed == sorted(missed)
    kept = [i for i in order if not told[i][2]]
    points = [(float(a), -float(b)) for a, b, m in told if not m]
    where = {i: k for k, i in enumerate(i for i, t in enumerate(told) if not t[2])}
    fronts = [rank(points, where[i]) for i in kept]
    assert fronts == sorted(fronts)
