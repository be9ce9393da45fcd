"""The search loop with a race: one sequence for any number of workers, after any kill, and nothing is scored twice."""

import contextlib

import numpy as np
import pytest

from evomerge.evaluation.draw import Draw
from evomerge.optimizers import OPTIMIZERS, make_optimizer
from evomerge.recipe import InputModel, Recipe
from evomerge.score import Score, State, TaskScore, cost
from evomerge.space import Categorical, Float
from evomerge.study.budget import Budget
from evomerge.study.candidates import best
from evomerge.study.contest import Rules
from evomerge.study.job import Answer
from evomerge.study.known import KnownResults
from evomerge.study.loop import Search
from evomerge.study.raced import Raced
from evomerge.study.scoring import Scoring
from evomerge.study.store import Store
from evomerge.study.watcher import Silent
from tests.study.shuffled import Killed, ShuffledPool, a_second_each, weights

PARAMETERS = tuple(Float(f"weight.{name}", 0.0, 1.0, 0.5) for name in "abcd")
ITEMS = {"easy": tuple(f"e{i}" for i in range(60)), "hard": tuple(f"h{i}" for i in range(140))}
WEIGHTS = {"easy": 1.0, "hard": 3.0}
OPTIMUM = np.array([0.2, 0.9, 0.6, 0.4])
LEVELS = {t: np.random.default_rng(len(ids)).uniform(-3, 1, len(ids)) for t, ids in ITEMS.items()}


def decode(params):
    models = [InputModel(model=n, parameters={"weight": params[f"weight.{n}"]}) for n in "abcd"]
    return Recipe(merge_method="linear", models=models)


def results(recipe, task):
    """Of every item of a task: right where the merge is near enough to the optimum for it."""
    return (-2 * np.abs(np.array(weights(recipe)) - OPTIMUM).sum() > LEVELS[task]).astype(np.float32)

OFTEN = ("cma", "thompson", "evolution", "tpe")  # the others in the slow tier; gp is too slow, and made like tpe
SAMPLERS = [n if n in OFTEN else pytest.param(n, marks=pytest.mark.slow) for n in OPTIMIZERS if n != "gp"]


class Pool(ShuffledPool):
    """Counts the items that were run."""

    def __init__(self, size=1, seed=0, fails=lambda weights: None, kill_after=None):
        super().__init__(self._scored, size, seed, kill_after)
        self.items, self._fails = 0, fails

    def _scored(self, job):
        reason = self._fails(np.array(weights(job.recipe)))
        if reason:
            return Answer(None, reason)
        tasks = []
        for task, ids in ITEMS.items():
            places = range(len(ids)) if job.only is None else job.only.get(task, ())
            if places:
                self.items += len(places)
                found = results(job.recipe, task)[list(places)]
                ids = tuple(ids[p] for p in places)
                tasks.append(TaskScore(task, "acc", float(found.mean()), WEIGHTS[task], ids, found))
        return Answer(Score(tuple(tasks)), None, {"evaluate": 1.0})


def search(
    url, budget, pool=None, name="s", sampler="cma", seed=7, race=True, versions="v", parameters=PARAMETERS,
    estimates=None,
):  # fmt: skip
    pool = pool or Pool()
    study = Store(url, create=True).create(name, parameters, {})
    draw = Draw.of(ITEMS, WEIGHTS, 0)
    like = Score(tuple(TaskScore(t, "acc", 0.0, w) for t, w in WEIGHTS.items()))
    known = KnownResults(study.results, draw, dict.fromkeys(ITEMS, versions), like)
    optimizer = make_optimizer(sampler, parameters, seed, tasks=2)
    race = race and not optimizer.whole
    return Search(
        study, optimizer, decode, lambda r: r.hash(), Scoring(pool, known), Budget.parse(str(budget)), Silent(),
        race=Raced(draw, Rules.over(draw.weights), estimates) if race else None,
    ).run()  # fmt: skip


def sequence(trials):
    return [(t.number, dict(t.params), t.state, t.value, t.estimate, t.seen, t.stopped, t.cost) for t in trials]


@pytest.mark.ci
@pytest.mark.parametrize("sampler", SAMPLERS)
def test_any_number_of_workers_gives_the_same_sequence(url, sampler):
    one, _ = search(url, 20, Pool(1), "one", sampler, versions="one")
    many, _ = search(url, 20, Pool(7, seed=3), "many", sampler, versions="many")
    assert sequence(one) == sequence(many)
    assert len(one) > 20 or OPTIMIZERS[sampler].whole  # which is told of all items of each, and so not raced
    assert 18 < cost(one) <= 20 + 1e-6


@pytest.mark.ci
def test_the_budget_is_what_was_run(url):
    pool = Pool()
    trials, why = search(url, 25, pool)
    assert why == "budget" and pool.items == round(cost(trials) * 200)
    assert {t.state for t in trials} == {State.COMPLETE, State.PRUNED}
    assert all(t.score.items == 200 for t in best(trials))
    for trial in trials:
        if trial.state is State.PRUNED:
            had = [(t.task, ITEMS[t.task].index(i)) for t in trial.part.tasks for i in t.items]
            assert len(had) == trial.seen
            found = np.array([results(decode(trial.params), task)[p] for task, p in had])
            weights = np.array([WEIGHTS[task] / len(ITEMS[task]) for task, _ in had])
            assert trial.estimate == pytest.approx(weights @ found / weights.sum())


def test_each_generation_begins_with_the_items_after_those_that_the_one_before_began_with(url):
    trials, _ = search(url, 12)
    units = Draw.of(ITEMS, WEIGHTS, 0).units
    size, first = make_optimizer("cma", PARAMETERS, 0).generation, Rules.over(np.full(200, 1 / 200)).ends[0]
    assert len(trials) > 3 * size
    for trial in trials:
        if trial.state is State.PRUNED:
            start = trial.number // size * first % 200
            had = {(t.task, ITEMS[t.task].index(i)) for t in trial.part.tasks for i in t.items}
            assert had == {unit for (unit,) in (units + units)[start : start + trial.seen]}


@pytest.mark.slow
def test_a_race_finds_more_for_the_same(url):
    """On five seeds; a wider claim is a benchmark's to make."""
    found = {}
    for race in (True, False):
        found[race] = [
            best(search(url, 25, name=f"{race}{s}", seed=s, race=race, versions=f"{race}{s}")[0])[0].value
            for s in range(5)
        ]
    assert np.mean(found[True]) > np.mean(found[False])


OFTEN = pytest.param(tuple(range(1, 60, 2)), marks=pytest.mark.slow)


@pytest.mark.ci
@pytest.mark.parametrize("kills", [(1,), (5, 40), (13, 27, 33, 71), OFTEN])
def test_killed_and_started_again_it_ends_the_same(url, kills):
    undisturbed, _ = search(url, 20, name="undisturbed", versions="u")
    for after in kills:
        try:
            search(url, 20, Pool(3, seed=after, kill_after=after), "killed", versions="k")
        except Killed:
            continue
    ended, _ = search(url, 20, name="killed", versions="k")
    assert sequence(ended) == sequence(undisturbed)
    stored = [t for t in Store(url).open("killed").trials() if t.state is not State.RUNNING]
    assert sequence(stored) == sequence(ended)


@pytest.mark.ci
def test_a_larger_budget_goes_on(url):
    first, _ = search(url, 15)
    more, _ = search(url, 30)
    assert sequence(more)[: len(first)] == sequence(first) and 28 < cost(more) <= 30 + 1e-6
    again, _ = search(url, 30, Pool(kill_after=0))  # nothing is run
    assert sequence(again) == sequence(more)


@pytest.mark.ci
def test_budgets_that_grow_one_by_one_are_never_overspent(url):
    pool, before = Pool(), []
    for budget in range(3, 13):
        trials, _ = search(url, budget, pool)
        assert cost(trials) <= budget + 1e-6
        # What ended stays as it was.
        ended = {t.number: t for t in Store(url).open("s").trials()}
        assert all(sequence([ended[t.number]]) == sequence([t]) for t in before)
        before = trials
    assert pool.items <= 12 * 200 + 1


@pytest.mark.slow
@pytest.mark.parametrize("after", range(1, 40, 3))
def test_a_larger_budget_after_a_kill_scores_nothing_unpaid(url, after):
    pool = Pool(kill_after=after)
    with contextlib.suppress(Killed):
        search(url, 5, pool)
    more = Pool()
    trials, _ = search(url, 8, more)
    assert cost(trials) <= 8 + 1e-6
    # What a kill cut off in a worker is run again; nothing else is.
    assert more.items + pool.items <= round(cost(trials) * 200) + 200


@pytest.mark.ci
def test_time_ends_a_race_with_a_winner(url, monkeypatch):
    """Every answer takes a second; the first block of the first generation is all that there is time for."""
    slow, _ = a_second_each(Pool, monkeypatch)
    trials, why = search(url, "5s", slow())
    assert why == "budget" and best(trials) and {t.state for t in trials} == {State.COMPLETE, State.PRUNED}
    again, _ = search(url, "5s", slow())
    assert sequence(again) == sequence(trials)
    more, _ = search(url, "40s", slow())
    assert sequence(more)[: len(trials)] == sequence(trials) and len(more) > len(trials)


@pytest.mark.ci
def test_the_best_of_a_generation_is_told_as_its_best(url, monkeypatch):
    """Though the others are told by the items that they had, which may be easy ones."""
    told = []
    tell = Search.told
    monkeypatch.setattr(Search, "told", lambda self, g, e, r: told.append((g, tell(self, g, e, r))) or told[-1][1])
    search(url, 30)
    alone = 0
    for generation, values in told:
        complete = [i for i, t in enumerate(generation) if t.state is State.COMPLETE]
        if len(complete) == 1 and len(generation) > 1:
            alone += 1
            assert max(values) == values[complete[0]]
    assert alone and len(told) > 3


def test_failures_count_and_are_told(url):
    trials, _ = search(url, 30, Pool(fails=lambda w: "too heavy" if w.sum() > 2.2 else None))
    failed = [t for t in trials if t.state is State.FAIL]
    assert failed and all(t.cost > 0 and t.reason == "too heavy" for t in failed)
    assert 28 < cost(trials) <= 30 + 1e-6


@pytest.mark.ci
def test_a_second_study_on_the_same_database_scores_nothing_again(url):
    search(url, 20, name="first")
    pool = Pool()
    trials, _ = search(url, 3, pool, name="second")
    first = Store(url).open("first").trials()
    assert pool.items <= 3 * 200
    known = [t for t in trials if t.cost == 0.0]
    assert len(known) >= len(first) - 8 and dict(known[0].params) == dict(first[0].params)
    # What it finds known is no reason to end: another study has spent nothing yet.
    long, why = search(url, 25, name="long", versions="v")
    assert why == "budget" and len(long) > len(first)
    # Another way to score knows nothing of it.
    other = Pool()
    search(url, 3, other, name="third", versions="other")
    assert other.items > 400


@pytest.mark.ci
def test_equal_candidates_are_scored_once_and_a_known_space_ends_the_search(url):
    pool = Pool()
    parameters = tuple(Categorical(f"weight.{n}", ("0.25", "0.75"), "0.25") for n in "abcd")
    study = Store(url, create=True).create("s", parameters, {})
    draw = Draw.of(ITEMS, WEIGHTS, 0)
    like = Score(tuple(TaskScore(t, "acc", 0.0, w) for t, w in WEIGHTS.items()))
    known = KnownResults(study.results, draw, dict.fromkeys(ITEMS, "v"), like)
    trials, why = Search(
        study, make_optimizer("random", parameters, 0), lambda p: decode({k: float(v) for k, v in p.items()}),
        lambda r: r.hash(), Scoring(pool, known), Budget.parse("100"), Silent(),
    ).run()  # fmt: skip
    assert why == "known" and pool.items == 16 * 200 and cost(trials) == 16
    assert len({t.attributes["recipe_hash"] for t in trials}) == 16
    by_hash = {}
    for t in trials:
        assert by_hash.setdefault(t.attributes["recipe_hash"], t.value) == pytest.approx(t.value)


def test_optuna_shows_stopped_candidates_as_pruned(url):
    import optuna

    search(url, 10)
    theirs = optuna.load_study(study_name="s", storage=url)
    pruned = [t for t in theirs.trials if t.state.name == "PRUNED"]
    assert pruned and all(len(t.intermediate_values) == 1 for t in pruned)
    assert theirs.best_value == best(Store(url).open("s").trials())[0].value
