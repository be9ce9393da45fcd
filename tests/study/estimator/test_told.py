"""What those that stopped are told to be worth: the same for any number of workers, after any kill, and no worse."""

import numpy as np
import pytest

from evomerge.evaluation.draw import Draw
from evomerge.score import Score, State, TaskScore, Trial
from evomerge.study import contest
from evomerge.study.candidates import best
from evomerge.study.contest import Rules
from evomerge.study.estimator import Prior, compare, fit, predicted
from evomerge.study.estimator.told import Estimates, differences, worth
from evomerge.study.loop import Search
from tests.study.estimator.responders import simulated
from tests.study.shuffled import Killed
from tests.study.test_race_loop import ITEMS, WEIGHTS, Pool, decode, results, search, sequence

NAMES = {"items": tuple(f"i{i}" for i in range(200))}
ENDS = (20, 40, 100, 200)


def score(answers, draw):
    """Of answers in the order of the draw: as an evaluator gives it."""
    places = [p for ((_, p),) in draw.units[: len(answers)]]
    ordered = np.argsort(places)
    ids = tuple(NAMES["items"][places[i]] for i in ordered)
    found = np.asarray(answers, np.float32)[ordered]
    return Score((TaskScore("items", "acc", float(found.mean()), 1.0, ids, found),))


@pytest.fixture
def race():
    """(draw, answers in its order, estimates): two sources, then candidates."""
    draw = Draw.of(NAMES, {"items": 1.0}, 0)
    answers, *_ = simulated(0, responders=30, items=200)
    return draw, answers, Estimates(draw, ENDS, [score(a, draw) for a in answers[:2]])


def whole(number, answers, draw):
    return Trial(number, {}, State.COMPLETE, score(answers, draw), attributes={"recipe_hash": f"h{number}"})


def stopped(number, answers, draw, seen):
    kept = {"stopped": "settled", "seen": seen, "estimate": float(answers[:seen].mean()), "cost": seen / 200}
    part = score(answers[:seen], draw)
    return Trial(number, {}, State.PRUNED, attributes={"race": kept, "recipe_hash": f"h{number}"}, part=part)


def test_they_are_the_models_where_it_is_better(race):
    draw, answers, estimates = race
    earlier = [whole(i, answers[2 + i], draw) for i in range(20)]
    generation = [stopped(20, answers[22], draw, 20), whole(21, answers[23], draw), stopped(22, answers[24], draw, 40)]
    found = worth(draw, estimates, generation, earlier)
    kind = estimates.choice.kind
    # By hand, with what it is made of: chosen when there were as many as the last step of 8, 10, 12, 15, 19, 24.
    assert estimates.choice == compare(answers[:2], answers[2:21], draw.weights, ENDS) and kind is not None
    model = fit(np.concatenate([answers[:22], answers[[23]]]))
    given = np.array([np.where(np.arange(200) < n, answers[c], np.nan) for c, n in ((22, 20), (24, 40))])
    expected = predicted(model, given, draw.weights, Prior.population(model))[kind]
    assert [found[0], found[2]] == pytest.approx(expected.tolist()) and set(found) == {0, 2}
    assert found != differences(draw, generation, earlier) == worth(draw, None, generation, earlier)


def test_few_complete_candidates_are_told_as_before(race):
    draw, answers, estimates = race
    earlier = [whole(i, answers[2 + i], draw) for i in range(5)]
    generation = [whole(5, answers[7], draw), stopped(6, answers[8], draw, 20)]
    anchor = answers[7]
    assert worth(draw, estimates, generation, earlier) == pytest.approx(
        {1: anchor.mean() + answers[8][:20].mean() - anchor[:20].mean()}
    )
    assert "6 complete candidates, at least 8 are needed" in str(estimates.choice)


def test_equal_candidates_count_once(race):
    draw, answers, estimates = race
    earlier = [whole(0, answers[2], draw) for _ in range(20)]
    estimates.of([stopped(20, answers[22], draw, 20)], earlier)
    assert estimates.choice.complete == 1


def test_results_without_bounds_are_told_as_before(race):
    draw, answers, _ = race
    earlier = [whole(i, answers[2 + i], draw) for i in range(20)]
    for wrong in ([*earlier[:-1], whole(19, answers[21] * 2, draw)], earlier):
        generation = [stopped(20, answers[22] * 2, draw, 20)]
        fresh = Estimates(draw, ENDS, [score(a, draw) for a in answers[:2]])
        assert fresh.of(generation, wrong) is None and "not from 0 to 1" in str(fresh.choice)


def fresh():
    """For searches of `test_race_loop`: the sources are merges near the corners."""
    draw = Draw.of(ITEMS, WEIGHTS, 0)
    corners = [decode({f"weight.{n}": float(n == own) for n in "abcd"}) for own in "abcd"]
    scores = []
    for recipe in corners:
        tasks = [(t, results(recipe, t)) for t in ITEMS]
        scores.append(Score(tuple(TaskScore(t, "acc", float(r.mean()), WEIGHTS[t], ITEMS[t], r) for t, r in tasks)))
    return Estimates(draw, Rules.over(draw.weights).ends, scores)


@pytest.fixture
def told(monkeypatch):
    """(what generations were told, how many of them otherwise than by differences), of each search."""
    kept = {}
    tell = Search.told

    def keep(self, generation, earlier, race):
        found = tell(self, generation, earlier, race)
        values, other = kept.setdefault(self.study.name, ({}, set()))
        plain = differences(race.draw, generation, earlier)
        values[len(earlier)] = found
        if any(found[i] not in (v, None) and generation[i].stopped == "settled" for i, v in plain.items()):
            other.add(len(earlier))
        return found

    monkeypatch.setattr(Search, "told", keep)
    return kept


@pytest.mark.ci
def test_killed_and_on_other_workers_it_is_told_the_same(url, told, monkeypatch):
    # More complete candidates than this short search has else, so that a model is fitted and believed.
    monkeypatch.setattr(contest, "HOPE", 3.0)
    estimates = fresh()
    one, _ = search(url, 60, name="one", versions="one", estimates=estimates, seed=5)
    assert estimates.choice.kind is not None and len(best(one)) >= 8
    for after in (30, 90):
        with pytest.raises(Killed):
            search(url, 60, Pool(3, seed=after, kill_after=after), "other", versions="other", estimates=fresh(), seed=5)
    other, _ = search(url, 60, Pool(2), "other", versions="other", estimates=fresh(), seed=5)
    assert sequence(other) == sequence(one)
    assert told["other"] == told["one"] and len(told["one"][1]) >= 2
