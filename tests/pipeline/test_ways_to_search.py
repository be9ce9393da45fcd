"""Searches without generations, from another's best, and that keep different candidates: on real models."""

import pytest
import yaml

from evomerge import presets
from evomerge.pipeline.one_space import WORKERS
from evomerge.pipeline.options import Options
from evomerge.pipeline.plan import Plan
from evomerge.score import State
from evomerge.study.asynchronous import TOLD
from evomerge.study.budget import Budget
from evomerge.study.store import Store

EVALUATOR = {
    "include_path": str(presets.folder("evaluators") / "zoo"),
    "tasks": [
        {"name": "kovesh_problems", "metric": "exact_match", "greedy_likelihood": True},
        {"name": "kovesh_direction", "metric": "acc"},
    ],
    "splits": {
        "search": {"share": 0.3, "items": 80},
        "select": {"share": 0.3, "items": 30},
        "test": {"share": 0.3, "items": 40},
    },
    "batch_size": 128,
}


@pytest.fixture
def search(here, tmp_path):
    def run(*more, budget=6, out="out", name="s", check=True):
        path = tmp_path / "e.yaml"
        path.write_text(yaml.safe_dump(EVALUATOR))
        return here("search", "--evaluator", path, "--budget", budget, "--study", name, "--out", tmp_path / out,
                    "--workers", 0, "--json", *more, check=check)  # fmt: skip

    return run


def trials(tmp_path, out="out", name="s"):
    return Store(f"sqlite:///{tmp_path / out / 'study.db'}").open(name).trials()


@pytest.mark.ci
@pytest.mark.timeout(300)
def test_asynchronous_search_goes_on_and_is_not_resumed_the_other_way(search, tmp_path):
    first = search("--async").result
    before = trials(tmp_path)
    assert first["candidates"]["pruned"] > 0 and 5 < sum(t.cost for t in before) <= 6
    assert sorted(t.attributes[TOLD] for t in before) == list(range(len(before)))
    assert Store(f"sqlite:///{tmp_path / 'out' / 'study.db'}").open("s").notes()[WORKERS] == 1
    search("--async", budget=8)
    after = trials(tmp_path)
    assert [(t.number, t.params, t.value) for t in after[: len(before)]] == [
        (t.number, t.params, t.value) for t in before
    ]
    assert len(after) > len(before) and all(t.state is not State.RUNNING for t in after)
    refused = search(budget=9, check=False)
    assert refused.returncode == 2 and "async" in refused.result["error"]
    whole = search("--async", "--sampler", "cma-me", out="other", check=False)
    assert whole.returncode == 2 and "must be told whole generations" in whole.result["error"]


def test_generations_are_as_large_as_there_are_workers_where_none_waits_for_another(small_evaluator, tmp_path):
    def generation(workers, **options):
        plan = Plan(
            Options(
                budget=Budget(candidates=5), evaluator=str(small_evaluator), study="s", out=tmp_path / "o",
                **{"sampler": "cma", **options},
            )
        )
        plan.workers = workers
        made = [plan.optimizer(plan.space), plan.control_optimizer(plan.space, plan.sampler)]
        (found,) = {m.generation for m in made}
        return found

    own = generation(64)
    assert own < 20 == generation(64, asynchronous=True, population=20)
    assert generation(64, asynchronous=True) == generation(64, asynchronous=True, sampler="catcma") == 64
    assert generation(2, asynchronous=True) == generation(0, asynchronous=True) == own
    # It learns from each as it comes.
    assert generation(64, asynchronous=True, sampler="tpe") == generation(2, asynchronous=True, sampler="tpe")


@pytest.mark.slow
@pytest.mark.timeout(300)
@pytest.mark.parametrize("sampler", ["m2n2", "map-elites"])
def test_searches_that_keep_different_ones(search, tmp_path, sampler):
    result = search("--sampler", sampler, "--no-starts").result
    assert result["candidates"] == {"complete": 6, "pruned": 0, "failed": 0}
    again = search("--sampler", sampler, "--no-starts", budget=10).result
    assert again["candidates"]["complete"] == 10
    raced = search("--sampler", sampler, "--fidelity", "race", out="raced", check=False)
    assert raced.returncode == 2 and f"sampler {sampler} needs the result of every item" in raced.result["error"]


@pytest.mark.ci
@pytest.mark.timeout(300)
def test_a_warm_start_begins_from_the_best_and_keeps_what_it_read(search, tmp_path):
    search("--fidelity", "full", budget=12, out="first", name="first")
    old = trials(tmp_path, "first", "first")
    best = max(old, key=lambda t: (t.value, -t.number))
    asked = ("--warm-start", tmp_path / "first", "--fidelity", "full")
    told = search(*asked, budget=8, out="second", name="second")
    assert "begins from the 4 best candidates" in told.stderr
    found = trials(tmp_path, "second", "second")
    assert dict(found[0].params) == dict(best.params)
    # The first one grows, even vanishes: the second goes on as it began.
    search("--fidelity", "full", budget=16, out="first", name="first")
    search(*asked, budget=14, out="second", name="second")
    more = trials(tmp_path, "second", "second")
    assert [t.params for t in more[: len(found)]] == [t.params for t in found] and len(more) > len(found)
    # By name in the same database.
    search("--warm-start", "first", "--storage", tmp_path / "first" / "study.db", budget=3, out="third", name="third")


@pytest.mark.ci
@pytest.mark.parametrize(
    ("args", "words"),
    [
        (["--warm-start", "nowhere"], ["--warm-start nowhere", "neither", "study"]),
        (["linear", "--warm-start", "first"], ["--warm-start", "another space", "method", "one with the same sources"]),
    ],
)
def test_bad_warm_starts_are_one_message(search, tmp_path, args, words, monkeypatch):
    monkeypatch.chdir(tmp_path)
    search(budget=1, out="first", name="first")
    done = search(*args, "--storage", tmp_path / "first" / "study.db", out="second", name="second", check=False)
    assert done.returncode == 2, done.stderr
    assert len(done.result["error"].splitlines()) == 1
    for word in words:
        assert word in done.result["error"], done.result["error"]
