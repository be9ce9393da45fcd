"""Bad input: one clear line, exit code 2, nothing left behind."""

import json
import shutil

import pytest
import torch
import yaml
from transformers import LlamaConfig, LlamaForCausalLM

from evomerge import presets, zoo

SPACE = {
    "kind": "parameter",
    "method": "task_arithmetic",
    "base_model": "zoo:base",
    "sources": ["zoo:maths", "zoo:kovesh"],
    "parameters": {"weight": {"low": 0.0, "high": 1.5}},
}
EVALUATOR = {"include_path": str(presets.folder("evaluators") / "zoo"), "tasks": ["kovesh_problems"]}


@pytest.fixture
def refused(here, tmp_path, monkeypatch):
    """Runs a search that must be refused; returns its message."""
    monkeypatch.chdir(tmp_path)

    def run(*args, space=None, evaluator=None, budget="4", words=()):
        command = ["search"]
        if space is not None:
            (tmp_path / "space.yaml").write_text(space if isinstance(space, str) else yaml.safe_dump(space))
            command.append("space.yaml")
        if evaluator is not None:
            (tmp_path / "evaluator.yaml").write_text(yaml.safe_dump(evaluator))
            command += ["--evaluator", "evaluator.yaml"]
        done = here(*command, "--workers", 0, "--budget", budget, *args, "--json", check=False)
        assert done.returncode == 2, done.stderr
        message = done.result["error"]
        assert f"evomerge: error: {message}" in done.stderr and "Traceback" not in done.stderr
        assert len(message.splitlines()) == 1, message
        assert not list(tmp_path.glob("**/study.db")) and not list(tmp_path.glob("**/model"))
        for word in words:
            assert word in message, message
        return message

    return run


@pytest.mark.parametrize("budget", ["0", "-3", "soon", "0m", "1.5", ""])
def test_budget(refused, budget):
    refused(budget=budget, words=["--budget", "expected a number of candidates"])


def test_missing_file_names_the_nearest(refused, tmp_path):
    (tmp_path / "my_space.yaml").write_text("{}")
    refused("my_spice.yaml", words=["my_spice.yaml: no such file", "my_space.yaml"])


def test_syntax_error_has_line_and_column(refused):
    refused(space="kind: parameter\nsources: [a, b\n", words=["space.yaml:3:1: YAML syntax error"])


def test_unknown_key(refused):
    refused(
        space=SPACE | {"granularty": {}}, words=['space.yaml:2: unknown key "granularty"; did you mean "granularity"?']
    )


def test_unknown_method(refused):
    refused(space=SPACE | {"method": "tise"}, words=["space.yaml", "tise", 'did you mean "ties"'])


def test_unknown_sampler(refused):
    refused("--sampler", "cmaes", words=["--sampler cmaes", 'did you mean "cma"'])


def test_restarts_of_a_sampler_that_has_none(refused):
    refused("--sampler", "tpe", "--restarts", "ipop", words=["--sampler tpe", "has no restarts", "cma, catcma"])


def test_low_above_high(refused):
    refused(space=SPACE | {"parameters": {"weight": {"low": 2, "high": 1}}}, words=["low = 2 must be below high = 1"])


def test_model_that_is_not_there(refused, tmp_path):
    refused(space=SPACE | {"sources": ["zoo:maths", "zoo:koveshh"]}, words=["zoo:koveshh", "zoo:kovesh"])
    (tmp_path / "my-model").mkdir()
    refused(space=SPACE | {"sources": ["zoo:maths", "./my-modle"]}, words=["./my-modle", "my-model"])


def test_sources_that_do_not_fit_each_other(refused, tmp_path):
    config = LlamaConfig(
        vocab_size=50, hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=4
    )
    LlamaForCausalLM(config).save_pretrained(tmp_path / "other")
    refused(
        space=SPACE | {"sources": ["zoo:maths", "./other"]},
        words=["the sources do not fit each other", "./other", "hidden"],
    )


def test_unknown_task_and_metric(refused):
    task = [{"name": "kovesh_problems", "metric": "exact_mach"}]
    refused(evaluator=EVALUATOR | {"tasks": task}, words=['no metric "exact_mach"; did you mean "exact_match"'])
    refused(evaluator=EVALUATOR | {"metrics": []}, words=['unknown key "metrics"'])


@pytest.mark.ci
def test_unknown_task_names_the_nearest(refused):
    refused(
        evaluator=EVALUATOR | {"tasks": ["kovesh_problem"]},
        words=['unknown task "kovesh_problem"', '"kovesh_problems"'],
    )


SCORES = """
import math
def nan(model, tokenizer, items): return [math.nan for _ in items]
def one(model, tokenizer, items): return {"a": [1.0 for _ in items]}
"""


@pytest.mark.parametrize(
    ("function", "words"),
    [
        ("nan", ['nan for task "a", item 1 of ', "expected finite numbers"]),
        ("one", ['nothing for task "b"; expected a mapping with the tasks a, b']),
    ],
)
def test_a_score_that_is_not_a_number_or_missing(here, tmp_path, monkeypatch, function, words):
    """Only a model can show it: told by the first source, as it is, before any candidate."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "mine.py").write_text(SCORES)
    (tmp_path / "items.jsonl").write_text("\n".join(json.dumps({"q": f"item {i}"}) for i in range(40)))
    tasks = ["a"] if function == "nan" else ["a", "b"]
    evaluator = {"kind": "python", "function": f"mine.py:{function}", "items": "items.jsonl", "tasks": tasks}
    (tmp_path / "evaluator.yaml").write_text(yaml.safe_dump(evaluator))
    done = here("search", "--evaluator", "evaluator.yaml", "--workers", 0, "--budget", 4, "--json", check=False)
    message = done.result["error"]
    assert done.returncode == 2 and len(message.splitlines()) == 1 and "Traceback" not in done.stderr
    for word in ["cannot be scored by evaluator.yaml", f"mine.py:{function} returned", *words]:
        assert word in message


def test_a_split_of_more_items_than_there_are(refused):
    splits = {"test": {"share": 0.5, "items": 5000}}
    words = ["evaluator.yaml: task", "splits.test: items = 5,000 are asked for", "holds 2,035 of the 4,000"]
    refused(evaluator=EVALUATOR | {"splits": splits}, words=words)
    fewer = {"search": {"share": 0.3, "items": 3000}}  # than the task has, and more than the share holds
    words = ["splits.search: items = 3,000", "expected items of at most 1,1", "or a share of 0.7"]
    refused(evaluator=EVALUATOR | {"splits": fewer}, words=words)


def test_a_language_that_nobody_knows(refused):
    task = [{"name": "kovesh_problems", "language": "jp"}]
    refused(evaluator=EVALUATOR | {"tasks": task}, words=['language = "jp"', "did you mean ja or jv?"])


def test_output_that_cannot_be_written(refused, tmp_path):
    (tmp_path / "file").write_text("")
    refused("--out", tmp_path / "file" / "out", words=["--out", "cannot be written"])


def test_storage_that_is_no_study(refused, tmp_path):
    (tmp_path / "notes.txt").write_text("these are notes, and no database at all")
    refused("--storage", f"sqlite:///{tmp_path / 'notes.txt'}", words=["notes.txt", "is not a SQLite database"])
    refused("--storage", "postgres//nowhere", words=["postgres//nowhere"])


def test_pickle_checkpoint(refused, tmp_path):
    shutil.copytree(zoo.path("maths"), tmp_path / "pickled")
    (tmp_path / "pickled" / "model.safetensors").unlink()
    torch.save({}, tmp_path / "pickled" / "pytorch_model.bin")
    refused(space=SPACE | {"sources": ["zoo:kovesh", "./pickled"]}, words=["pickled", "safetensors"])


def test_interrupted_download(refused, tmp_path):
    shutil.copytree(zoo.path("maths"), tmp_path / "half")
    file = tmp_path / "half" / "model.safetensors"
    data = file.read_bytes()
    file.write_bytes(data[: len(data) // 2])
    refused(space=SPACE | {"sources": ["zoo:kovesh", "./half"]}, words=["interrupted download", "model.safetensors"])


def test_missing_shard(refused, tmp_path):
    shutil.copytree(zoo.path("maths"), tmp_path / "sharded")
    (tmp_path / "sharded" / "model.safetensors").unlink()
    index = {"metadata": {}, "weight_map": {"model.norm.weight": "model-00001-of-00002.safetensors"}}
    (tmp_path / "sharded" / "model.safetensors.index.json").write_text(json.dumps(index))
    refused(space=SPACE | {"sources": ["zoo:kovesh", "./sharded"]}, words=["model-00001-of-00002.safetensors"])


def test_enqueued_recipe_that_does_not_fit_the_space(refused, tmp_path):
    (tmp_path / "mine.yaml").write_text(
        "merge_method: slerp\nbase_model: zoo:base\nmodels: [{model: zoo:maths}]\nparameters: {t: 0.5}\n"
    )
    refused("--enqueue", "mine.yaml", words=["--enqueue mine.yaml"])


def test_options_that_exclude_each_other(refused):
    refused("--tasks", "kovesh_problems", "--evaluator", "quickstart", words=["--tasks", "--evaluator"])
    refused("--base", "zoo:base", words=["--base needs --models"])
    refused("--models", "zoo:maths", "zoo:kovesh", words=["--models needs --tasks or --evaluator"])


@pytest.mark.parametrize(
    ("option", "value"), [("--workers", "-1"), ("--seed", "x"), ("--patience", "0"), ("--sigma", "wide")]
)
def test_numbers(refused, option, value):
    refused(option, value, words=[option])


def test_a_job_is_refused_an_output_that_would_vanish_with_it(here, tmp_path, monkeypatch):
    copy = tmp_path / "runtime_resources" / "working_dir_files" / "_ray_pkg_1234"
    copy.mkdir(parents=True)
    monkeypatch.chdir(copy)
    done = here("search", "--workers", 0, "--budget", 2, check=False)
    assert done.returncode == 2 and "vanish with the job; give --out an absolute path" in done.stderr
    done = here(
        "search", "--workers", 0, "--budget", 2, "--out", tmp_path / "kept", "--storage", "study.db", check=False
    )
    assert done.returncode == 2 and "--storage" in done.stderr and "would vanish" in done.stderr
    assert not list(copy.iterdir())


def test_a_second_search_in_the_same_folder_is_told_who_holds_it(here, tmp_path):
    from evomerge.study.place import locked

    out = tmp_path / "out"
    out.mkdir()
    with locked(out, f"sqlite:///{out}/study.db"):
        done = here("search", "--workers", 0, "--budget", 2, "--out", out, check=False)
    assert done.returncode == 2 and "a search or fusion is running there" in done.stderr


@pytest.mark.parametrize("name", ["README.md", "recipe.yaml", "history.png"])
def test_an_output_folder_with_files_of_ones_own_is_left_alone(refused, tmp_path, name):
    out = tmp_path / "mine"
    out.mkdir()
    (out / name).write_text("precious")
    refused("--out", out, words=[f"holds {name} already, and no search wrote them"])
    assert (out / name).read_text() == "precious" and len(list(out.iterdir())) == 1


def test_an_output_that_would_replace_a_source(here, tmp_path):
    out = tmp_path / "out"
    shutil.copytree(zoo.path("maths"), out / "model")
    command = ("search", "--models", out / "model", "--base", "zoo:base", "--evaluator", "quickstart", "--workers", 0)
    done = here(*command, "--budget", 2, "--out", out, check=False)
    assert done.returncode == 2 and "its model/ would replace the source" in done.stderr
    assert (out / "model" / "model.safetensors").read_bytes() == (zoo.path("maths") / "model.safetensors").read_bytes()


def test_a_recipe_over_another_model_of_the_same_spelling_is_not_taken(refused, tmp_path):
    for folder, name in (("a", "maths"), ("b", "kovesh")):
        shutil.copytree(zoo.path(name), tmp_path / folder / "x")
    (tmp_path / "a" / "space.yaml").write_text(yaml.safe_dump(SPACE | {"sources": ["./x"]}))
    recipe = "merge_method: task_arithmetic\nbase_model: zoo:base\nmodels: [{model: ./x, parameters: {weight: 1}}]\n"
    (tmp_path / "b" / "mine.yaml").write_text(recipe)
    refused("a/space.yaml", "--enqueue", "b/mine.yaml", words=["--enqueue b/mine.yaml", "is not in the space"])


def test_names_that_results_use_are_not_taken_by_sources(here, refused, tmp_path):
    refused(
        space=SPACE | {"sources": [{"model": "zoo:maths", "name": "uniform"}]},
        words=["uniform", "give the source another name"],
    )


@pytest.mark.parametrize("space", ["dataflow", "hybrid"])
def test_paths_over_layers_run_on_one_gpu(refused, space):
    refused(space, "--gpus-per-worker", 2, words=["--gpus-per-worker 2", f'"{space}"', "expected 1 or less"])
