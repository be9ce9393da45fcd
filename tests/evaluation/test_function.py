"""`kind: python`: a function of one's own, on items that are split like any others."""

import json

import pytest
import yaml

from evomerge.errors import CandidateError, EvaluatorError
from evomerge.evaluation import load_evaluator, open_evaluator

SCORE = """
import torch

def likelihood(model, tokenizer, items):
    out = []
    for item in items:
        ids = tokenizer(item["prompt"], return_tensors="pt").input_ids
        out.append(float(-model(ids, labels=ids).loss))
    return out

def two(model, tokenizer, items):
    return {"first": [1.0] * len(items), "second": [0.0] * len(items)}

def whole(model, tokenizer, split):
    return {"search": 0.1, "select": 0.2, "test": 0.3}[split]

def own_items(model, tokenizer, split):
    return {f"{split}-a": 1, f"{split}-b": 0}

def nan(model, tokenizer, items):
    return [float("nan")] * len(items)

def short(model, tokenizer, items):
    return [1.0]

def mean(model, tokenizer, items):
    return 0.5

def words(model, tokenizer, items):
    return ["good"] * len(items)
"""


def make(folder, **keys):
    (folder / "score.py").write_text(SCORE)
    lines = [{"prompt": f"strun kunt {i} nesh"} for i in range(20)]
    (folder / "items.jsonl").write_text("\n".join(json.dumps(line) for line in lines))
    file = folder / "e.yaml"
    data = {"kind": "python", "function": "score.py:likelihood", "items": "items.jsonl", "tasks": ["score"]} | keys
    file.write_text(yaml.safe_dump({k: v for k, v in data.items() if v is not None}))
    return open_evaluator(load_evaluator(file))


def test_a_function_scores_the_live_model_on_the_items_of_a_split(tmp_path, maths, tokenizer):
    evaluator = make(tmp_path)
    score = evaluator.evaluate(maths, tokenizer, "search")
    assert score.tasks[0].items == evaluator.items("search")["score"]
    assert score.value == pytest.approx(score.tasks[0].results.mean()) and score.value < 0
    assert set(score.tasks[0].items).isdisjoint(evaluator.evaluate(maths, tokenizer, "test").tasks[0].items)


def test_several_tasks_weights_and_directions(tmp_path, maths, tokenizer):
    tasks = [{"name": "first", "weight": 1}, {"name": "second", "weight": 3, "higher_is_better": False}]
    score = make(tmp_path, function="score.py:two", tasks=tasks).evaluate(maths, tokenizer, "test")
    assert score.value == 0.25 and score.task("second").flipped


def test_a_number_per_split_has_no_items(tmp_path, maths, tokenizer):
    evaluator = make(tmp_path, function="score.py:whole", items=None)
    assert evaluator.evaluate(maths, tokenizer, "select").value == 0.2
    assert not evaluator.evaluate(maths, tokenizer, "select").tasks[0].by_item


def test_a_function_may_bring_its_own_items(tmp_path, maths, tokenizer):
    score = make(tmp_path, function="score.py:own_items", items=None).evaluate(maths, tokenizer, "test")
    assert score.tasks[0].items == ("test-a", "test-b") and score.value == 0.5


@pytest.mark.parametrize(
    ("function", "words"),
    [
        ("nan", 'returned nan for task "score", item 1 of 6; expected finite numbers'),
        ("short", "returned 1 results for 6 items; expected one for each"),
        ("words", "expected numbers"),
        ("mean", "returned float 0.5 for 6 items; expected one result for each"),
    ],
)
def test_what_is_no_score_is_a_failed_candidate(tmp_path, maths, tokenizer, function, words):
    evaluator = make(tmp_path, function=f"score.py:{function}")
    with pytest.raises(CandidateError, match=words):
        evaluator.evaluate(maths, tokenizer, "search")


@pytest.mark.parametrize(
    ("keys", "words"),
    [
        ({"function": "score.py:likelihod"}, 'did you mean "likelihood"'),
        ({"function": "gone.py:f"}, "function = gone.py: no such file"),
        ({"items": "gone.jsonl"}, "items = gone.jsonl: no such file"),
    ],
)
def test_bad_input_is_one_clear_message(tmp_path, keys, words):
    with pytest.raises(EvaluatorError) as error:
        make(tmp_path, **keys)
    assert words in str(error.value)


def test_a_broken_items_file_names_the_line(tmp_path):
    make(tmp_path)
    (tmp_path / "items.jsonl").write_text('{"prompt": "a"}\n{oops\n')
    with pytest.raises(EvaluatorError, match=r"items\.jsonl:2: not JSON"):
        open_evaluator(load_evaluator(tmp_path / "e.yaml"))
