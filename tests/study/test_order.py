"""A generation is scored in the order that shares most; what is asked, told and stored stays in the order of asks."""

import random

import pytest

from evomerge.evaluation.goals import DEPTH
from evomerge.recipe import InputModel, Path, Recipe
from evomerge.score import State, Trial
from evomerge.study.candidates import LAYERS, layer_evaluations
from evomerge.study.goals import path_front
from evomerge.study.job import Answer
from evomerge.study.loop import ROUNDS, dealt, path_order
from evomerge.study.store import Store
from tests.study.test_loop import Killed, Pool, search, sequence


def first_weight(recipe):
    return recipe.models[0].parameters["weight"]


def test_workers_that_take_turns_get_neighbours():
    assert dealt("abcdef", 1) == list("abcdef")
    assert dealt("abcdef", 2) == list("adbecf")
    assert dealt("abcdefgh", 3) == list("adgbehcf")
    assert dealt("ab", 5) == list("ab") and dealt("", 2) == []


class Watched(Pool):
    """Writes down the weight by which candidates are ordered, as they come."""

    def __init__(self, *args, **options):
        super().__init__(*args, **options)
        self.came = []

    def submit(self, key, job):
        self.came.append((key, first_weight(job.recipe)))
        super().submit(key, job)


@pytest.mark.ci
@pytest.mark.parametrize("workers", [1, 5])
def test_a_generation_is_ordered_and_the_search_stays_the_same(url, workers):
    plain, _ = search(url, 30, name="plain")
    pool = Watched(workers, seed=2)
    ordered, _ = search(url, 30, pool, "ordered", order=first_weight)
    assert sequence(ordered) == sequence(plain)
    size = 6  # CMA-ES with two parameters
    generations = [pool.came[start : start + size] for start in range(0, 30, size)]
    for first, generation in zip(range(0, 30, size), generations, strict=True):
        assert sorted(number for number, _ in generation) == list(range(first, first + size))
        weights = [weight for _, weight in generation]
        assert weights == dealt(sorted(weights), workers)
    assert [number for number, _ in pool.came] != list(range(30))


@pytest.mark.ci
def test_an_ordered_search_that_is_killed_goes_on_to_the_same_sequence(url):
    whole, _ = search(url, 25, name="whole")
    draw = random.Random(1)
    for kill in range(6):
        with pytest.raises(Killed):
            search(url, 25, Pool(2, seed=kill, kill_after=draw.randrange(1, 5)), "killed", order=first_weight)
    before = {t.number for t in Store(url).open("killed").trials() if t.state is State.COMPLETE}
    pool = Watched(2)
    resumed, _ = search(url, 25, pool, "killed", order=first_weight)
    assert sequence(resumed) == sequence(whole)
    assert not before & {number for number, _ in pool.came}, "nothing that was recorded runs again"


@pytest.mark.ci
def test_where_time_is_the_budget_few_are_ordered_at_once(url):
    """A whole generation could take far longer than what is left."""
    pool = Watched(1)
    trials, _ = search(url, "6s", pool, sampler="random", order=first_weight)
    assert len(trials) == len(pool.came) > ROUNDS
    for start in range(0, len(pool.came), ROUNDS):
        weights = [weight for _, weight in pool.came[start : start + ROUNDS]]
        assert weights == sorted(weights)


def path(*layers, scales=None, embeddings=None):
    return Path.scaled(list(layers), scales, embeddings).recipe(("o_proj",))


def test_paths_that_begin_alike_stand_together():
    a, b, c = ("a", 0), ("a", 1), ("b", 1)
    recipes = {
        "ab": path(a, b), "abc": path(a, b, c), "ac": path(a, c), "scaled": path(a, b, scales=[1, 0.9]),
        "other embeddings": path(a, b, embeddings="b"),
        "no path": Recipe(merge_method="linear", models=[InputModel(model="a", parameters={"weight": 1.0})]),
    }  # fmt: skip
    names = list(recipes)
    for seed in range(3):
        random.Random(seed).shuffle(names)
        found = sorted(names, key=lambda name: path_order(recipes[name]))
        assert found == ["no path", "ab", "abc", "scaled", "ac", "other embeddings"]


class Paths(Pool):
    """Answers with a score, and with what the path took."""

    def wait(self):
        key, answer = super().wait()
        return key, Answer(answer.score, answer.reason, {}, (10, 10 - key % 4) if answer.score else None)


def test_layer_evaluations_are_stored_with_each_candidate(url):
    trials, _ = search(url, 12, Paths(fails=lambda w: "no" if w.sum() > 1.3 else None), "s")
    complete = [t for t in trials if t.score is not None]
    assert 0 < len(complete) < 12
    assert all((LAYERS in t.attributes) == (t.score is not None) for t in trials)
    stored = Store(url).open("s").trials()
    assert layer_evaluations(stored) == layer_evaluations(trials)
    assert layer_evaluations(trials) == (10 * len(complete), sum(10 - t.number % 4 for t in complete))
    assert layer_evaluations([]) is None


def test_the_front_holds_what_no_other_path_beats():
    class Scored:
        def __init__(self, value):
            self.value = value

    found = [(5, 0.4), (3, 0.2), (3, 0.3), (4, 0.3), (6, 0.4), (7, 0.5), (2, -1.0), (2, -1.0)]
    trials = [
        Trial(n, {}, State.COMPLETE, Scored(value), attributes={DEPTH: depth}) for n, (depth, value) in enumerate(found)
    ]
    trials.append(Trial(99, {}, State.FAIL, None, "no", attributes={DEPTH: 1}))
    assert [(t.number, t.attributes[DEPTH], t.value) for t in path_front(trials)] == [
        (6, 2, -1.0), (2, 3, 0.3), (0, 5, 0.4), (5, 7, 0.5),
    ]  # fmt: skip
