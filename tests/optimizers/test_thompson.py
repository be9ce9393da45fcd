"""Thompson sampling: errors count as such, what is known needs no fit, and of many scores the surest are known."""

from __future__ import annotations

import math

import numpy as np
import pytest

from evomerge.evaluation.draw import Draw
from evomerge.optimizers import hyperparameters, make_optimizer
from evomerge.optimizers.protocol import Worth
from evomerge.optimizers.thompson import FIRST, FLOOR, KNOWN, LATEST, values
from evomerge.score import RACE, Score, State, TaskScore, Trial
from evomerge.space import Float
from evomerge.study.estimator.told import standard_errors

PARAMETERS = tuple(Float(f"w{i}", 0.0, 1.0, 0.5) for i in range(5))
OPTIMUM = np.array([0.2, 0.8, 0.6, 0.3, 0.45])


def height(params):
    return math.exp(-3.0 * float(((np.array([params[p.name] for p in PARAMETERS]) - OPTIMUM) ** 2).sum()))


def noisy(seed, error_told, noise=0.25):
    """Mean height of the last 5 of 25 generations, of which half the scores are off by much and half exact."""
    random = np.random.default_rng([seed, 1])
    optimizer = make_optimizer("thompson", PARAMETERS, seed)
    reached = []
    for _ in range(25):
        asked = optimizer.ask(optimizer.generation)
        errors = np.where(random.random(len(asked)) < 0.5, noise, 0.0)
        told = [height(p) + e * random.standard_normal() for p, e in zip(asked, errors, strict=True)]
        optimizer.tell(asked, [Worth((t,), error=e if error_told else None) for t, e in zip(told, errors, strict=True)])
        reached.append(np.mean([height(p) for p in asked]))
    return float(np.mean(reached[-5:]))


@pytest.mark.ci
def test_scores_count_by_their_errors():
    told, not_told = (np.array([noisy(s, known) for s in range(4)]) for known in (True, False))
    assert told.mean() > 0.9
    assert told.mean() > not_told.mean()


def test_equal_candidates_count_once():
    """By the surest of their scores: all of them rest on the same items."""
    optimizer = make_optimizer("thompson", PARAMETERS, 3, population=4, asynchronous=True)
    for enqueued in (0.2, 0.4, 0.4, 0.4):
        optimizer.enqueue({p.name: enqueued for p in PARAMETERS})
    asked = optimizer.ask(4)
    told = [Worth((0.5,)), Worth((0.1,), error=0.3), Worth((0.7,)), Worth((0.9,), error=0.2)]
    optimizer.tell(asked, told)
    points, found, errors = optimizer._table(4)
    assert points[:, 0].tolist() == [0.2, 0.4]
    assert found.tolist() == [0.5, 0.7] and errors.tolist() == [0.0, 0.0]
    assert optimizer._table(2)[2].tolist() == [0.0, 0.3]  # of a time when less was known


def told_to(points, worths, steps=50):
    """An optimizer that was told these, and what it knew after every so many."""
    optimizer = make_optimizer("thompson", PARAMETERS, 3, population=steps, asynchronous=True)
    knew = {}
    for at in range(0, len(points), steps):
        optimizer.recall([{p.name: u for p, u in zip(PARAMETERS, x, strict=True)} for x in points[at : at + steps]])
        asked = optimizer.ask(steps)
        optimizer.tell(asked, worths[at : at + steps])
        knew[at + steps] = optimizer._chosen(at + steps)
    return optimizer, knew


def test_of_many_scores_the_latest_the_surest_and_the_best_are_known():
    random = np.random.default_rng(23)
    errors = [None if u < 0.5 else float(u) for u in random.random(600)]
    worths = [Worth((float(random.random()),), error=e) for e in errors]
    worths[7], worths[250] = Worth((2.0,)), Worth((1.5,))  # the best of all is early
    worths[11] = Worth(())
    worths[13] = Worth((0.5,), error=math.nan)
    optimizer, knew = told_to(random.uniform(size=(600, 5)).tolist(), worths)
    unsure = [0.0 if w.error is None else math.inf if math.isnan(w.error) else w.error for w in worths]
    for told, chosen in knew.items():
        assert optimizer._chosen(told) == chosen  # what came later makes no difference
        assert len(chosen) == min(told, KNOWN)
        assert set(range(max(0, told - LATEST), told)) | {7} <= set(chosen)
        older = [i for i in range(told - LATEST) if i != 7]
        inside = [(unsure[i], -i) for i in older if i in chosen]
        outside = [(unsure[i], -i) for i in older if i not in chosen]
        assert not outside or max(inside) < min(outside)
    assert 11 in knew[300] and 13 not in knew[300]


def test_copies_do_not_crowd_out_what_else_is_known():
    """A search on a grid that has come to one place goes on knowing the others."""
    random = np.random.default_rng(25)
    points = [*random.uniform(size=(100, 5)).tolist(), *([[0.5] * 5] * 400)]
    optimizer, knew = told_to(points, [Worth((float(random.random()),), error=0.1) for _ in points])
    assert knew[500] == [*range(100), 499]
    assert len(optimizer._table(500)[0]) == 101


@pytest.mark.parametrize("asynchronous", [False, True])
def test_what_is_recalled_is_asked_without_a_fit(asynchronous, monkeypatch):
    def run(optimizer, generations, log):
        for _ in range(generations):
            asked = optimizer.ask(8)
            optimizer.tell(asked, [height(p) for p in asked])
            log.append(asked)

    log: list = []
    optimizer = make_optimizer("thompson", PARAMETERS, 3, asynchronous=asynchronous)
    run(optimizer, 5, log)
    again = make_optimizer("thompson", PARAMETERS, 3, asynchronous=asynchronous)
    with monkeypatch.context() as patched:
        patched.setattr(hyperparameters, "fit", None)  # whoever calls it fails
        for asked in log:
            again.recall(asked)
            assert again.ask(8) == asked
            again.tell(asked, [height(p) for p in asked])
    with pytest.raises(TypeError), monkeypatch.context() as patched:
        patched.setattr(hyperparameters, "fit", None)
        make = make_optimizer("thompson", PARAMETERS, 3)
        run(make, 5, [])
    more, same = [], []
    run(optimizer, 2, more)
    run(again, 2, same)
    assert more == same


@pytest.mark.parametrize("population", [3, 20])
def test_asynchronously_any_number_may_be_recalled(population):
    """The asks after a resume are those of the run that was not interrupted, wherever it was; of 20 five are drawn
    together, by what was told before the first of them was asked for."""

    def made():
        return make_optimizer("thompson", PARAMETERS, 6, population=population, asynchronous=True)

    def run(optimizer, count, log, recall=()):
        for i in range(count):
            if i < len(recall):
                optimizer.recall([recall[i]])
            (asked,) = optimizer.ask(1)
            log.append(asked)
            if len(log) > 3:  # three are always out
                optimizer.tell([log[-4]], [height(log[-4])])

    whole: list = []
    run(made(), 34, whole)
    assert len({tuple(p.values()) for p in whole}) > 30
    for known in (5, 19, 20, 22, 27):
        again: list = []
        run(made(), 34, again, whole[:known])
        assert again == whole


@pytest.mark.ci
def test_a_search_that_forgets_some_scores_goes_on_as_it_would_have():
    """Half of them estimates; three are always out, and three are drawn together by what was told before the first."""

    def run(recall=()):
        optimizer, log = make_optimizer("thompson", PARAMETERS, 9, population=12, asynchronous=True), []
        for i in range(KNOWN + 70):
            if i < len(recall):
                optimizer.recall([recall[i]])
            log += optimizer.ask(1)
            if i >= 3:
                optimizer.tell([log[i - 3]], [Worth((height(log[i - 3]),), error=0.1 if i % 2 else None)])
        return log, optimizer

    whole, optimizer = run()
    assert len(optimizer._chosen(KNOWN + 67)) == KNOWN < len(optimizer._worths)
    again, _ = run(whole[: KNOWN + 40])
    assert again == whole


def test_a_population_of_one_explores():
    """One of eight candidates is where most is expected, however small a generation is."""
    optimizer = make_optimizer("thompson", PARAMETERS, 7, population=1)
    asked = []
    for _ in range(40):
        (params,) = optimizer.ask(1)
        optimizer.tell([params], [height(params)])
        asked.append(tuple(params.values()))
    assert len(set(asked)) > 36


def test_another_search_s_best_come_behind_what_is_enqueued():
    warm = [{p.name: 0.1 * (i + 1) for p in PARAMETERS} for i in range(6)]
    optimizer = make_optimizer("thompson", PARAMETERS, 8, warm=warm)
    for params in [warm[0], *({p.name: 0.9 - i / 100 for p in PARAMETERS} for i in range(6))]:
        optimizer.enqueue(params)
    first = optimizer.ask(8)
    optimizer.tell(first, [0.0] * 8)
    second = optimizer.ask(8)
    assert [[round(float(p["w0"]), 6) for p in part] for part in (first[7:], second[:2])] == [[0.2], [0.3, 0.4]]


def test_a_generation_recalled_in_part_is_the_whole_one():
    first, second = (make_optimizer("thompson", PARAMETERS, 4) for _ in range(2))
    for _ in range(4):
        asked = first.ask(8)
        second.recall(asked[:3])
        assert second.ask(8) == asked
        for optimizer in first, second:
            optimizer.tell(asked, [height(p) for p in asked])


def test_values_have_a_floor_and_failures_lie_on_it():
    told = [Worth((v,)) for v in (0.5, 0.6, 0.7, 0.8, 0.9, -100.0)] + [Worth(())]
    found = values(told)
    floor = 0.6 - FLOOR * 0.3
    np.testing.assert_allclose(found, [0.5, 0.6, 0.7, 0.8, 0.9, floor, floor])
    np.testing.assert_array_equal(values([Worth(())] * 3), np.zeros(3))
    np.testing.assert_allclose(values([Worth((0.4,)), Worth(())]), [0.4, 0.4 - FLOOR])
    missed = values([Worth((5.0,), 0.3), Worth((1.0,), 0.0), Worth((9.0,), 0.1), Worth((), math.inf)])
    assert np.argsort(missed).tolist() == [3, 0, 2, 1]


def test_first_candidates_lie_around_the_start_within_bounds():
    optimizer = make_optimizer("thompson", PARAMETERS, 5, sigma=0.01)
    asked = []
    while len(asked) < FIRST:
        asked += (one := optimizer.ask(8))
        optimizer.tell(one, [0.0] * 8)
    assert all(abs(float(v) - 0.5) < 0.06 for p in asked for v in p.values())


def test_standard_errors_cover_the_score():
    """The interval of two standard errors around an estimate from some items holds the score of all in about 95 %."""
    random = np.random.default_rng(11)
    items = tuple(map(str, range(400)))
    inside = []
    for _ in range(120):
        draw = Draw.of({"t": items}, {"t": 1.0}, int(random.integers(1 << 30)))
        easy = random.uniform(0.2, 0.9, 400)

        def answers(shift, easy=easy):
            return (random.random(400) < np.clip(easy + shift, 0, 1)).astype(np.float32)

        leader = answers(0.05)
        whole = Score((TaskScore("t", "acc", float(leader.mean()), 1.0, items, leader),))
        earlier = [Trial(0, {}, State.COMPLETE, score=whole)]
        generation = []
        for shift in (-0.1, -0.02, 0.0):
            found = answers(shift)
            seen = [int(draw.items["t"][p]) for unit in draw.units[:40] for _, p in unit]
            part = Score((TaskScore("t", "acc", float(found[seen].mean()), 1.0, tuple(map(str, seen)), found[seen]),))
            generation.append((found, Trial(1, {}, State.PRUNED, part=part, attributes={RACE: {"seen": 40}})))
        errors = standard_errors(draw, None, [t for _, t in generation], earlier)
        assert set(errors) == {0, 1, 2}
        for i, (found, trial) in enumerate(generation):
            estimate = leader.mean() + draw.estimate(trial.part, 40) - draw.estimate(whole, 40)
            inside.append(abs(estimate - found.mean()) < 1.96 * errors[i])
    assert 0.91 < np.mean(inside) < 0.99
