"""What scores prove: intervals, paired differences with their tests, and by how much a search flattered its winner.

docs/statistics.md says it in prose, with the simulations that chose between formulas. SciPy loads when it is needed.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt

from evomerge.errors import EvoMergeError
from evomerge.score import Interval, Score, TaskScore

Numbers = npt.NDArray[np.float64]
# Results of items by task, each with the task's share in the score; shares add up to 1.
Strata = Sequence[tuple[float, Numbers]]

CONFIDENCE = 0.95
LEVEL = 1 - CONFIDENCE
RESAMPLES = 10_000
SEED = 0  # of every bootstrap: the same results always give the same interval
FEWEST = 5  # items of which means can be drawn that tell anything of their spread
MCNEMAR, BOOTSTRAP = "McNemar, exact", "paired bootstrap"
# Items that SciPy draws at a time: so many fit into a processor's cache, which is three times as fast as all at once.
_BATCH = 200_000


@dataclass(frozen=True)
class Difference(Interval):
    """A paired difference.

    Attributes:
        p: Two-sided p-value of no difference; None where there is no test.
        test: Which test gave it.
        gained, lost: Where results are 0 or 1: how many items only the first solves, and only the second.
        holm: The p-value corrected for all comparisons made beside this one.
    """

    p: float | None = None
    test: str | None = None
    gained: int | None = None
    lost: int | None = None
    holm: float | None = None

    @property
    def proven(self) -> bool:
        """Whether it is more than chance, all comparisons considered."""
        return self.holm is not None and self.holm <= LEVEL


def interval(score: Score) -> Interval:
    """Confidence interval (95 %) of a score.

    Wilson's (1927) for one task with results 0 or 1; else the bootstrap's, items drawn within each task, with Efron's
    correction for bias and skewness (BCa; Efron 1987, section 3).
    """
    tasks = score.weighted
    if not all(t.by_item for t in tasks):
        return Interval(score.value, None, None, score.items)
    if len(tasks) == 1 and _binary(tasks[0].results):
        from scipy.stats import binomtest

        results = tasks[0].results
        found = binomtest(int(results.sum()), len(results)).proportion_ci(CONFIDENCE, method="wilson")
        return Interval(score.value, float(found.low), float(found.high), len(results))
    if any(len(t.results) < 2 for t in tasks):
        return Interval(score.value, None, None, score.items)
    low, high, _ = _bootstrap(_strata([(t.weight, t.results.astype(np.float64)) for t in tasks]), "BCa")
    return Interval(score.value, low, high, score.items)


def task_interval(task: TaskScore) -> Interval:
    """A task's interval by itself, in the metric's own direction."""
    found = interval(Score((replace(task, weight=1.0),)))
    if not task.flipped:
        return found
    low, high = (None if x is None else -x for x in (found.high, found.low))
    return Interval(-found.mean, low, high, found.items)


def difference(a: Score, b: Score) -> Difference:
    """Paired difference a - b of two scores over the items that both have, with interval and test.

    For one task with results 0 or 1: McNemar's exact test (1947) on the items that only one of them solves, and Tango's
    score interval (1998). Else the paired bootstrap, items drawn within each task: its percentiles, and as p-value
    twice the smaller share of resamples on either side of 0, so that both agree; both widened for few items as
    Student's interval is ("expanded" percentiles: Hesterberg 2015, The American Statistician 69). Of fewer than five
    items in a task there is neither.

    Raises:
        EvoMergeError: the scores share no task or, in a task, no item.
    """
    pairs: list[tuple[float, Numbers]] = []
    mean, total, items, exact, binary = 0.0, 0.0, 0, True, True
    for left in a.weighted:
        right = b.task(left.task)
        if right is None:
            raise EvoMergeError(f'the scores cannot be paired: one has no task "{left.task}"')
        total += left.weight
        if not (left.by_item and right.by_item):
            exact = False
            mean += left.weight * (left.value - right.value)
            items += len(left.items)
            continue
        at = {item: i for i, item in enumerate(right.items)}
        shared = [(i, at[item]) for i, item in enumerate(left.items) if item in at]
        if not shared:
            raise EvoMergeError(f'the scores cannot be paired: no item of task "{left.task}" is in both')
        l_index, r_index = (list(side) for side in zip(*shared, strict=True))
        ours, theirs = left.results[l_index], right.results[r_index]
        binary = binary and _binary(ours) and _binary(theirs)
        d = ours.astype(np.float64) - theirs.astype(np.float64)
        pairs.append((left.weight, d))
        mean += left.weight * float(d.mean())
        items += len(d)
    if not total:
        raise EvoMergeError("the scores cannot be paired: no task counts")
    hits = len(pairs) == 1 and binary
    if not exact or any(len(d) < (2 if hits else FEWEST) for _, d in pairs):
        return Difference(mean / total, None, None, items)
    if hits:
        return _mcnemar(pairs[0][1])
    return _paired_bootstrap(mean / total, _strata(pairs), items)


def holm(found: Sequence[Difference | None]) -> tuple[Difference | None, ...]:
    """Differences with p-values corrected for all of them (Holm 1979): the k-th smallest of m times m - k + 1.

    Whatever the comparisons have in common, the probability that any of them is wrongly called proven stays 5 %.
    """
    tested = sorted((d.p, i) for i, d in enumerate(found) if d is not None and d.p is not None)
    out, least = list(found), 0.0
    for k, (p, i) in enumerate(tested):
        least = max(least, min(1.0, p * (len(tested) - k)))
        out[i] = replace(out[i], holm=least)  # type: ignore[type-var]  # it has a p-value, so it is there
    return tuple(out)


def excess(earlier: Interval, later: Interval) -> Interval:
    """By how much one score lies above another on other items, with an interval.

    From the two intervals, which are independent (MOVER; Newcombe 1998, method 10; Zou and Donner 2008):
    d - sqrt((m1 - l1)^2 + (u2 - m2)^2) to d + sqrt((u1 - m1)^2 + (m2 - l2)^2).
    """
    mean, items = earlier.mean - later.mean, earlier.items + later.items
    if earlier.low is None or earlier.high is None or later.low is None or later.high is None:
        return Interval(mean, None, None, items)
    below = math.hypot(earlier.mean - earlier.low, later.high - later.mean)
    above = math.hypot(earlier.high - earlier.mean, later.mean - later.low)
    return Interval(mean, mean - below, mean + above, items)


def _binary(results: npt.NDArray[np.float32]) -> bool:
    return bool(np.isin(results, (0, 1)).all())


def _strata(weighted: Sequence[tuple[float, Numbers]]) -> Strata:
    total = sum(w for w, _ in weighted)
    return [(w / total, x) for w, x in weighted]


def _mcnemar(d: Numbers) -> Difference:
    from scipy.stats import binomtest

    gained, lost = int((d > 0).sum()), int((d < 0).sum())
    p = binomtest(gained, gained + lost).pvalue if gained + lost else 1.0
    low, high = tango(gained, lost, len(d))
    return Difference((gained - lost) / len(d), low, high, len(d), float(p), MCNEMAR, gained, lost)


def tango(gained: int, lost: int, items: int) -> tuple[float, float]:
    """Score interval (95 %) of a difference of paired proportions (Tango 1998, Statistics in Medicine 17, eq. 11).

    All differences d at which (gained - lost - n d) / sqrt(n (2 q + d (1 - d))) lies within the normal quantiles, q
    being the likeliest share of lost items where the difference is d.
    """
    from scipy.optimize import brentq
    from scipy.stats import norm

    z = float(norm.ppf(0.5 + CONFIDENCE / 2))

    def score(d: float) -> float:
        b = (2 * items - gained + lost) * d - gained - lost
        q = (math.sqrt(max(b * b + 8 * items * lost * d * (1 - d), 0.0)) - b) / (4 * items)
        spread = math.sqrt(max(items * (2 * q + d * (1 - d)), 0.0))
        off = gained - lost - items * d
        return off / spread if spread > 0 else math.copysign(math.inf, off) if off else 0.0

    mean = (gained - lost) / items
    # Where the likeliest share leaves no spread the score is infinite, so the ends of [-1, 1] are tried first.
    low = -1.0 if abs(score(-1.0)) <= z else brentq(lambda d: min(score(d), 1e9) - z, -1.0, mean)
    high = 1.0 if abs(score(1.0)) <= z else brentq(lambda d: max(score(d), -1e9) + z, mean, 1.0)
    return float(low), float(high)


def _paired_bootstrap(mean: float, strata: Strata, items: int) -> Difference:
    from scipy.stats import norm, t

    # Plain percentiles of five items reject what is true in one case of six. The least task says how few there are.
    n = min(len(x) for _, x in strata)
    wider = math.sqrt(n / (n - 1))
    low, high, drawn = _bootstrap(strata, "percentile", 1 - 2 * float(norm.cdf(wider * t.ppf(LEVEL / 2, n - 1))))
    # With one added on both counts: the sample as it is belongs to them (Davison and Hinkley 1997, eq. 4.11).
    less, more = (drawn <= 0).sum() + 1, (drawn >= 0).sum() + 1
    share = min(0.5, int(min(less, more)) / (len(drawn) + 1))
    return Difference(mean, low, high, items, float(2 * t.cdf(norm.ppf(share) / wider, n - 1)), BOOTSTRAP)


def _bootstrap(strata: Strata, method: str, confidence: float = CONFIDENCE) -> tuple[float, float, Numbers]:
    """SciPy's bootstrap of a weighted mean, items drawn within each task: low, high, and the mean of each resample."""
    from scipy.stats import bootstrap

    if all(np.ptp(x) == 0 for _, x in strata):  # every resample is the same, and SciPy's answer NaN
        mean = sum(share * float(x[0]) for share, x in strata)
        return mean, mean, np.full(RESAMPLES, mean)

    def statistic(*samples: Numbers, axis: int = -1) -> Numbers:
        means = [share * x.mean(axis=axis) for (share, _), x in zip(strata, samples, strict=True)]
        return np.asarray(np.sum(means, axis=0))

    found = bootstrap(
        [x for _, x in strata], statistic, n_resamples=RESAMPLES, confidence_level=confidence, method=method,
        vectorized=True, batch=max(1, _BATCH // max(len(x) for _, x in strata)),
        random_state=np.random.default_rng(SEED),
    )  # fmt: skip
    low, high = (float(x) for x in found.confidence_interval)
    if not math.isfinite(low + high):  # BCa of three items or so: what is left are the plain percentiles
        low, high = (float(x) for x in np.quantile(found.bootstrap_distribution, [LEVEL / 2, 1 - LEVEL / 2]))
    return low, high, found.bootstrap_distribution
