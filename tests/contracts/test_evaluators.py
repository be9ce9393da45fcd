"""Every evaluator of the table keeps the same promises."""

import json
import shutil
import sys

import pytest
import torch
import yaml

from evomerge import presets, zoo
from evomerge.errors import CandidateError
from evomerge.evaluation import EVALUATORS, SPLITS, Evaluator, load_evaluator, open_evaluator
from evomerge.merging.live import live_model, load_tokenizer

SCORE = """
def score(model, tokenizer, items):
    ids = [tokenizer(i["prompt"], return_tensors="pt").input_ids for i in items]
    return [float(-model(x, labels=x).loss) for x in ids]
"""


def lm_eval(folder):
    splits = {s: {"share": 0.3, "items": 30} for s in SPLITS}
    return {"include_path": str(presets.folder("evaluators") / "zoo"), "tasks": ["kovesh_problems"], "splits": splits}


def greedy(folder):
    """The same task, the search split read off one forward pass."""
    return lm_eval(folder) | {"tasks": [{"name": "kovesh_problems", "greedy_likelihood": True}]}


def language(folder):
    """The same task, answers to be in a language that none of the zoo's is."""
    return lm_eval(folder) | {"tasks": [{"name": "kovesh_problems", "language": "ja"}]}


def python(folder):
    (folder / "score.py").write_text(SCORE)
    (folder / "items.jsonl").write_text("\n".join(json.dumps({"prompt": f"strun kunt {i} nesh"}) for i in range(20)))
    return {"function": "score.py:score", "items": "items.jsonl", "tasks": ["score"]}


# Reads the checkpoint by itself; one that loads it with transformers is in tests/evaluation/test_command.py.
PROGRAM = """
import hashlib, json, pathlib, sys

weights = pathlib.Path(sys.argv[1], "model.safetensors").read_bytes()
results = {}
for line in open(sys.argv[2]):
    item = json.loads(line)
    results[item["evomerge_id"]] = hashlib.sha256(weights + item["prompt"].encode()).digest()[0] / 255
print("what programs print before")
print(json.dumps({"score": results}))
"""


def command(folder):
    """A process of its own, which is handed the saved model."""
    python(folder)
    (folder / "program.py").write_text(PROGRAM)
    arguments = [sys.executable, "-I", "program.py", "{model}", "{items}"]
    return {"command": arguments, "items": "items.jsonl", "tasks": ["score"]}


MAKERS = {"lm_eval": [lm_eval, greedy, language], "python": [python], "command": [command]}


@pytest.fixture(params=[pytest.param((k, m), id=f"{k}-{m.__name__}") for k in EVALUATORS for m in MAKERS[k]])
def file(request, tmp_path):
    torch.set_num_threads(1)
    path = tmp_path / "e.yaml"
    kind, make = request.param
    path.write_text(yaml.safe_dump({"kind": kind} | make(tmp_path)))
    return load_evaluator(path)


@pytest.fixture
def model():
    return live_model(zoo.path("kovesh"), dtype=torch.float32)


@pytest.fixture
def tokenizer():
    return load_tokenizer(zoo.path("kovesh"))


def test_items_are_disjoint_between_splits(file):
    evaluator = open_evaluator(file)
    found = [set(ids) for split in SPLITS for t, ids in evaluator.items(split).items() if t in evaluator.texts(split)]
    assert all(found) and len(set.union(*found)) == sum(map(len, found))


def test_every_item_has_its_text(file):
    """The same in a fresh evaluator, other texts for other items."""
    evaluator = open_evaluator(file)
    for split in SPLITS:
        texts, items = evaluator.texts(split), evaluator.items(split)
        assert texts and {t: len(x) for t, x in texts.items()} == {t: len(items[t]) for t in texts}
        assert all(len(set(x)) == len(x) and all(x) for x in texts.values())
        assert texts == open_evaluator(file).texts(split)


def test_a_score_has_one_result_per_item(file, model, tokenizer):
    evaluator = open_evaluator(file)
    for split in SPLITS:
        for task in evaluator.evaluate(model, tokenizer, split).tasks:
            assert task.items == evaluator.items(split)[task.task] and len(task.results) == len(task.items)
            assert task.value == pytest.approx(float(task.results.mean()), abs=1e-6)


def test_scores_are_repeatable_and_leave_the_model_as_it_was(file, model, tokenizer):
    before = {k: v.clone() for k, v in model.state_dict().items()}
    first = open_evaluator(file).evaluate(model, tokenizer, "search")
    evaluator = open_evaluator(file)
    evaluator.evaluate(model, tokenizer, "test")
    again = evaluator.evaluate(model, tokenizer, "search")
    assert [t.results.tolist() for t in first.tasks] == [t.results.tolist() for t in again.tasks]
    assert all(torch.equal(before[k], v) for k, v in model.state_dict().items())
    assert not model._forward_hooks and not model.training


def test_nan_weights_fail(file, model, tokenizer):
    with torch.no_grad():
        model.model.norm.weight[0] = float("nan")
    with pytest.raises(CandidateError):
        open_evaluator(file).evaluate(model, tokenizer, "search")


def test_the_fingerprint_is_plain_data_that_devices_do_not_change(file):
    data = json.dumps(file.fingerprint(), sort_keys=True)
    again = type(file)(
        file.config.model_copy(update={"device": "cuda", "batch_size": 3}), file.name, file.folder, file.file
    )
    assert json.dumps(again.fingerprint(), sort_keys=True) == data


def test_what_a_study_is_known_by_does_not_say_where_it_lies(file, tmp_path):
    """A folder that was moved, or another machine's, is the same evaluator: its studies go on."""
    moved = tmp_path / "moved"
    moved.mkdir()
    data = yaml.safe_load((tmp_path / "e.yaml").read_text())
    if "include_path" in data:
        shutil.copytree(data["include_path"], moved / "tasks")
        data["include_path"] = "tasks"
    for other in (f for f in tmp_path.iterdir() if f.is_file()):
        shutil.copy(other, moved)
    (moved / "e.yaml").write_text(yaml.safe_dump(data))
    there = load_evaluator(moved / "e.yaml")
    assert there.fingerprint() == file.fingerprint()
    here, away = open_evaluator(file), open_evaluator(there)
    assert (here.definition(), here.versions()) == (away.definition(), away.versions())
    assert all(here.items(split) == away.items(split) for split in SPLITS)


def test_some_of_the_items_score_as_they_do_among_all(file, model, tokenizer):
    evaluator = open_evaluator(file)
    whole = evaluator.evaluate(model, tokenizer, "search").tasks[0]
    for places in ((0,), tuple(range(1, len(whole.items), 3)), tuple(range(len(whole.items)))):
        part = evaluator.evaluate(model, tokenizer, "search", {whole.task: places}).tasks[0]
        assert part.items == tuple(whole.items[p] for p in places) and part.metric == whole.metric
        assert part.results.tolist() == pytest.approx([whole.results[p] for p in places], abs=1e-5)
        assert part.value == pytest.approx(float(part.results.mean()), abs=1e-6)


def test_it_has_all_that_the_contract_names(file):
    """The table names classes as text, where mypy does not look."""
    evaluator = open_evaluator(file)
    names = {n for n in vars(Evaluator) if not n.startswith("_")}
    assert "searched" in names and evaluator.sees is False
    assert all(callable(getattr(evaluator, n, None)) for n in names - {"sees"})
    assert set(evaluator.searched()) == {t for t in evaluator.items("search") if t in evaluator.texts("search")}
    assert evaluator.groups() == {}
