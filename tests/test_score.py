"""Scores, intervals and paired differences, against formulas worked out here with NumPy and SciPy."""

from __future__ import annotations

import math

import numpy as np
import pytest
from scipy import stats

from evomerge.errors import EvoMergeError
from evomerge.score import Score, State, TaskScore, Trial, difference, interval


def task(name: str, results: list[float], weight: float = 1.0, start: int = 0) -> TaskScore:
    items = tuple(f"{name}{i + start}" for i in range(len(results)))
    array = np.array(results, np.float32)
    return TaskScore(name, "acc", float(array.mean()), weight, items, array)


def whole(name: str, value: float, weight: float = 1.0) -> TaskScore:
    """A task whose metric has no form per item."""
    return TaskScore(name, "f1", value, weight, ("x", "y"))


def wilson(k: int, n: int) -> tuple[float, float]:
    """Wilson 1927, eq. in its closed form."""
    z, p = stats.norm.ppf(0.975), k / n
    middle = (p + z * z / (2 * n)) / (1 + z * z / n)
    half = z / (1 + z * z / n) * math.sqrt(p * (1 - p) / n + z * z / (4 * n * n))
    return middle - half, middle + half


def test_value_is_the_weighted_mean_and_weight_zero_only_watches() -> None:
    score = Score((task("a", [1, 0], 3.0), task("b", [1, 1], 1.0), task("c", [0], 0.0)))
    assert score.value == pytest.approx((3 * 0.5 + 1) / 4)
    assert [t.task for t in score.weighted] == ["a", "b"]
    assert score.items == 4
    assert score.task("c") is not None and score.task("d") is None


def test_no_weight_no_value() -> None:
    with pytest.raises(EvoMergeError):
        _ = Score((task("a", [1.0], 0.0),)).value


def test_flipped_sign_is_shown_as_published() -> None:
    assert TaskScore("a", "ppl", -12.5, flipped=True).shown == 12.5
    assert TaskScore("a", "acc", 0.5).shown == 0.5


@pytest.mark.parametrize(("k", "n"), [(0, 20), (7, 20), (20, 20), (487, 1000)])
def test_wilson_interval_of_one_task_of_hits(k: int, n: int) -> None:
    found = interval(Score((task("a", [1.0] * k + [0.0] * (n - k)),)))
    low, high = wilson(k, n)
    assert (found.low, found.high) == (pytest.approx(low, abs=1e-9), pytest.approx(high, abs=1e-9))
    assert found.mean == pytest.approx(k / n, abs=1e-6)
    assert found.items == n


def test_normal_interval_of_weighted_tasks() -> None:
    rng = np.random.default_rng(0)
    a, b = rng.normal(size=50).tolist(), rng.normal(size=30).tolist()
    score = Score((task("a", a, 3.0), task("b", b, 1.0)))
    found = interval(score)
    error = math.sqrt(0.75**2 * np.var(a, ddof=1) / 50 + 0.25**2 * np.var(b, ddof=1) / 30)
    assert found.low == pytest.approx(score.value - stats.norm.ppf(0.975) * error, rel=1e-5)
    assert found.high == pytest.approx(score.value + stats.norm.ppf(0.975) * error, rel=1e-5)


def test_no_interval_without_items() -> None:
    found = interval(Score((whole("a", 0.4),)))
    assert (found.mean, found.low, found.high, found.items) == (0.4, None, None, 2)
    assert interval(Score((task("a", [0.5]),))).low is None  # one item has no variance


def test_interval_to_dict_under_the_name_asked_for() -> None:
    found = interval(Score((whole("a", 0.4),)))
    assert found.to_dict("score") == {"score": 0.4, "low": None, "high": None, "items": 2}


def test_difference_pairs_by_item_not_by_place() -> None:
    rng = np.random.default_rng(1)
    left = (rng.random(200) < 0.6).astype(float)
    right = (rng.random(200) < 0.4).astype(float)
    a = Score((task("a", left.tolist()),))
    order = rng.permutation(200)
    shuffled = TaskScore(
        "a", "acc", float(right.mean()), 1.0, tuple(f"a{i}" for i in order), right[order].astype(np.float32)
    )
    found = difference(a, Score((shuffled,)))
    d = left - right
    half = stats.norm.ppf(0.975) * d.std(ddof=1) / math.sqrt(200)
    assert found.mean == pytest.approx(d.mean(), abs=1e-9)
    assert (found.low, found.high) == (
        pytest.approx(d.mean() - half, abs=1e-6),
        pytest.approx(d.mean() + half, abs=1e-6),
    )


def test_difference_over_shared_items_only() -> None:
    a, b = Score((task("a", [1, 1, 0, 1]),)), Score((task("a", [0, 0, 0], start=2),))
    assert difference(a, b).mean == pytest.approx(0.5)
    assert difference(a, b).items == 2


def test_difference_of_itself_is_nothing() -> None:
    a = Score((task("a", [1, 0, 1]), task("b", [0.5, 0.25], 2.0)))
    found = difference(a, a)
    assert (found.mean, found.low, found.high) == (0, 0, 0)


def test_difference_with_a_task_without_items_has_no_interval() -> None:
    a, b = Score((whole("a", 0.5, 3.0), task("b", [1, 1]))), Score((whole("a", 0.25, 3.0), task("b", [0, 1])))
    found = difference(a, b)
    assert found.mean == pytest.approx((3 * 0.25 + 0.5) / 4)
    assert found.low is None and found.items == 4


def test_what_cannot_be_paired() -> None:
    a = Score((task("a", [1, 0]),))
    with pytest.raises(EvoMergeError, match='no task "a"'):
        difference(a, Score((task("b", [1, 0]),)))
    with pytest.raises(EvoMergeError, match="no item"):
        difference(a, Score((task("a", [1, 0], start=5),)))


def test_trial_value() -> None:
    assert Trial(0, {}, State.FAIL, reason="NaN").value is None
    assert Trial(0, {}, State.COMPLETE, Score((task("a", [1, 0]),))).value == 0.5
    assert State.COMPLETE == "COMPLETE"
