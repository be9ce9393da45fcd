"""The main job, end to end: real models, real tasks, real workers."""

import contextlib
import os
import random
import shutil
import signal
import subprocess
import sys
import time

import pandas as pd
import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from evomerge import zoo
from evomerge.evaluation import load_evaluator
from evomerge.recipe import load_recipe
from evomerge.sources import open_sources
from evomerge.study.builder import Builder
from evomerge.study.job import Job
from evomerge.study.store import Store

BUDGET = 20


def sequence(out, name="s"):
    trials = Store(f"sqlite:///{out / 'study.db'}").open(name).trials()
    return [(t.number, dict(t.params), t.state, [x.results.tolist() for x in t.score.tasks]) for t in trials]


@pytest.fixture(scope="module")
def whole(evomerge, small_evaluator, tmp_path_factory):
    """An uninterrupted search with one worker, in this machine's quickest way."""
    out = tmp_path_factory.mktemp("whole") / "out"
    done = evomerge(
        "search",
        "--evaluator",
        small_evaluator,
        "--budget",
        BUDGET,
        "--workers",
        0,
        "--study",
        "s",
        "--out",
        out,
        "--json",
    )
    return out, done.result


def test_the_result_and_the_outputs(whole):
    out, result = whole
    assert result["study"] == "s" and result["seed"] == 0
    assert result["candidates"] == {"complete": BUDGET, "pruned": 0, "failed": 0}
    assert list(result["baselines"]) == ["base", "maths", "kovesh", "sorting", "uniform"]
    assert result["best"]["test"]["items"] == 60
    assert set(result["tasks"]) == {"kovesh_problems", "kovesh_direction"}
    assert {p.name for p in out.iterdir()} >= {
        "model", "recipe.yaml", "README.md", "trials.parquet", "history.png", "result.json", "study.db"
    }  # fmt: skip
    assert len(pd.read_parquet(out / "trials.parquet")) == BUDGET
    assert len(pd.read_parquet(out / "items.parquet")) == BUDGET * 40


def test_the_winner_is_a_plain_checkpoint_that_generates(whole):
    out, _ = whole
    model = AutoModelForCausalLM.from_pretrained(out / "model")
    tokenizer = AutoTokenizer.from_pretrained(out / "model")
    assert model.dtype == torch.bfloat16
    ids = tokenizer("drevin kunt 5 nesh , 4 rindesh . djor ?", return_tensors="pt")
    assert model.generate(**ids, max_new_tokens=6).shape[1] > ids.input_ids.shape[1]


def test_the_recipe_rebuilds_the_winner_byte_for_byte(whole, here, tmp_path):
    out, _ = whole
    here("merge", out / "recipe.yaml", tmp_path / "again")
    here("export", out, tmp_path / "exported")
    made = (out / "model" / "model.safetensors").read_bytes()
    assert (tmp_path / "again" / "model.safetensors").read_bytes() == made
    assert (tmp_path / "exported" / "model.safetensors").read_bytes() == made


def test_the_exported_model_scores_as_the_live_candidate_did(whole, small_evaluator):
    out, result = whole
    recipe = load_recipe(out / "recipe.yaml")
    builder = Builder(open_sources(recipe.references()), "zoo:base", load_evaluator(small_evaluator))
    live, exported = builder.run(Job("test", recipe)), builder.run(Job("test", recipe, exported=True))
    assert live.score is not None and exported.score is not None
    for a, b in zip(live.score.tasks, exported.score.tasks, strict=True):
        assert a.results.tolist() == b.results.tolist()
    assert live.score.value == result["best"]["test"]["score"]


def test_evaluate_agrees_with_the_table(whole, here, small_evaluator):
    out, result = whole
    for model, score in ((out / "model", result["best"]["test"]), ("zoo:maths", result["baselines"]["maths"]["test"])):
        found = here("evaluate", model, "--evaluator", small_evaluator, "--split", "test", "--json").result
        assert found["score"] == score["score"]


def test_two_ray_workers_find_the_same_sequence(whole, evomerge, small_evaluator, tmp_path):
    out, result = whole
    done = evomerge(
        "search",
        "--evaluator",
        small_evaluator,
        "--budget",
        BUDGET,
        "--workers",
        2,
        "--study",
        "s",
        "--out",
        tmp_path,
        "--json",
    )
    assert sequence(tmp_path) == sequence(out)
    same = ("study", "seed", "candidates", "best", "baselines", "tasks")
    assert {k: done.result[k] for k in same} == {k: result[k] for k in same}


def test_killed_five_times_it_goes_on_to_the_same_end(whole, evomerge, small_evaluator, tmp_path):
    out, result = whole
    args = [
        "search",
        "--evaluator",
        str(small_evaluator),
        "--budget",
        str(BUDGET),
        "--study",
        "s",
        "--out",
        str(tmp_path),
    ]
    draw = random.Random(int.from_bytes(os.urandom(4), "little"))
    database = tmp_path / "study.db"
    for kill in range(5):
        # The first kills come at a random moment of the start; the later ones after a random number of candidates.
        # --workers 1 and 2 by turns: a resumed search need not have the workers that the first one had.
        process = subprocess.Popen(
            [sys.executable, "-m", "evomerge", *args, "--workers", str(1 + kill % 2)],
            stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, start_new_session=True,
        )  # fmt: skip
        wanted, deadline = draw.randrange(0, 5), time.monotonic() + 120
        before = finished(database)
        while process.poll() is None and finished(database) < before + wanted and time.monotonic() < deadline:
            time.sleep(0.02)
        time.sleep(draw.random() * 0.5)
        process.send_signal(signal.SIGKILL)
        process.wait()
        # Ray's processes notice their driver's death by themselves; a killed session must not leave them either.
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
    done = evomerge(*args, "--workers", 2, "--json")
    assert sequence(tmp_path) == sequence(out)
    assert done.result["best"] == result["best"] and done.result["baselines"] == result["baselines"]


def finished(database):
    """Complete candidates on record, read without disturbing the writer."""
    import sqlite3

    if not database.exists():
        return 0
    try:
        with sqlite3.connect(f"file:{database}?mode=ro", uri=True, timeout=5) as connection:
            return connection.execute("select count(*) from trials where state = 'COMPLETE'").fetchone()[0]
    except sqlite3.OperationalError:
        return 0


def test_another_seed_is_another_sequence_and_another_study(whole, here, small_evaluator, tmp_path):
    out, _ = whole
    args = ("search", "--evaluator", small_evaluator, "--workers", 0, "--study", "s")
    here(*args, "--budget", 3, "--seed", 1, "--out", tmp_path)
    assert [t[1] for t in sequence(tmp_path)] != [t[1] for t in sequence(out)][:3]
    refused = here(*args, "--budget", 30, "--seed", 1, "--out", out, check=False)
    assert refused.returncode == 2 and "seed is 1, was 0" in refused.stderr


def test_controls_are_searched_and_reported(here, small_evaluator, tmp_path):
    done = here(
        "search",
        "--evaluator",
        small_evaluator,
        "--budget",
        4,
        "--workers",
        0,
        "--controls",
        "--out",
        tmp_path,
        "--json",
    )
    names = [
        "base",
        "maths",
        "kovesh",
        "sorting",
        "uniform",
        "vector maths",
        "vector kovesh",
        "vector sorting",
        "random search",
    ]
    assert list(done.result["baselines"]) == names
    listed = here("list", tmp_path, "--json").result
    assert {row["complete"] for row in listed} == {4} and len(listed) == 5
    assert {row["sampler"] for row in listed} == {"cma", "random"}


def test_a_recipe_of_ones_own_comes_first(here, small_evaluator, tmp_path):
    recipe = tmp_path / "mine.yaml"
    recipe.write_text(
        "merge_method: task_arithmetic\nbase_model: zoo:base\ndtype: float32\nout_dtype: bfloat16\nmodels:\n"
        "- {model: zoo:maths, parameters: {weight: 0.9}}\n- {model: zoo:kovesh, parameters: {weight: 0.8}}\n"
        "- {model: zoo:sorting, parameters: {weight: 0.0}}\n"
    )
    args = ("search", "--evaluator", small_evaluator, "--workers", 0, "--enqueue", recipe, "--out", tmp_path / "o")
    here(*args, "--budget", 2, "--study", "s")
    params = sequence(tmp_path / "o")[0][1]
    assert {v for k, v in params.items() if "maths" in k} == {0.9}
    assert {v for k, v in params.items() if "sorting" in k} == {0.0}


@pytest.mark.parametrize("sampler", ["tpe", "random", "catcma"])
def test_other_samplers_run_and_resume(here, small_evaluator, tmp_path, sampler):
    args = ("search", "--evaluator", small_evaluator, "--workers", 0, "--sampler", sampler, "--study", "s")
    here(*args, "--budget", 5, "--out", tmp_path / "a")
    here(*args, "--budget", 11, "--out", tmp_path / "a")
    here(*args, "--budget", 11, "--out", tmp_path / "b")
    assert sequence(tmp_path / "a") == sequence(tmp_path / "b")


def test_without_any_yaml(here, tmp_path):
    done = here(
        "search", "--models", "zoo:maths", "zoo:kovesh", "--base", "zoo:base", "--tasks", "kovesh_direction",
        "--budget", 2, "--workers", 0, "--out", tmp_path, "--json",
    )  # fmt: skip
    assert list(done.result["baselines"]) == ["base", "maths", "kovesh", "uniform"]


def test_a_search_over_folders_beside_its_space_rebuilds_from_anywhere(here, small_evaluator, tmp_path, monkeypatch):
    for name in ("base", "maths", "kovesh"):
        shutil.copytree(zoo.path(name), tmp_path / "mine" / name)
    space = tmp_path / "mine" / "space.yaml"
    space.write_text(
        "method: task_arithmetic\nbase_model: ./base\nsources: [./maths, ./kovesh]\n"
        "parameters: {weight: {low: 0, high: 1.5}}\ndtype: float32\nout_dtype: bfloat16\n"
    )
    args = ("search", space, "--evaluator", small_evaluator, "--workers", 0, "--budget", 4, "--out", tmp_path / "o")
    first = here(*args, "--json").result
    assert list(first["baselines"]) == ["base", "maths", "kovesh", "uniform"]
    # From another folder, the models moved along with their space: the same study.
    monkeypatch.chdir(tmp_path / "mine")
    assert here(*args, "--json").result["best"] == first["best"]
    here("merge", tmp_path / "o" / "recipe.yaml", tmp_path / "again")
    here("export", tmp_path / "o", tmp_path / "exported", "--trial", first["best"]["trial"])
    made = (tmp_path / "o" / "model" / "model.safetensors").read_bytes()
    for again in ("again", "exported"):
        assert (tmp_path / again / "model.safetensors").read_bytes() == made


def test_a_source_that_changed_is_another_study(here, small_evaluator, tmp_path):
    for name in ("base", "maths"):
        shutil.copytree(zoo.path(name), tmp_path / name)
    args = (
        "search", "--models", tmp_path / "maths", "--base", tmp_path / "base", "--evaluator", small_evaluator,
        "--workers", 0, "--budget", 2, "--study", "s", "--out", tmp_path / "o",
    )  # fmt: skip
    here(*args)
    shutil.copytree(zoo.path("kovesh"), tmp_path / "maths", dirs_exist_ok=True)
    done = here(*args, check=False)
    assert done.returncode == 2 and "sources.named.maths is" in done.stderr


def test_weights_that_overflow_are_failed_candidates_with_the_tensors_name(here, small_evaluator, tmp_path):
    space = tmp_path / "space.yaml"
    space.write_text(
        "method: task_arithmetic\nbase_model: zoo:base\nsources: [zoo:maths]\n"
        "parameters: {weight: {low: 1.0e+38, high: 3.0e+42, log: true}}\ndtype: float32\n"
    )
    out = tmp_path / "o"
    args = (
        "search",
        space,
        "--evaluator",
        small_evaluator,
        "--workers",
        0,
        "--budget",
        4,
        "--study",
        "s",
        "--out",
        out,
    )
    done = here(*args, check=False)
    assert done.returncode == 1 and "all 4 candidates failed" in done.stderr
    trials = Store(f"sqlite:///{out / 'study.db'}").open("s").trials()
    assert [t.state.value for t in trials] == ["FAIL"] * 4
    assert all(".weight" in t.reason for t in trials), [t.reason for t in trials]


def test_an_evaluator_that_raises_fails_its_candidate_alone(here, tmp_path):
    (tmp_path / "score.py").write_text(
        "calls = 0\n"
        "def score(model, tokenizer, split):\n"
        "    global calls\n"
        "    calls += 1\n"
        "    if split == 'search' and calls % 4 == 0:\n"
        "        raise ValueError('no luck')\n"
        "    return {f'{split}-{i}': float(model.model.norm.weight[i]) for i in range(8)}\n"
    )
    evaluator = tmp_path / "e.yaml"
    evaluator.write_text("kind: python\nfunction: score.py:score\ntasks: [norm]\n")
    args = ("search", "--evaluator", evaluator, "--workers", 0, "--budget", 8, "--study", "s", "--out", tmp_path / "o")
    # The baselines are scored first (5 of them, 1 of which hits the fourth call): a source that cannot be scored stops.
    refused = here(*args, check=False)
    assert refused.returncode == 1 and "cannot be scored: ValueError: no luck" in refused.stderr
    done = here(*args, "--json")
    assert done.result["candidates"]["failed"] >= 1 and done.result["candidates"]["complete"] >= 5
    failed = [t for t in Store(f"sqlite:///{tmp_path / 'o' / 'study.db'}").open("s").trials() if t.reason]
    assert {t.reason for t in failed} == {"ValueError: no luck"}
