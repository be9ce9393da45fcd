"""Objectives and constraints: what optimizers are told, fronts, hypervolume, limits that follow the base."""

from __future__ import annotations

import math

import numpy as np
import pytest

from evomerge.errors import EvaluatorError, EvoMergeError
from evomerge.evaluation.file import evaluator_for
from evomerge.evaluation.goals import Constraint
from evomerge.optimizers.protocol import Worth
from evomerge.score import VIOLATION, Score, State, TaskScore, Trial
from evomerge.study.candidates import best
from evomerge.study.goals import Goals, Limit, front, hypervolume


def score(a, b, length=10.0):
    return Score((
        TaskScore("a", "acc", a, 1.0), TaskScore("b", "acc", b, 0.0),
        TaskScore("a.length", "length", -length, 0.0, flipped=True),
    ))  # fmt: skip


def trial(number, goals, a, b, length=10.0, depth=4):
    found, attributes = score(a, b, length), {"depth": depth}
    violation = {VIOLATION: goals.violation(found, attributes)} if goals.limits else {}
    return Trial(number, {}, State.COMPLETE, found, attributes=attributes | violation)


def failed(number):
    return Trial(number, {}, State.FAIL, reason="nan")


def test_values_are_better_when_higher_and_counts_are_recorded_as_they_are():
    goals = Goals(("score", "b", "depth", "a.length"))
    one = trial(0, goals, 0.5, 0.25, 12.0, 6)
    assert goals.values(one.score, one.attributes) == (0.5, 0.25, -6.0, -12.0)
    assert goals.recorded(one.score, one.attributes) == [0.5, 0.25, 6.0, 12.0]


def test_what_is_reached_and_what_is_missed_are_told_apart():
    goals = Goals(("score", "a.length"), (), (Limit("b", low=0.4), Limit("a.length", high=20.0)))
    generation = [trial(1, goals, 0.9, 0.2), trial(2, goals, 0.3, 0.4), trial(3, goals, 0.95, 0.0, 30.0), failed(4)]
    told = goals.told(generation)
    assert told == [
        Worth((0.9, -10.0), pytest.approx(0.5)),  # .2 / .4 misses half of the limit
        Worth((0.3, -10.0), 0.0),
        Worth((0.95, -30.0), 1.5),  # all of one, and half of the other
        Worth((), math.inf),
    ]
    without = Goals(("a", "b"))
    assert without.told([trial(1, without, 0.9, 0.2), failed(4)]) == [Worth((0.9, 0.2)), None]


def test_a_limit_that_keeps_a_share_of_what_the_base_or_the_best_source_has():
    goals = Goals(constraints=(Constraint(of="b", keep=0.9), Constraint(of="a.length", keep=0.5)))
    base, x, y = score(0.2, 0.5, 10.0), score(0.1, 0.8, 30.0), score(0.1, 0.3, 4.0)
    assert goals.limited([base]).limits == (Limit("b", 0.45), Limit("a.length", high=20.0))
    without = goals.limited([x, y]).limits
    assert without[0].low == pytest.approx(0.72) and without[1].high == pytest.approx(8.0)
    with pytest.raises(EvoMergeError, match=r"keep 0\.9 of b: it is 0 where"):
        goals.limited([score(0.2, 0.0)])


def test_on_other_splits_nothing_is_refused_any_more():
    """A base that has nothing on some select items is to be kept as it is: the search has been spent."""
    goals = Goals(constraints=(Constraint(of="b", keep=0.9), Constraint(of="a.length", keep=0.5)))
    for split in ("select", "test"):
        assert goals.limited([score(0.2, 0.0, 0.0)], split).limits == (Limit("b", 0.0), Limit("a.length", high=0.0))
        assert goals.limited([score(0.2, -3.0)], split).limits[0] == Limit("b", -3.0)
        assert goals.limited([score(0.2, 0.5)], split).limits[0] == Limit("b", 0.45)


def test_those_that_keep_the_constraints_come_first():
    goals = Goals(("score",), (), (Limit("b", low=0.5),))
    pairs = [(0.9, 0.1), (0.2, 0.6), (0.8, 0.4), (0.3, 0.5)]
    trials = [trial(i, goals, a, b) for i, (a, b) in enumerate(pairs)]
    assert [t.number for t in best(trials)] == [3, 1, 2, 0]


def test_the_front_against_all_pairs():
    random = np.random.default_rng(3)
    values = {i: tuple(random.integers(0, 6, 3) / 5) for i in range(60)}
    goals = Goals(("a", "b"))
    trials = [trial(i, goals, 0, 0) for i in values]
    found = {t.number for t in front(trials, values)}
    for i, own in values.items():
        better = [j for j, v in values.items() if np.all(np.array(v) >= own) and np.any(np.array(v) > own)]
        twins = [j for j, v in values.items() if v == own and j < i]
        assert (i in found) == (not better and not twins)


def test_the_hypervolume_against_inclusion_and_exclusion():
    assert hypervolume([(0.5, 0.5)], (0.0, 0.0)) == pytest.approx(0.25)
    # .6 x .3 + .2 x .9 - .2 x .3
    assert hypervolume([(0.6, 0.3), (0.2, 0.9)], (0.0, 0.0)) == pytest.approx(0.3)
    assert hypervolume([(0.1, 0.1)], (0.2, 0.0)) == 0.0 and hypervolume([], (0.0, 0.0)) == 0.0
    random = np.random.default_rng(0)
    points = random.random((9, 3))
    drawn = random.random((200_000, 3))
    share = (drawn[:, None] <= points[None]).all(axis=2).any(axis=1).mean()
    assert hypervolume(points.tolist(), (0.0, 0.0, 0.0)) == pytest.approx(share, abs=0.005)


def test_named_tasks_make_up_the_score():
    file = evaluator_for([{"name": "a", "weight": 2}, {"name": "b", "weight": 0}, "c"])
    assert [t.weight for t in file.after(["score"]).config.tasks] == [2, 0, 1]
    assert [t.weight for t in file.after(["a", "b"]).config.tasks] == [2, 1, 0]
    both = file.after(["score", "b"]).config
    assert [t.weight for t in both.tasks] == [2, 0, 1] and all(both.searched(t) for t in both.tasks)
    with pytest.raises(EvaluatorError, match="objectives named twice: a"):
        file.after(["a", "a"])
