"""What a search that keeps different candidates ends with: its candidates, the same after any way to get there."""

import numpy as np
import pytest

from evomerge.evaluation.draw import Draw
from evomerge.optimizers import OPTIMIZERS, make_optimizer
from evomerge.optimizers.sharing import fitness
from evomerge.score import Score, State, TaskScore
from evomerge.study.archive import Archive
from evomerge.study.budget import Budget
from evomerge.study.goals import Goals, Limit
from evomerge.study.known import KnownResults
from evomerge.study.loop import Search
from evomerge.study.scoring import Scoring
from evomerge.study.store import Store
from evomerge.study.watcher import Silent
from tests.study.shuffled import Killed
from tests.study.test_race_loop import ITEMS, PARAMETERS, WEIGHTS, Pool, decode, results

SAMPLERS = [n for n, entry in OPTIMIZERS.items() if entry.whole]


def archive(url, budget, pool=None, name="s", sampler="m2n2", asynchronous=False, goals=None):
    """A search's archive, and its candidates."""
    study = Store(url, create=True).create(name, PARAMETERS, {})
    like = Score(tuple(TaskScore(t, "acc", 0.0, w) for t, w in WEIGHTS.items()))
    known = KnownResults(study.results, Draw.of(ITEMS, WEIGHTS, 0), dict.fromkeys(ITEMS, name), like)
    optimizer = make_optimizer(sampler, PARAMETERS, 7, tasks=2, population=8, asynchronous=asynchronous)
    trials, _ = Search(
        study, optimizer, decode, lambda r: r.hash(), Scoring(pool or Pool(), known), Budget.parse(str(budget)),
        Silent(), asynchronous=asynchronous, **({"goals": goals} if goals else {}),
    ).run()  # fmt: skip
    found = Archive.of(optimizer, trials)
    assert found is not None
    return found, trials


def shown(found):
    return [(m.trial.number, m.tasks, m.cell, m.fitness) for m in found.members], found.grid


def failing(weights):
    return "no" if weights[0] > 0.8 else None


@pytest.mark.ci
@pytest.mark.parametrize("sampler", SAMPLERS)
def test_it_is_the_same_after_resuming_and_with_more_workers(url, sampler):
    """Candidates of a generation that the budget cut short are in it (of the 21st to 23rd here)."""
    one, trials = archive(url, 23, Pool(fails=failing), "one", sampler)
    assert len(trials) == 23 and any(t.state is State.FAIL for t in trials)
    with pytest.raises(Killed):
        archive(url, 23, Pool(3, seed=5, fails=failing, kill_after=9), "two", sampler)
    two, _ = archive(url, 23, Pool(3, seed=9, fails=failing), "two", sampler)
    again, _ = archive(url, 23, Pool(), "two", sampler)  # read, not run
    assert shown(one) == shown(two) == shown(again)
    grown, _ = archive(url, 32, Pool(fails=failing), "two", sampler)
    straight, _ = archive(url, 32, Pool(fails=failing), "three", sampler)
    assert shown(grown) == shown(straight) != shown(one)


@pytest.mark.ci
def test_the_last_candidates_are_in_it(url):
    """Against NumPy: the best of each cell of all that were scored, those of the cut generation among them."""
    found, trials = archive(url, 23, sampler="map-elites")
    values = np.array([[t.value for t in trial.score.tasks] for trial in trials])
    low, high = np.array(found.grid.low), np.array(found.grid.high)
    cells = np.clip(((values - low) / (high - low) * 10 + 1e-6).astype(int), 0, 9)
    assert found.tasks == ("easy", "hard") and found.grid.cells == (10, 10)
    best = {}
    for trial, cell in zip(trials, map(tuple, cells.tolist()), strict=True):
        if cell not in best or trial.value > best[cell].value:
            best[cell] = trial
    assert {m.cell: m.trial.number for m in found.members} == {c: t.number for c, t in best.items()}
    assert [m.trial.value for m in found.members] == sorted((t.value for t in best.values()), reverse=True)
    assert any(m.trial.number >= 16 for m in found.members)
    # What it was told of whole generations alone is another archive.
    fewer, _ = archive(url, 16, sampler="map-elites", name="fewer")
    assert fewer.grid.coverage != found.grid.coverage


@pytest.mark.ci
@pytest.mark.parametrize("sampler", [n for n in SAMPLERS if not OPTIMIZERS[n].batches])
def test_candidates_are_known_by_their_place_among_the_tells(url, sampler):
    """Without generations these are in another order than the asks."""
    found, trials = archive(url, 30, Pool(5, seed=3), sampler=sampler, asynchronous=True)
    assert [t.told for t in trials] != [t.number for t in trials]
    for member in found.members:
        right = [results(decode(member.trial.params), task).mean() for task in ITEMS]
        assert list(member.tasks.values()) == pytest.approx(right)
    again, _ = archive(url, 30, Pool(5), sampler=sampler, asynchronous=True)
    assert shown(again) == shown(found)


def limited(low):
    return Goals(limits=(Limit("easy", low=low),), constraints=("easy",))


@pytest.mark.ci
@pytest.mark.parametrize("sampler", SAMPLERS)
def test_those_that_miss_a_constraint_are_in_it_only_where_all_do(url, sampler):
    """Those of the generation that the budget cut short too."""
    found, trials = archive(url, 23, sampler=sampler, goals=limited(0.34))
    missed = [bool(t.violation) for t in trials]
    assert any(missed) and not all(missed)
    assert found.members and not any(m.trial.violation for m in found.members)
    assert found.members[0].trial.value == max(t.value for t in trials if not t.violation)
    none, trials = archive(url, 23, sampler=sampler, name="none", goals=limited(3.0))
    how_far = [m.trial.violation for m in none.members]
    assert how_far == sorted(how_far) and how_far[0] == min(t.violation for t in trials) > 0
    if sampler == "m2n2":
        items = np.array([np.concatenate([t.results for t in m.trial.score.tasks]) for m in found.members])
        assert [m.fitness for m in found.members] == pytest.approx(fitness(items.astype(float)))
    else:
        values = [m.trial.value for m in found.members]
        assert found.grid.offset == 0 and found.grid.qd_score == pytest.approx(sum(values))
        assert (none.grid.offset, none.grid.qd_score, none.grid.norm_qd_score) == (0, 0, 0)
        assert none.grid.coverage == pytest.approx(len(none.members) / 100)


@pytest.mark.ci
def test_a_constrained_one_is_the_same_after_resuming(url):
    with pytest.raises(Killed):
        archive(url, 23, Pool(3, seed=5, kill_after=9), "two", "m2n2", goals=limited(0.34))
    two, _ = archive(url, 23, Pool(3, seed=9), "two", "m2n2", goals=limited(0.34))
    assert shown(two) == shown(archive(url, 23, name="one", goals=limited(0.34))[0])


def test_others_keep_nothing(url):
    optimizer = make_optimizer("cma", PARAMETERS, 7)
    assert Archive.of(optimizer, []) is None
