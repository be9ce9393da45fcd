"""The loop's promises: one sequence for any number of workers, resume by replay, nothing dropped, budgets kept."""

import random

import numpy as np
import pytest

from evomerge.errors import EvoMergeError, StudyError
from evomerge.evaluation.goals import Constraint
from evomerge.optimizers import OPTIMIZERS, make_optimizer
from evomerge.recipe import InputModel, Recipe
from evomerge.score import Score, State, TaskScore, cost
from evomerge.space import Float
from evomerge.study.budget import Budget
from evomerge.study.candidates import best, check_some_complete
from evomerge.study.goals import Goals
from evomerge.study.job import Answer
from evomerge.study.loop import Search
from evomerge.study.scoring import Scoring
from evomerge.study.store import Store
from evomerge.study.watcher import Silent
from tests.study.shuffled import Killed, ShuffledPool, weights

PARAMETERS = tuple(Float(f"weight.{name}", 0.0, 1.0, 0.5) for name in "ab")
# But those that are told of items, and "gp", which is slow and made like "tpe".
SAMPLERS = [n for n, entry in OPTIMIZERS.items() if not entry.whole and n != "gp"]
# The two that searches have by default; the others are killed in the slow tier.
OFTEN = ("cma", "thompson")
KILLED = [n if n in OFTEN else pytest.param(n, marks=pytest.mark.slow) for n in SAMPLERS]
OPTIMUM = np.array([0.2, 0.9])


def decode(params):
    models = [InputModel(model=n, parameters={"weight": params[f"weight.{n}"]}) for n in "ab"]
    return Recipe(merge_method="linear", models=models)


class Pool(ShuffledPool):
    """The score is a smooth function of the recipe's weights."""

    def __init__(self, size=1, seed=0, fails=lambda weights: None, kill_after=None):
        super().__init__(self._scored, size, seed, kill_after)
        self._fails = fails

    def _scored(self, job):
        found = np.array(weights(job.recipe))
        reason = self._fails(found)
        if reason:
            return Answer(None, reason)
        value = 1.0 - float(((found - OPTIMUM) ** 2).sum())
        return Answer(Score((TaskScore("t", "m", value, 1.0, ("i",), np.array([value], np.float32)),)))


def search(url, budget, pool=None, name="s", sampler="cma", watcher=None, **options):
    study = Store(url, create=True).create(name, PARAMETERS, {})
    optimizer = make_optimizer(sampler, PARAMETERS, 7)
    return Search(
        study,
        optimizer,
        decode,
        lambda r: r.hash(),
        Scoring(pool or Pool()),
        Budget.parse(str(budget)),
        watcher or Silent(),
        **options,
    ).run()


def sequence(trials):
    return [(t.number, dict(t.params), t.state, t.value) for t in trials]


@pytest.mark.ci
@pytest.mark.parametrize("sampler", SAMPLERS)
def test_any_number_of_workers_gives_the_same_sequence(url, sampler):
    one, _ = search(url, 30, Pool(1), "one", sampler)
    many, _ = search(url, 30, Pool(7, seed=3), "many", sampler)
    assert sequence(one) == sequence(many) and cost(one) == 30  # equal candidates cost nothing


@pytest.mark.ci
@pytest.mark.parametrize("sampler", KILLED)
def test_killed_anywhere_it_goes_on_to_the_same_sequence(url, sampler):
    whole, _ = search(url, 25, Pool(3), "whole", sampler)
    draw = random.Random(5)
    for kill in range(4):
        with pytest.raises(Killed):
            search(url, 25, Pool(3, seed=kill, kill_after=draw.randrange(1, 5)), "killed", sampler)
    resumed, stopped = search(url, 25, Pool(2, seed=9), "killed", sampler)
    assert sequence(resumed) == sequence(whole) and stopped == "budget"
    stored = Store(url).open("killed").trials()
    assert sequence(stored) == sequence(whole)


@pytest.mark.slow
@pytest.mark.parametrize("sampler", SAMPLERS)
def test_with_constraints_too(url, sampler):
    """As perplexities go: values far below 0, the best of them miss the limit, and some candidates fail."""

    def scored(job):
        a, b = weights(job.recipe)
        if b < 0.1:
            return Answer(None, "too light")
        tasks = (("t", -30.0 - 1e3 * a), ("u", b + a))
        return Answer(Score(tuple(TaskScore(n, "m", v, float(n == "t"), ("i",), np.array([v])) for n, v in tasks)))

    goals = Goals(constraints=(Constraint(of="u", at_least=1.0),)).limited([])
    whole, _ = search(url, 25, ShuffledPool(scored, 3, 0, None), "whole", sampler, goals=goals)
    for kill in (2, 4):
        pool = ShuffledPool(scored, 3, kill, kill)
        with pytest.raises(Killed):
            search(url, 25, pool, "killed", sampler, goals=goals)
    resumed, _ = search(url, 25, ShuffledPool(scored, 2, 9, None), "killed", sampler, goals=goals)
    assert sequence(resumed) == sequence(whole)
    assert [t.violation for t in resumed] == [t.violation for t in whole]
    assert any(t.violation for t in whole) and best(whole)[0].violation == 0


@pytest.mark.ci
def test_a_finished_search_is_not_run_again_and_a_larger_budget_extends_it(url):
    search(url, 10)
    pool = Pool()
    again, _ = search(url, 10, pool)
    assert pool.run == 0 and len(again) == 10
    longer, _ = search(url, 17, pool)
    assert pool.run == 7 and sequence(longer) == sequence(search(url, 17, name="fresh")[0])


def test_failures_are_recorded_told_and_counted(url):
    pool = Pool(fails=lambda w: "too heavy" if w.sum() > 1.2 else None)
    trials, _ = search(url, 40, pool)
    failed = [t for t in trials if t.state is State.FAIL]
    assert len(trials) == 40 and failed and all(t.reason == "too heavy" for t in failed)
    # Told at the worst rank: the search moves away from what fails.
    assert sum(t.number < 20 for t in failed) > sum(t.number >= 20 for t in failed)


def test_when_all_fail_the_reason_is_said():
    trials, _ = [], None
    with pytest.raises(EvoMergeError, match="all 0 candidates failed"):
        check_some_complete(trials)


def test_all_failing_names_the_most_frequent_reason(url):
    trials, _ = search(url, 5, Pool(fails=lambda w: "no memory"))
    with pytest.raises(EvoMergeError, match="all 5 candidates failed; most often: no memory"):
        check_some_complete(trials)


def test_patience_stops_a_search_that_no_longer_improves(url):
    trials, stopped = search(url, 500, patience=20)
    assert stopped == "patience" and len(trials) < 500
    assert len(trials) - 1 - best(trials)[0].number >= 20


def test_a_time_budget_adds_up_over_resumes(url):
    study = Store(url, create=True).create("s", PARAMETERS, {})
    study.note("seconds", 59.9999)
    trials, _ = search(url, "1m")
    assert len(trials) <= 1
    assert Store(url).open("s").notes()["seconds"] >= 59.9999


def test_it_finds_the_optimum(url):
    trials, _ = search(url, 120)
    assert best(trials)[0].value > 0.999


def test_a_study_of_another_version_is_refused(url):
    study = Store(url, create=True).create("s", PARAMETERS, {})
    study.start(0, {"weight.a": 0.1, "weight.b": 0.1}, {})
    with pytest.raises(StudyError, match="other parameters than this version"):
        search(url, 5)


@pytest.mark.ci
def test_the_watcher_hears_of_every_candidate_once(url):
    class Counter(Silent):
        def __init__(self):
            self.heard = []

        def finished(self, trial, replayed):
            self.heard.append((trial.number, replayed))

    first = Counter()
    search(url, 8, watcher=first)
    assert sorted(first.heard) == [(n, False) for n in range(8)]
    second = Counter()
    search(url, 10, watcher=second)
    assert sorted(second.heard) == [(n, n < 8) for n in range(10)]
