"""Intervals, tests and corrections, against SciPy, published figures, and sums done here in another way."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest
from scipy import optimize, stats

from evomerge.comparison import Difference, difference, excess, holm, interval, tango, task_interval
from evomerge.errors import EvoMergeError
from evomerge.score import Interval, Score, TaskScore


def task(name: str, results: list[float] | np.ndarray, weight: float = 1.0, start: int = 0) -> TaskScore:
    array = np.array(results, np.float32)
    items = tuple(f"{name}{i + start}" for i in range(len(array)))
    return TaskScore(name, "acc", float(array.astype(np.float64).mean()), weight, items, array)


def whole(name: str, value: float, weight: float = 1.0) -> TaskScore:
    """A task whose metric has no form per item."""
    return TaskScore(name, "f1", value, weight, ("x", "y"))


def wilson(k: int, n: int) -> tuple[float, float]:
    """Wilson 1927, eq. in its closed form."""
    z, p = stats.norm.ppf(0.975), k / n
    middle = (p + z * z / (2 * n)) / (1 + z * z / n)
    half = z / (1 + z * z / n) * math.sqrt(p * (1 - p) / n + z * z / (4 * n * n))
    return middle - half, middle + half


@pytest.mark.parametrize(("k", "n"), [(0, 20), (7, 20), (20, 20), (487, 1000)])
def test_wilson_interval_of_one_task_of_hits(k: int, n: int) -> None:
    found = interval(Score((task("a", [1.0] * k + [0.0] * (n - k)),)))
    low, high = wilson(k, n)
    assert (found.low, found.high) == (pytest.approx(low, abs=1e-9), pytest.approx(high, abs=1e-9))
    assert found.mean == pytest.approx(k / n, abs=1e-6)
    assert found.items == n


def test_bootstrap_interval_of_weighted_tasks_is_bca() -> None:
    """BCa by hand, Efron 1987: bias from the median, acceleration from the jackknife of both samples."""
    rng = np.random.default_rng(0)
    a, b = rng.lognormal(size=50), rng.normal(size=30)
    found = interval(Score((task("a", a, 3.0), task("b", b, 1.0))))
    a, b = a.astype(np.float32).astype(float), b.astype(np.float32).astype(float)
    means = 0.75 * rng.choice(a, (200_000, 50)).mean(1) + 0.25 * rng.choice(b, (200_000, 30)).mean(1)
    value = 0.75 * a.mean() + 0.25 * b.mean()
    left_out = [
        w * (x.mean() - (x.sum() - x) / (len(x) - 1)) * (len(x) - 1) / len(x) for w, x in ((0.75, a), (0.25, b))
    ]
    u = np.concatenate(left_out)
    skew = (u**3).sum() / (6 * (u**2).sum() ** 1.5)
    bias, z = stats.norm.ppf((means < value).mean()), stats.norm.ppf([0.025, 0.975])
    ends = np.quantile(means, stats.norm.cdf(bias + (bias + z) / (1 - skew * (bias + z))))
    width = ends[1] - ends[0]
    assert (found.low, found.high) == (
        pytest.approx(ends[0], abs=0.04 * width),
        pytest.approx(ends[1], abs=0.04 * width),
    )
    # It is another interval than the normal one, by more than that.
    error = math.sqrt(0.75**2 * a.var(ddof=1) / 50 + 0.25**2 * b.var(ddof=1) / 30)
    assert found.high - value > 1.08 * stats.norm.ppf(0.975) * error
    assert interval(Score((task("a", a, 3.0), task("b", b, 1.0)))) == found  # seeded


def test_no_interval_without_items() -> None:
    found = interval(Score((whole("a", 0.4),)))
    assert (found.mean, found.low, found.high, found.items) == (0.4, None, None, 2)
    assert interval(Score((task("a", [0.5]),))).low is None  # one item says nothing of how items differ


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("results", [[0.5, 0.5], [0.25, 0.75], [0.1, 0.2, 0.9], [0.5] * 50, [0.0] * 49 + [0.5]])
def test_few_or_equal_results_have_a_finite_interval(results: list[float]) -> None:
    found = interval(Score((task("a", results),)))
    assert found.low is not None and found.high is not None
    assert (
        min(results) - 1e-6 <= found.low <= found.mean + 1e-6 and found.mean - 1e-6 <= found.high <= max(results) + 1e-6
    )


def test_a_flipped_interval_stays_ordered() -> None:
    results = -np.array([1.0, 2.0, 3.0, 6.0, 9.0], np.float32)
    flipped = TaskScore("loss", "loss", -4.2, 0.0, tuple("abcde"), results, flipped=True)
    found = task_interval(flipped)
    plain = task_interval(replace(flipped, value=4.2, results=-results, flipped=False))
    assert found.mean == 4.2 and found.low is not None and found.high is not None
    assert found.low < 4.2 < found.high
    assert (found.low, found.high) == (pytest.approx(plain.low, rel=0.1), pytest.approx(plain.high, rel=0.1))


@pytest.mark.parametrize(
    ("gained", "lost", "items", "low", "high"),
    # Newcombe 1998 (Statistics in Medicine 17: 2635), after Tango: 12 and 2 of 50; the others as a quadratic's roots,
    # which Tango's equation becomes without lost (or gained and lost) items: z^2 / (n + z^2) for none of n.
    [(12, 2, 50, 0.0611, 0.3447), (0, 0, 100, -0.036993, 0.036993)],
)
def test_tangos_interval_is_as_published(gained: int, lost: int, items: int, low: float, high: float) -> None:
    assert tango(gained, lost, items) == (pytest.approx(low, abs=5e-5), pytest.approx(high, abs=5e-5))
    assert tango(lost, gained, items) == (pytest.approx(-high, abs=5e-5), pytest.approx(-low, abs=5e-5))


@pytest.mark.parametrize(
    ("gained", "lost", "items"), [(40, 20, 160), (5, 0, 40), (0, 3, 10), (9, 1, 10), (300, 280, 2000)]
)
def test_tangos_interval_ends_where_the_score_test_turns(gained: int, lost: int, items: int) -> None:
    """The likeliest share of lost items found by a search, not by Tango's closed form."""
    for end in tango(gained, lost, items):
        if abs(end) > 1 - 1e-6:
            continue

        def unlikely(q: float, d: float = end) -> float:
            both = items - gained - lost
            shares = ((gained, q + d), (lost, q), (both, 1 - 2 * q - d))
            return -sum(k * math.log(max(p, 1e-300)) for k, p in shares if k)

        room = (max(0.0, -end), (1 - end) / 2)
        q = optimize.minimize_scalar(unlikely, bounds=room, method="bounded", options={"xatol": 1e-12}).x
        score = (gained - lost - items * end) / math.sqrt(items * (2 * q + end - end**2))
        assert abs(score) == pytest.approx(stats.norm.ppf(0.975), rel=1e-3)


def test_mcnemars_exact_test_counts_items_that_one_of_both_solves() -> None:
    """Fourteen items of 50 that only one solves, twelve and two: p = 2 (1 + 14 + 91) / 2^14."""
    ours = [1.0] * 36 + [1.0] * 12 + [0.0] * 2
    theirs = [1.0] * 36 + [0.0] * 12 + [1.0] * 2
    found = difference(Score((task("a", ours),)), Score((task("a", theirs),)))
    assert (found.mean, found.gained, found.lost, found.test) == (0.2, 12, 2, "McNemar, exact")
    assert found.p == pytest.approx(2 * (1 + 14 + 91) / 2**14)
    assert (found.low, found.high) == (pytest.approx(0.0611, abs=5e-5), pytest.approx(0.3447, abs=5e-5))


def test_difference_pairs_by_item_not_by_place() -> None:
    rng = np.random.default_rng(1)
    left, right = (rng.random(200) < 0.6) * 1.0, (rng.random(200) < 0.4) * 1.0
    a = Score((task("a", left.tolist()),))
    order = rng.permutation(200)
    shuffled = task("a", right[order])
    shuffled = replace(shuffled, items=tuple(f"a{i}" for i in order))
    assert difference(a, Score((shuffled,))) == difference(a, Score((task("a", right),)))
    assert difference(a, Score((shuffled,))).mean == pytest.approx((left - right).mean(), abs=1e-9)


def test_paired_bootstrap_of_weighted_tasks() -> None:
    """Items are drawn within each task; percentiles of a million means drawn here agree, and so does their tail."""
    rng = np.random.default_rng(2)
    x, y = rng.normal(0.12, 1, 80), rng.exponential(0.5, 40) - 0.4
    zero = np.zeros
    a = Score((task("a", x, 3.0), task("b", y, 1.0)))
    found = difference(a, Score((task("a", zero(80), 3.0), task("b", zero(40), 1.0))))
    means = 0.75 * rng.choice(x, (100_000, 80)).mean(1) + 0.25 * rng.choice(y, (100_000, 40)).mean(1)
    assert found.test == "paired bootstrap" and found.gained is None and found.items == 120
    assert (found.low, found.high) == pytest.approx(tuple(np.quantile(means, [0.025, 0.975])), abs=0.01)
    assert found.p == pytest.approx(2 * min((means <= 0).mean(), (means >= 0).mean()), abs=0.02)
    assert 0.01 < found.p < 0.9


@pytest.mark.parametrize("shift", [0.0, 0.15, 0.2, 0.25, 0.3, -0.25, 1.0])
def test_the_bootstraps_p_value_agrees_with_its_interval(shift: float) -> None:
    x = np.random.default_rng(3).normal(0, 1, 100)
    x += shift - x.mean()
    found = difference(Score((task("a", x),)), Score((task("a", np.zeros(100)),)))
    assert found.p is not None and found.low is not None and found.high is not None
    if abs(found.p - 0.05) > 0.003:
        assert (found.p < 0.05) == (found.low > 0 or found.high < 0)


def test_difference_over_shared_items_only() -> None:
    a, b = Score((task("a", [1, 1, 0, 1]),)), Score((task("a", [0, 0, 0], start=2),))
    assert difference(a, b).mean == pytest.approx(0.5)
    assert difference(a, b).items == 2


@pytest.mark.parametrize("n", [5, 8, 40])
def test_what_is_true_is_rejected_as_rarely_of_few_items(n: int) -> None:
    """Plain percentiles of five items reject 17 % of what is true."""
    rng = np.random.default_rng(1)
    zero = Score((task("a", np.zeros(n)),))
    found = [difference(Score((task("a", rng.standard_normal(n)),)), zero) for _ in range(400)]
    assert all(f.p is not None and f.low is not None and f.high is not None for f in found)
    rejected = [f for f in found if (f.p or 1) <= 0.05]
    assert len(rejected) <= 0.08 * len(found)  # of 5 %, by three standard errors
    assert sum((f.low or 0) > 0 or (f.high or 0) < 0 for f in found) <= len(rejected) + 4


def test_four_marks_prove_nothing() -> None:
    found = difference(Score((task("a", [0.9, 0.8, 0.95, 0.85]),)), Score((task("a", [0.1, 0.2, 0.1, 0.15]),)))
    assert found.mean == pytest.approx(0.7375) and (found.low, found.high, found.p) == (None, None, None)


def test_difference_of_itself_is_nothing() -> None:
    a = Score((task("a", [1, 0, 1, 0, 1]), task("b", [0.5, 0.25, 0.5, 0.75, 1.0], 2.0)))
    found = difference(a, a)
    assert (found.mean, found.low, found.high, found.p) == (0, 0, 0, 1.0)
    one = Score((task("a", [1, 0, 1]),))
    # That two models agree on three items says little of the next ones.
    assert difference(one, one).p == 1.0 and (difference(one, one).high or 0) > 0.5


def test_difference_with_a_task_without_items_has_no_interval() -> None:
    a, b = Score((whole("a", 0.5, 3.0), task("b", [1, 1]))), Score((whole("a", 0.25, 3.0), task("b", [0, 1])))
    found = difference(a, b)
    assert found.mean == pytest.approx((3 * 0.25 + 0.5) / 4)
    assert found.low is None and found.p is None and found.items == 4


def test_what_cannot_be_paired() -> None:
    a = Score((task("a", [1, 0]),))
    with pytest.raises(EvoMergeError, match='no task "a"'):
        difference(a, Score((task("b", [1, 0]),)))
    with pytest.raises(EvoMergeError, match="no item"):
        difference(a, Score((task("a", [1, 0], start=5),)))


def test_holms_correction() -> None:
    """By hand: .01 x 4, .02 x 3, then never less than the one before; one without a test is not counted."""
    found: list[Difference | None] = [Difference(0.1, 0, 1, 9, p) for p in (0.02, 0.03, 0.01, 0.5)]
    corrected = holm([*found[:2], None, *found[2:], Difference(0.1, None, None, 9)])
    values = [None if d is None else d.holm for d in corrected]
    assert values == [pytest.approx(0.06), pytest.approx(0.06), None, pytest.approx(0.04), 0.5, None]
    assert [d is not None and d.proven for d in corrected] == [False, False, False, True, False, False]


def test_excess_of_independent_scores_is_newcombes_interval() -> None:
    """Newcombe 1998 (Statistics in Medicine 17: 873), table II, method 10: 56/70 - 48/80 is .0524 to .3339."""
    a, b = (interval(Score((task("a", [1.0] * k + [0.0] * (n - k)),))) for k, n in ((56, 70), (48, 80)))
    found = excess(a, b)
    assert found.mean == pytest.approx(0.2)
    assert (found.low, found.high) == (pytest.approx(0.0524, abs=5e-5), pytest.approx(0.3339, abs=5e-5))
    assert excess(a, Interval(0.5, None, None, 3)).low is None
