"""Races on the real parts: tasks of lm-eval, live models, Ray."""

import json
import shutil

import numpy as np
import pytest
import yaml

from evomerge import presets, zoo
from evomerge.evaluation import load_evaluator, open_evaluator
from evomerge.pipeline import Options
from evomerge.pipeline.one_space import WIDENED, WIDER, _widened
from evomerge.pipeline.plan import Plan, _spelling
from evomerge.score import State
from evomerge.study.budget import Budget
from evomerge.study.candidates import best
from evomerge.study.store import Store
from tests.study.recorded import sequence

EVALUATOR = {
    "include_path": str(presets.folder("evaluators") / "zoo"),
    "tasks": [
        {"name": "kovesh_problems", "weight": 2, "greedy_likelihood": True},
        {"name": "kovesh_direction", "weight": 1},
    ],
    "splits": {
        "search": {"share": 0.3, "items": 100},
        "select": {"share": 0.3, "items": 40},
        "test": {"share": 0.3, "items": 60},
    },
}
UNBOUNDED = """
def score(model, tokenizer, items):
    ids = [tokenizer(i["prompt"], return_tensors="pt").input_ids for i in items]
    return [float(-model(x, labels=x).loss) for x in ids]
"""


@pytest.fixture
def evaluator(tmp_path):
    path = tmp_path / "e.yaml"
    path.write_text(yaml.safe_dump(EVALUATOR))
    return path


def args(evaluator, out, budget=12):
    return ["search", "--evaluator", evaluator, "--budget", budget, "--study", "s", "--out", out, "--json"]


def raced(out):
    store = Store(f"sqlite:///{out / 'study.db'}").open("s")
    return store, [(*s, t.stopped, t.seen, t.estimate) for s, t in zip(sequence(out), store.trials(), strict=True)]


@pytest.mark.ci
@pytest.mark.timeout(300)
def test_a_raced_search_and_its_parts(here, evaluator, tmp_path):
    done = here(*args(evaluator, tmp_path / "one"), "--workers", 0)
    assert "candidates are raced" in done.stderr and "stopped early" in done.stderr
    store, one = raced(tmp_path / "one")
    assert store.notes()["estimates_choice"].startswith("estimates: ")
    assert store.notes()["estimates_choice"] in done.stderr
    trials = store.trials()
    counts = done.result["candidates"]
    assert counts["pruned"] > counts["complete"] > 0 and counts["failed"] == 0
    assert 11 < sum(t.cost for t in trials) <= 12 + 1e-6
    assert done.result["best"]["trial"] in {t.number for t in best(trials)}
    assert all(t.score.items == 200 for t in best(trials))
    # Blocks came to what the same candidate gets in one piece.
    number = done.result["best"]["trial"]
    here("export", tmp_path / "one", tmp_path / "model", "--trial", number)
    whole = here("evaluate", tmp_path / "model", "--evaluator", evaluator, "--split", "search", "--json").result
    found = next(t for t in trials if t.number == number)
    assert whole["score"] == pytest.approx(found.value, abs=0.011)  # one item of 100 may turn with its batch

    # A larger budget goes on; another way to spend it does not.
    here(*args(evaluator, tmp_path / "one", 15), "--workers", 0)
    assert raced(tmp_path / "one")[1][: len(one)] == one
    refused = here(*args(evaluator, tmp_path / "one", 15), "--workers", 0, "--fidelity", "full", check=False)
    assert refused.returncode == 2 and "was begun with --fidelity race, now it is full" in refused.stderr
    refused = here(*args(evaluator, tmp_path / "one", 15), "--workers", 0, "--estimates", "plain", check=False)
    assert refused.returncode == 2 and "was begun with --estimates auto, now it is plain" in refused.stderr

    # A second study in the same database reads what the first one scored.
    again = [*args(evaluator, tmp_path / "two", 1), "--workers", 0, "--storage", f"sqlite:///{tmp_path}/one/study.db"]
    again[again.index("s")] = "t"
    here(*again)
    second = Store(f"sqlite:///{tmp_path / 'one' / 'study.db'}").open("t").trials()
    assert sum(t.cost == 0.0 for t in second) >= len(one) - 24


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_workers_change_nothing(evomerge, evaluator, tmp_path):
    evomerge(*args(evaluator, tmp_path / "local"), "--workers", 0)
    evomerge(*args(evaluator, tmp_path / "ray"), "--workers", 2)
    assert raced(tmp_path / "ray")[1] == raced(tmp_path / "local")[1]


@pytest.mark.ci
def test_results_without_bounds_race_by_their_order(here, tmp_path):
    (tmp_path / "score.py").write_text(UNBOUNDED)
    random = np.random.default_rng(0)
    words = ["strun", "kunt", "nesh", "veldo", "maro"]
    lines = [json.dumps({"prompt": f"{' '.join(random.choice(words, 4))} {i}"}) for i in range(300)]
    (tmp_path / "items.jsonl").write_text("\n".join(lines))
    data = {"kind": "python", "function": "score.py:score", "items": "items.jsonl", "tasks": ["score"],
            "splits": {"search": {"share": 0.4}, "select": {"share": 0.1}, "test": {"share": 0.1}}}  # fmt: skip
    (tmp_path / "e.yaml").write_text(yaml.safe_dump(data))
    here(*args(tmp_path / "e.yaml", tmp_path / "out", 6), "--workers", 0)
    trials = raced(tmp_path / "out")[0].trials()
    assert {t.stopped for t in trials} == {None, "settled"}
    assert {t.state for t in trials} == {State.COMPLETE, State.PRUNED}


def test_what_results_depend_on_and_what_not(tmp_path):
    """Results are read again where it is equal: number of items and weights do not count, everything else does."""
    tasks = tmp_path / "tasks"
    shutil.copytree(presets.folder("evaluators") / "zoo", tasks)
    path = tmp_path / "e.yaml"

    def versions(**changes):
        path.write_text(yaml.safe_dump(EVALUATOR | {"include_path": "tasks"} | changes))
        return open_evaluator(load_evaluator(path)).versions()

    first = versions()
    assert versions(splits=EVALUATOR["splits"] | {"search": {"share": 0.2}}, batch_size=7, split_seed=1) == first
    heavier = [task | {"weight": 5} for task in EVALUATOR["tasks"]]
    assert versions(tasks=heavier) == first
    generated = [EVALUATOR["tasks"][0] | {"greedy_likelihood": False}, EVALUATOR["tasks"][1]]
    other = versions(tasks=generated)
    assert (
        other["kovesh_problems"] != first["kovesh_problems"] and other["kovesh_direction"] == first["kovesh_direction"]
    )
    assert all(versions(seed=1)[t] != v for t, v in first.items())
    (tasks / "helper.py").write_text("ANSWER = 1\n")
    assert all(versions()[t] != v for t, v in first.items())


def test_another_chat_template_is_another_way_to_score(tmp_path):
    shutil.copytree(zoo.path("base"), tmp_path / "base")
    before = _spelling(tmp_path / "base")
    assert "tokenizer.json" in before and "model.safetensors" not in before
    (tmp_path / "base" / "chat_template.jinja").write_text("{{ messages }}")
    assert _spelling(tmp_path / "base") != before


def test_what_cannot_be_raced_is_refused_before_any_work(here, evaluator, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "score.py").write_text("def score(model, tokenizer, split):\n    return [0.5, 1.0]\n")
    (tmp_path / "own.yaml").write_text(
        yaml.safe_dump({"kind": "python", "function": "score.py:score", "tasks": ["score"]})
    )
    done = here(*args("own.yaml", tmp_path / "out"), "--workers", 0, "--fidelity", "race", check=False)
    assert done.returncode == 2 and '--fidelity race: task "score" brings its own items' in done.stderr
    assert not (tmp_path / "out" / "study.db").exists()
    done = here(*args(evaluator, tmp_path / "out"), "--workers", 0, "--fidelity", "rase", check=False)
    assert done.returncode == 2 and "--fidelity" in done.stderr and "race" in done.stderr


def used(study, split):
    """Of each subject that was scored on a split, the ids of each task's items."""
    return {
        subject: {t.task: set(t.items) for t in score.tasks} for subject, score in study.scores.read(split).items()
    }


@pytest.mark.ci
@pytest.mark.timeout(300)
def test_a_race_selects_and_tests_on_the_items_of_a_whole_search_and_has_twice_its_population(
    here, evaluator, tmp_path
):
    here(*args(evaluator, tmp_path / "one", 2), "--workers", 0)
    here(*args(evaluator, tmp_path / "two", 2), "--workers", 0, "--fidelity", "full")
    study, whole = (Store(f"sqlite:///{tmp_path / n / 'study.db'}").open("s") for n in ("one", "two"))
    assert {t.state for t in study.trials()} == {State.COMPLETE, State.PRUNED}
    assert {t.state for t in whole.trials()} == {State.COMPLETE}
    searched = {task: set() for task in ("kovesh_problems", "kovesh_direction")}
    for trial in [*study.trials(), *whole.trials()]:
        for task in (trial.score or trial.part).tasks:
            searched[task.task] |= set(task.items)
    assert [len(ids) for ids in searched.values()] == [100, 100]  # whichever part of them a candidate had
    for split, count in (("select", 40), ("test", 60)):
        raced_on, whole_on = used(study, split), used(whole, split)
        (items,) = {str(sorted((t, sorted(i)) for t, i in u.items())): u for u in raced_on.values()}.values()
        assert raced_on and whole_on and all(found == items for found in whole_on.values())
        assert {task: len(ids) for task, ids in items.items()} == dict.fromkeys(searched, count)
        assert all(not ids & searched[task] for task, ids in items.items())
    assert {"model/base", "source/maths", "model/uniform"} < set(used(study, "test")) & set(used(whole, "test"))

    assert (study.notes()[WIDENED], whole.notes()[WIDENED]) == (WIDER, 1)
    study.note(WIDENED, None)  # as studies of before have none
    assert _widened(study, True) == 1 == study.notes()[WIDENED]

    def generation(widened, **more):
        options = Options(
            budget=Budget(candidates=2), evaluator=str(evaluator), out=tmp_path / "three", **{"sampler": "cma", **more}
        )
        plan = Plan(options)
        plan.widened = widened
        return plan.optimizer(plan.space).generation

    assert generation(2) == 2 * generation(1) == 24
    assert generation(2, population=5) == 5
    assert generation(2, sampler="thompson") == generation(1, sampler="thompson") == 8
    assert generation(2, sampler="evolution") == generation(1, sampler="evolution")
