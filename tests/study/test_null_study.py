"""Statistics of the statistics: studies in which no candidate is better than another, a thousand of them.

Each goes the way of a real one: many candidates on the search items, the best few on select (the real rules of
`study.final`), the winner on test, with the intervals and tests that are reported. Items differ in difficulty; the true
score is the mean over the population that they are drawn from.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import pytest

from evomerge.comparison import Difference, difference, excess, interval
from evomerge.score import Interval, Score, State, TaskScore, Trial
from evomerge.study.final import chosen, finalists

STUDIES, CANDIDATES = 1000, 40
TRUE = 0.6
# Draws (items, candidates) of results that are 0.6 on average.
Draw = Callable[[np.random.Generator, int, int], np.ndarray]


def hits(rng: np.random.Generator, items: int, candidates: int) -> np.ndarray:
    """Right or wrong; of each item every candidate has the same chance, which differs from item to item."""
    return (rng.random((items, candidates)) < rng.beta(1.5, 1.0, (items, 1))) * 1.0


def marks(rng: np.random.Generator, items: int, candidates: int) -> np.ndarray:
    """Marks with a long tail; of each item every candidate has the same mean, which differs from item to item."""
    return rng.beta(0.6, 0.4, (items, 1)) * rng.exponential(1.0, (items, candidates))


@dataclass(frozen=True)
class Reported:
    """What a study says of its winner, and of it against a source as good as all candidates."""

    search: Interval
    test: Interval
    source: Difference
    shrinkage: Interval


@functools.cache
def ids(count: int) -> tuple[str, ...]:
    return tuple(map(str, range(count)))


def score(results: np.ndarray, tasks: int) -> Score:
    """One score of (items,) results, its items dealt to so many tasks of equal weight."""
    parts = [np.ascontiguousarray(results[t::tasks], np.float32) for t in range(tasks)]
    found = [TaskScore(f"t{t}", "m", float(p.mean(dtype=float)), 1.0, ids(len(p)), p) for t, p in enumerate(parts)]
    return Score(tuple(found))


def study(seed: int, draw: Draw, tasks: int, sizes: tuple[int, int, int]) -> Reported:
    rng = np.random.default_rng(seed)
    search, select, test = (draw(rng, n, CANDIDATES + 1) for n in sizes)
    trials = [
        Trial(c, {}, State.COMPLETE, score(search[:, c], tasks), attributes={"recipe_hash": str(c)})
        for c in range(CANDIDATES)
    ]
    last = finalists(trials, lambda t: str(t.number))
    assert len(last) == 5
    winner, _ = chosen([(t, score(select[:, t.number], tasks)) for t in last])
    assert winner.score is not None
    found = score(test[:, winner.number], tasks)
    on_search, on_test = interval(winner.score), interval(found)
    return Reported(on_search, on_test, difference(found, score(test[:, -1], tasks)), excess(on_search, on_test))


def share(found: list[bool]) -> float:
    return sum(found) / len(found)


def covers(interval: Interval, value: float) -> bool:
    assert interval.low is not None and interval.high is not None
    return interval.low <= value <= interval.high


def held(found: list[Reported]) -> None:
    assert 0.93 <= share([covers(r.test, TRUE) for r in found]) <= 0.97
    # What would be reported without items kept apart: the best of forty is too good by luck.
    assert share([covers(r.search, TRUE) for r in found]) < 0.87
    assert np.mean([r.shrinkage.mean for r in found]) > 0.02
    # A source as good: the paired interval holds no difference, and few are called proven.
    assert 0.93 <= share([covers(r.source, 0.0) for r in found]) <= 0.97
    assert share([r.source.p is not None and r.source.p <= 0.05 for r in found]) <= 0.07


def test_the_reported_interval_covers_the_true_score_of_right_and_wrong_answers() -> None:
    found = [study(seed, hits, 1, (150, 100, 400)) for seed in range(STUDIES)]
    assert {r.source.test for r in found} == {"McNemar, exact"}
    held(found)


@pytest.mark.slow
@pytest.mark.parametrize(("draw", "tasks"), [(hits, 2), (marks, 2)])
def test_the_reported_interval_covers_the_true_score_by_bootstrap(
    draw: Draw, tasks: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With a fifth of the resamples, so that it takes a minute."""
    monkeypatch.setattr("evomerge.comparison.RESAMPLES", 2000)
    found = [study(seed, draw, tasks, (150, 100, 400)) for seed in range(STUDIES)]
    assert {r.source.test for r in found} == {"paired bootstrap"}
    held(found)
