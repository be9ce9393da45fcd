"""The loop without generations: no worker waits, nothing is lost or counted twice, and what goes on goes on."""

import random

import numpy as np
import pytest

from evomerge.errors import StudyError
from evomerge.evaluation.draw import Draw
from evomerge.optimizers import OPTIMIZERS, make_optimizer
from evomerge.score import TOLD, Score, State, TaskScore, cost
from evomerge.study.asynchronous import AFTER
from evomerge.study.budget import Budget
from evomerge.study.candidates import best
from evomerge.study.contest import RACED_OUT, SETTLED, Rules
from evomerge.study.job import Answer
from evomerge.study.known import KnownResults
from evomerge.study.loop import Search
from evomerge.study.raced import Raced
from evomerge.study.scoring import Scoring
from evomerge.study.store import Store
from evomerge.study.watcher import Silent
from evomerge.study.window import Window
from tests.study.shuffled import Killed, a_second_each
from tests.study.test_race_loop import ITEMS, PARAMETERS, WEIGHTS, Pool, decode

# But "gp", which is slow, and like "tpe" in all but its model.
SAMPLERS = [n for n, entry in OPTIMIZERS.items() if not entry.batches and n != "gp"]
# One that learns from generations and one that breeds from whoever there is; the others are in the slow tier.
OFTEN = ("cma", "thompson", "evolution")


def often(samplers):
    return [n if n in OFTEN else pytest.param(n, marks=pytest.mark.slow) for n in samplers]




class Busy(Pool):
    """Counts how many jobs it has whenever it is waited for."""

    def __init__(self, *args, **options):
        super().__init__(*args, **options)
        self.loads = []

    def wait(self):
        self.loads.append(len(self.jobs))
        return super().wait()


def search(
    url, budget, pool=None, name="s", sampler="cma", race=True, seed=7, asynchronous=True, population=None, rules=None,
    **options,
):  # fmt: skip
    study = Store(url, create=True).create(name, PARAMETERS, {})
    draw = Draw.of(ITEMS, WEIGHTS, 0)
    like = Score(tuple(TaskScore(t, "acc", 0.0, w) for t, w in WEIGHTS.items()))
    known = KnownResults(study.results, draw, dict.fromkeys(ITEMS, "v"), like)
    optimizer = make_optimizer(sampler, PARAMETERS, seed, asynchronous=asynchronous, tasks=2, population=population)
    race = race and not optimizer.whole
    return Search(
        study, optimizer, decode, lambda r: r.hash(), Scoring(pool or Pool(), known), Budget.parse(str(budget)),
        Silent(), race=Raced(draw, rules or Rules.over(draw.weights)) if race else None, asynchronous=asynchronous,
        **options,
    ).run()  # fmt: skip


def check_record(trials):
    """Every candidate ended once, in a recorded order; nothing was asked for before what it is said to know."""
    assert [t.number for t in trials] == list(range(len(trials)))
    assert all(t.state is not State.RUNNING for t in trials)
    told = {t.attributes[TOLD]: t for t in trials}
    assert sorted(told) == list(range(len(trials)))
    for t in trials:
        assert t.attributes[AFTER] <= t.attributes[TOLD]


@pytest.mark.slow
@pytest.mark.parametrize("race", [True, False])
@pytest.mark.parametrize("sampler", often(SAMPLERS))
def test_a_search_spends_its_budget_and_no_worker_waits(url, sampler, race):
    pool = Busy(5, seed=3)
    trials, stopped = search(url, 30, pool, "one", sampler, race)
    check_record(trials)
    assert stopped == "budget" and 28.5 <= cost(trials) <= 30 + 1e-9
    # One more than there are workers, until the budget is out.
    assert min(pool.loads[: -len(trials) // 4]) >= 5
    stored = Store(url).open("one").trials()
    assert [(t.number, t.state, t.value) for t in stored] == [(t.number, t.state, t.value) for t in trials]


@pytest.mark.ci
@pytest.mark.parametrize("race", [True, pytest.param(False, marks=pytest.mark.slow)])
@pytest.mark.parametrize("sampler", often(["cma", "thompson", "catcma", "evolution", "tpe", "m2n2"]))
def test_killed_anywhere_nothing_is_lost_or_counted_twice(url, sampler, race):
    draw = random.Random(5)
    before = []
    blocks = race and not OPTIMIZERS[sampler].whole
    for kill in range(5):
        with pytest.raises(Killed):
            search(url, 25, Pool(4, kill, kill_after=draw.randrange(2, 12 if blocks else 5)), "s", sampler, race)
        stored = Store(url).open("s").trials()
        ended = [(t.number, dict(t.params), t.state, t.value, t.cost) for t in stored if t.state is not State.RUNNING]
        assert all(e in ended for e in before) and [t.number for t in stored] == list(range(len(stored)))
        before = ended
    assert before
    trials, _ = search(url, 25, Pool(3, seed=9), "s", sampler, race)
    check_record(trials)
    assert 23.5 <= cost(trials) <= 25 + 1e-9
    found = [(t.number, dict(t.params), t.state, t.value, t.cost) for t in trials]
    assert all(e in found for e in before)
    # Finished, it is read, and not run.
    pool = Pool(3)
    again, _ = search(url, 25, pool, "s", sampler, race)
    assert pool.run == 0 and len(again) == len(trials)


@pytest.mark.ci
def test_a_failed_candidate_is_told_and_costs_what_it_was_scored_on(url):
    trials, _ = search(url, 20, Pool(3, fails=lambda w: "no" if w[0] > 0.6 else None), "s")
    failed = [t for t in trials if t.state is State.FAIL]
    assert failed and all(t.reason == "no" for t in failed)
    check_record(trials)


@pytest.mark.slow
@pytest.mark.parametrize("workers", [4, 64])
def test_it_finds_what_generations_find(url, workers):
    """Final values over seeds, in items of equal number, with generations as large as there are workers."""
    found = {}
    for asynchronous in (True, False):
        found[asynchronous] = [
            best(
                search(
                    url, 60, Pool(workers, seed=s), f"{asynchronous}-{s}", seed=s, asynchronous=asynchronous,
                    population=workers,
                )[0]
            )[0].value
            for s in range(5)
        ]  # fmt: skip
    assert abs(np.mean(found[True]) - np.mean(found[False])) < 0.05, found


QUICK = [(1, 1), (1, 10), (1, 64), (2, 10), (2, 64), (10, 64)]
SLOW = [(2, 1), (10, 1), (10, 10), (20, 1), (20, 10), (20, 64)]


@pytest.mark.ci
@pytest.mark.parametrize(("budget", "workers"), [*QUICK, *(pytest.param(*s, marks=pytest.mark.slow) for s in SLOW)])
def test_whatever_the_budget_somebody_has_all_items(url, budget, workers):
    """The items of one are kept for the best under way, which the others cannot spend."""
    trials, stopped = search(url, budget, Pool(workers, seed=budget))
    check_record(trials)
    assert stopped == "budget" and budget - 1 < cost(trials) <= budget + 1e-9
    (winner, *_) = best(trials)
    # It was not just anybody: few of those that stopped were better on the items that they had.
    draw = Draw.of(ITEMS, WEIGHTS, 0)
    better = [t for t in trials if t.state is State.PRUNED and t.estimate > draw.estimate(winner.score, t.seen)]
    assert len(better) <= len(trials) / 5
    # Read again it is as it was; a larger budget goes on.
    assert len(search(url, budget, Pool(workers))[0]) == len(trials)
    more, _ = search(url, budget + 2, Pool(workers, seed=1))
    check_record(more)
    assert more[0].params == trials[0].params and budget + 1 < cost(more) <= budget + 2 + 1e-9


@pytest.mark.ci
@pytest.mark.parametrize("kills", [(12, 12, 3), (20, 12)])
def test_killed_with_the_last_of_the_budget_under_way_somebody_has_all_items(url, kills):
    """Those that are run again must not be given what is kept for the best."""
    for kill in kills:
        with pytest.raises(Killed):
            search(url, 4, Pool(64, kill, kill_after=kill))
    trials, _ = search(url, 4, Pool(2, seed=1))
    check_record(trials)
    assert best(trials) and 3 < cost(trials) <= 4 + 1e-9


@pytest.mark.ci
@pytest.mark.parametrize("answers", [1, 3, 40])
def test_when_time_is_out_the_best_is_finished(url, answers, monkeypatch):
    """Each answer takes a second; time is out while there are only first blocks, and later."""
    slow, now = a_second_each(Pool, monkeypatch)
    trials, stopped = search(url, f"{answers}s", slow(10, seed=2))
    check_record(trials)
    assert stopped == "budget"
    assert best(trials)
    # What is out comes back, and the best gets its other blocks: no more than there are looks.
    assert answers <= now[0] <= answers + 11 + len(Rules.over(np.full(200, 1 / 200)).ends)


def test_where_the_best_fails_another_is_finished(url):
    """It is not known beforehand which will: the first that is to have all items does, where the budget allows two."""
    failed = []

    class Fails(Pool):
        def _scored(self, job):
            # Whoever is the first to be given a second block.
            if not failed and len(job.only["hard"]) > 14 + 1:
                failed.append(job)
                return Answer(None, "no")
            return super()._scored(job)

    trials, _ = search(url, 6, Fails(10, seed=3))
    check_record(trials)
    assert best(trials) and cost(trials) <= 6 + 1e-9


@pytest.mark.ci
def test_those_raced_out_are_told_below_the_parents(url, monkeypatch):
    """Of the last generation's worth, whatever their estimates are."""
    told = []
    tell = Search.tell
    monkeypatch.setattr(Search, "tell", lambda s, p, v, t: (told.extend(zip(v, t, strict=True)), tell(s, p, v, t)))
    draw = Draw.of(ITEMS, WEIGHTS, 0)
    rules = Rules.over(draw.weights, drop=0.4, reliability=2.0)  # nothing is ever settled
    search(url, 90, Pool(5, seed=1), rules=rules)
    out = [i for i, (_, t) in enumerate(told) if t.stopped == RACED_OUT]
    assert len(out) > 10
    optimizer = make_optimizer("cma", PARAMETERS, 7, asynchronous=True)
    size, parents = optimizer.generation, optimizer.parents
    for i in out:
        recent = sorted((v for v, _ in told[:i][-size:]), reverse=True)
        assert told[i][0] < recent[parents - 1]


@pytest.mark.ci
def test_the_other_way_is_refused(url):
    search(url, 5, name="one")
    with pytest.raises(StudyError, match="begun with --async, now it is without"):
        search(url, 9, name="one", asynchronous=False)
    search(url, 12, name="two", asynchronous=False)
    with pytest.raises(StudyError, match="begun without --async, now it is with"):
        search(url, 15, name="two")


def test_equal_candidates_under_way_are_charged_once(url):
    """Random draws on a grid of few points: twins are frequent, and cost nothing."""
    trials, _ = search(url, 15, Pool(6), "s", race=False, sampler="random")
    hashes = {}
    for t in trials:
        hashes.setdefault(t.attributes["recipe_hash"], []).append(t.cost)
    assert all(sum(costs) <= 1 + 1e-9 for costs in hashes.values())


def window(count=200, parents=2, size=6):
    return Window(Rules.over(np.full(count, 1 / count)), size, parents)


def test_a_window_stops_what_it_has_seen_enough_of():
    random = np.random.default_rng(0)
    ends = Rules.over(np.full(200, 1 / 200)).ends
    levels = random.uniform(size=200)
    table = {p: (levels < p).astype(float) for p in (0.2, 0.5, 0.65, 0.8, 0.95)}
    found = window()
    # Each of the first is better than all before it: they go on to the end.
    for number, share in enumerate((0.5, 0.65, 0.8)):
        runner = found.start(number)
        start = 0
        for end in ends:
            why = found.see(number, table[share][start:end])
            start = end
            if why:
                break
        assert runner.seen == 200
        found.end(number)
    # One that is worse on every item stops at the first look.
    found.start(3)
    assert found.see(3, table[0.2][: ends[0]]) in (SETTLED, RACED_OUT)
    found.end(3)
    # So does one that has just what the best so far has; one that may be better goes on.
    found.start(4)
    assert found.see(4, table[0.8][: ends[0]]) == SETTLED
    found.end(4)
    found.start(5)
    assert found.see(5, table[0.95][: ends[0]]) is None


def test_how_many_workers_there_are_does_not_decide_who_goes_on():
    """Of 64 that come to a look at once, as many go on as of 64 that come one by one."""
    count, size = 400, 8
    random = np.random.default_rng(3)
    shares, levels = random.uniform(0.2, 0.8, 64), random.uniform(size=count)
    results = (levels < shares[:, None] + random.normal(0, 0.1, (64, count))).astype(float)
    rules = Rules.over(np.full(count, 1 / count))
    first = rules.ends[0]
    whole = (levels < 0.7).astype(float)
    going = {}
    for together in (True, False):
        found = Window(rules, size, 4)
        found.add(-1, whole)
        if together:
            for number in range(64):
                found.start(number)
        stopped = []
        for number in range(64):
            if not together:
                found.start(number)
            stopped.append(found.see(number, results[number, :first]))
            if not together:
                found.end(number)
        going[together] = [n for n, why in enumerate(stopped) if why is None]
    assert going[True] == going[False]
    # About one of each generation, and those are good ones.
    assert 64 / size / 2 <= len(going[True]) < 64 / size * 2
    assert shares[going[True]].mean() > np.quantile(shares, 0.8)


def test_one_a_little_behind_the_best_so_far_goes_on():
    """As in generations: the best so far is no rival at a look, it is asked whether it can still be passed."""
    count = 400
    random = np.random.default_rng(4)
    levels = random.uniform(size=count)
    rules = Rules.over(np.full(count, 1 / count))
    first = rules.ends[0]
    found = Window(rules, 8, 4)
    for number, share in enumerate((0.1, 0.2, 0.3, 0.6)):
        found.add(number, (levels < share).astype(float))
    # Two of the first block's items less than the best so far, two others more: and one less.
    leader = (levels[:first] < 0.6).astype(float)
    own = leader.copy()
    own[np.flatnonzero(leader == 1)[:3]] = 0
    own[np.flatnonzero(leader == 0)[:2]] = 1
    found.start(9)
    assert found.see(9, own) is None
    # Far behind it stops, and so does the same beside one that is better and not the best so far.
    found.start(10)
    assert found.see(10, (levels[:first] < 0.4).astype(float)) == SETTLED
    found.start(11)
    own[np.flatnonzero(own == 1)[:1]] = 0
    assert found.see(11, own) == SETTLED


@pytest.mark.parametrize("had", [20, 100, 400])
def test_bets_in_a_window_are_against_those_that_ended_last_on_the_items_that_both_have(had):
    """Whether they stopped or have all items."""
    count = 400
    random = np.random.default_rng(1)
    rules = Rules.over(np.full(count, 1 / count), reliability=2.0)  # nothing is ever settled
    found = Window(rules, 6, 2)
    for number in range(8):  # the first two are no longer among the last
        share, items = (0.8, had) if number > 1 else (0.0, count)
        found.add(-1 - number, (random.uniform(size=count) < share).astype(float)[:items])
    found.start(0)
    bad = (random.uniform(size=count) < 0.6).astype(float)
    start, why = 0, None
    for end in rules.ends:
        why = found.see(0, bad[start:end])
        start = end
        if why:
            break
    # Twenty items say too little of 400, however many more it has itself.
    assert (why, start < count) == ((RACED_OUT, True) if had > 20 else (None, False))
    good = found.start(1)
    assert found.see(1, (random.uniform(size=rules.ends[0]) < 0.8).astype(float)) is None and good.race is not None


def test_results_without_bounds_end_the_bets_of_a_window():
    rules = Rules.over(np.full(200, 1 / 200), reliability=2.0)
    found = Window(rules, 4, 2)
    for number in range(4):
        found.add(number, np.full(rules.ends[0], 0.5))
    assert found.start(4).race is not None and found.start(5).race is not None
    assert found.see(4, np.full(rules.ends[0], -0.5)) is None
    found.end(4)
    assert found.start(6).race is None
    assert found.see(5, np.zeros(rules.ends[0])) == RACED_OUT  # whose rivals had bounds
