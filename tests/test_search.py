"""The main job, end to end: real models, real tasks, real workers."""

import contextlib
import os
import random
import shutil
import signal
import sqlite3
import subprocess
import sys
import time

import pandas as pd
import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from evomerge import presets, zoo
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


def asked(evaluator, out):
    """The search that these tests run, cut off and run again."""
    return ["search", "--evaluator", str(evaluator), "--budget", str(BUDGET), "--study", "s", "--out", str(out)]


@pytest.fixture(scope="module")
def whole(evomerge, small_evaluator, tmp_path_factory):
    """An uninterrupted search with one worker, in this machine's quickest way."""
    out = tmp_path_factory.mktemp("whole") / "out"
    done = evomerge(*asked(small_evaluator, out), "--workers", 0, "--json")
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
    items = pd.read_parquet(out / "items.parquet")
    assert (items["split"] == "search").sum() == BUDGET * 40
    # Five baselines and the winner, on two tasks of 60 test items.
    assert (items["split"] == "test").sum() == 6 * 2 * 60


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
    done = evomerge(*asked(small_evaluator, tmp_path), "--workers", 2, "--json")
    assert sequence(tmp_path) == sequence(out)
    same = ("study", "seed", "candidates", "best", "baselines", "tasks")
    assert {k: done.result[k] for k in same} == {k: result[k] for k in same}


def test_killed_five_times_it_goes_on_to_the_same_end(whole, evomerge, small_evaluator, tmp_path):
    """kill -9 of the driver at five moments drawn over the whole of a run: start, search, select, test, export."""
    out, result = whole
    args = asked(small_evaluator, tmp_path)
    draw = random.Random(int.from_bytes(os.urandom(4), "little"))
    # A whole run is timed first, so that the moments fit however busy the machine is.
    started = time.monotonic()
    evomerge(*args[:-1], tmp_path / "timed", "--workers", 2)
    length = time.monotonic() - started
    for kill in range(5):
        # --workers 1 and 2 by turns: a resumed search need not have the workers that the first one had.
        process = subprocess.Popen(
            [sys.executable, "-m", "evomerge", *args, "--workers", str(1 + kill % 2)],
            stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, start_new_session=True,
        )  # fmt: skip
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(draw.uniform(0.05, 1.0) * length)
        process.send_signal(signal.SIGKILL)
        process.wait()
        # Ray's processes notice their driver's death by themselves; a killed session must not leave them either.
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
    ends_alike(evomerge(*args, "--workers", 2, "--json").result, tmp_path, result, out)


def ends_alike(result, folder, expected, out):
    """A search that was cut off ended as the uninterrupted one: candidates, scores, looks, bytes."""
    assert sequence(folder) == sequence(out)
    same = ("study", "seed", "candidates", "best", "baselines", "tasks")
    assert {k: result[k] for k in same} == {k: expected[k] for k in same}
    weights = "model/model.safetensors"
    assert (folder / weights).read_bytes() == (out / weights).read_bytes()
    looked = [Store(f"sqlite:///{f / 'study.db'}").open("s").notes()["looked"] for f in (folder, out)]
    assert looked[0] == looked[1] == [result["best"]["trial"]]


# Where a process ends itself as kill -9 would, on the Nth call of a function: the moments between two writes.
MOMENTS = [
    ("sqlalchemy.engine.default", "DefaultDialect.do_execute", 12),  # Optuna's tables half made
    ("sqlalchemy.engine.default", "DefaultDialect.do_execute", 40),
    ("optuna.storages", "RDBStorage.set_study_user_attr", 1),  # the study made, its fingerprint not yet
    ("evomerge.study.tables", "ScoreTable.write", 3),  # some sources scored
    ("optuna.storages", "RDBStorage.create_new_trial", 2),  # a candidate about to be recorded
    ("optuna.storages", "RDBStorage.set_trial_state_values", 4),  # its items written, its trial not yet told
    ("evomerge.study.final", "measure", 1),  # select done, test not begun
    ("evomerge.study.store", "Study.mark_winner", 1),  # test done, the winner not marked
    ("safetensors.torch", "save_file", 1),  # a finalist's checkpoint half written
    ("evomerge.pipeline.main_job", "write_checkpoint", 1),  # all but the export done
]

SUICIDE = """
import os, sys, importlib
module, name, left = sys.argv[1], sys.argv[2], int(sys.argv[3])
owner = importlib.import_module(module)
*path, last = name.split(".")
for part in path:
    owner = getattr(owner, part)
real = getattr(owner, last)
def counted(*args, **kwargs):
    global left
    left -= 1
    if left == 0:
        os._exit(9)
    return real(*args, **kwargs)
setattr(owner, last, counted)
from evomerge.cli import main
sys.exit(main(sys.argv[4:]))
"""


@pytest.mark.timeout(600)
def test_ended_between_any_two_writes_it_goes_on_to_the_same_end(whole, here, small_evaluator, tmp_path):
    out, result = whole
    args = asked(small_evaluator, tmp_path)
    args += ["--workers", "0"]
    ended = []
    for module, name, calls in MOMENTS:
        command = [sys.executable, "-c", SUICIDE, module, name, str(calls), *args]
        done = subprocess.run(command, capture_output=True, text=True, timeout=280, stdin=subprocess.DEVNULL)
        assert done.returncode in (0, 9), done.stderr[-2000:]
        ended.append(done.returncode)
    assert ended.count(9) >= len(MOMENTS) - 1, ended
    ends_alike(here(*args, "--json").result, tmp_path, result, out)


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


@pytest.mark.parametrize("sampler", ["catcma", *(pytest.param(s, marks=pytest.mark.slow) for s in ("tpe", "random"))])
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


def test_a_changed_task_is_another_study(here, small_evaluator, tmp_path):
    """The prompts of a task are part of what a score means, though its items and its name stay the same."""
    tasks = tmp_path / "tasks"
    shutil.copytree(presets.folder("evaluators") / "zoo", tasks)
    evaluator = tmp_path / "e.yaml"
    evaluator.write_text(small_evaluator.read_text().replace(str(presets.folder("evaluators") / "zoo"), str(tasks)))
    args = ("search", "--evaluator", evaluator, "--workers", 0, "--study", "s", "--out", tmp_path / "o")
    here(*args, "--budget", 2)
    file = tasks / "kovesh_problems.yaml"
    file.write_text(file.read_text().replace("{{prompt}}", "drevin {{prompt}}"))
    done = here(*args, "--budget", 3, check=False)
    assert done.returncode == 2 and "tasks.kovesh_problems is" in done.stderr


def test_sources_called_base_and_uniform_keep_their_own_scores(here, small_evaluator, tmp_path):
    for folder, name in (("base", "maths"), ("uniform", "sorting")):
        shutil.copytree(zoo.path(name), tmp_path / "m" / folder)
    found = here(
        "search", "--models", tmp_path / "m" / "base", tmp_path / "m" / "uniform", "--base", "zoo:base", "--evaluator",
        small_evaluator, "--budget", 2, "--workers", 0, "--out", tmp_path / "o", "--json",
    ).result["baselines"]  # fmt: skip
    assert list(found) == ["base", "m_base", "m_uniform", "uniform"]
    for name, model in (("base", "zoo:base"), ("m_base", "zoo:maths"), ("m_uniform", "zoo:sorting")):
        alone = here("evaluate", model, "--evaluator", small_evaluator, "--split", "test", "--json").result
        assert found[name]["test"]["score"] == alone["score"]


def test_a_function_that_draws_draws_the_same_every_time(here, tmp_path):
    (tmp_path / "score.py").write_text(
        "import random\nimport numpy as np\nimport torch\n"
        "def score(model, tokenizer, split):\n"
        "    noise = random.random() + np.random.rand() + float(torch.rand(1))\n"
        "    return {f'{split}-{i}': float(model.model.norm.weight[i]) + noise for i in range(8)}\n"
    )
    (tmp_path / "e.yaml").write_text("kind: python\nfunction: score.py:score\ntasks: [norm]\n")
    args = ("search", "--evaluator", tmp_path / "e.yaml", "--workers", 0, "--budget", 3, "--json", "--out")
    first, second = (here(*args, tmp_path / name).result for name in "ab")
    assert first["best"] == second["best"] and first["baselines"] == second["baselines"]


def test_random_search_as_a_control_of_random_search_is_another_one(here, small_evaluator, tmp_path):
    args = ("search", "linear", "--evaluator", small_evaluator, "--workers", 0, "--sampler", "random", "--controls")
    done = here(*args, "--budget", 3, "--study", "s", "--out", tmp_path, "--json")
    # A normalised average of one source is that source: no vector is searched alone.
    assert [n for n in done.result["baselines"] if "vector" in n] == [] and "1 more searches" in done.stderr
    assert [t[1] for t in sequence(tmp_path)] != [t[1] for t in sequence(tmp_path, "s/random search")]


def test_list_goes_on_past_what_is_no_study(here, whole, tmp_path):
    out, _ = whole
    shutil.copytree(out, tmp_path / "runs" / "good")
    (tmp_path / "runs" / "bad").mkdir()
    with sqlite3.connect(tmp_path / "runs" / "bad" / "mlflow.db") as connection:
        connection.execute("create table experiments (name text)")
    done = here("list", tmp_path / "runs", "--json")
    assert [row["study"] for row in done.result] == ["s"] and "mlflow.db: is not a study" in done.stderr


def test_what_a_search_writes_is_what_the_study_holds(whole, here, tmp_path):
    out, _ = whole
    here("export", out, tmp_path / "stored", "--format", "parquet")
    for name in ("trials.parquet", "items.parquet"):
        written, stored = pd.read_parquet(out / name), pd.read_parquet(tmp_path / "stored" / name)
        columns = list(written.columns)
        assert sorted(stored.columns) == sorted(columns)
        if name == "trials.parquet":
            assert written["attributes.recipe_hash"].notna().all()
            pd.testing.assert_frame_equal(stored[columns], written)
        else:
            # The study also holds what the finalists and sources scored on the other splits.
            keys = ["subject", "split", "task", "item"]
            both = written.astype({k: str for k in keys}).merge(stored.astype({k: str for k in keys}), on=keys)
            assert len(both) == len(written) and (both["result_x"] == both["result_y"]).all()


def test_another_study_does_not_take_a_finished_ones_place(whole, here, small_evaluator):
    out, _ = whole
    before = (out / "result.json").read_bytes()
    args = ("search", "--evaluator", small_evaluator, "--workers", 0, "--budget", 2, "--out", out, "--seed", 3)
    done = here(*args, check=False)
    assert done.returncode == 2 and 'holds the results of study "s"; give another --out' in done.stderr
    assert (out / "result.json").read_bytes() == before


def test_an_evaluator_given_as_the_space_is_told_so(here, small_evaluator):
    done = here("search", small_evaluator, "--budget", 2, check=False)
    assert done.returncode == 2 and "is an evaluator, not a search space; give it as --evaluator" in done.stderr
