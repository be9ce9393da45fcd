"""`kind: lm_eval`: the same scores as lm-eval itself, from tasks that are built once."""

import shutil

import lm_eval
import numpy as np
import pytest
import torch
import yaml
from lm_eval.models.huggingface import HFLM
from lm_eval.tasks import TaskManager

from evomerge import presets
from evomerge.errors import CandidateError, EvaluatorError
from evomerge.evaluation import evaluator_for, load_evaluator, open_evaluator
from evomerge.evaluation.results import task_score
from evomerge.evaluation.splits import Item

ZOO = presets.folder("evaluators") / "zoo"
SMALL = {
    "search": {"share": 0.3, "items": 40},
    "select": {"share": 0.2, "items": 40},
    "test": {"share": 0.5, "items": 40},
}


def write(folder, **keys):
    file = folder / "e.yaml"
    data = {"include_path": str(ZOO), "tasks": ["kovesh_problems"], "splits": SMALL, "batch_size": 16} | keys
    file.write_text(yaml.safe_dump(data))
    return load_evaluator(file)


def reference(model, tokenizer, file, evaluator, split, num_fewshot=None):
    """lm-eval's own figures on the same items."""
    manager = TaskManager(include_path=str(ZOO), include_defaults=False)
    samples = {}
    for task in [t.name for t in file.config.tasks]:
        docs = manager.load([task])["tasks"][task].eval_docs
        from evomerge.evaluation.splits import divide

        found = divide(docs, file.config.splits, file.config.split_seed, task)[split]
        assert tuple(i.id for i in found) == evaluator.items(split)[task]
        samples[task] = [i.index for i in found]
    return lm_eval.simple_evaluate(
        model=HFLM(pretrained=model, tokenizer=tokenizer, batch_size=16),
        tasks=list(samples),
        task_manager=manager,
        samples=samples,
        num_fewshot=num_fewshot,
        bootstrap_iters=0,
        fewshot_random_seed=file.config.seed,
    )["results"]


@pytest.mark.parametrize("num_fewshot", [None, 2])
def test_scores_equal_simple_evaluate(tmp_path, maths, tokenizer, num_fewshot):
    keys = {} if num_fewshot is None else {"num_fewshot": num_fewshot}
    file = write(tmp_path, tasks=["kovesh_problems", "kovesh_direction"], **keys)
    evaluator = open_evaluator(file)
    score = evaluator.evaluate(maths, tokenizer, "search")
    expected = reference(maths, tokenizer, file, evaluator, "search", num_fewshot)
    assert score.task("kovesh_problems").value == expected["kovesh_problems"]["exact_match,none"]
    assert score.task("kovesh_direction").value == expected["kovesh_direction"]["acc,none"]
    if num_fewshot is None:
        assert 0 < score.value < 1  # a figure that could not tell models apart would prove nothing


def test_scores_come_back_after_another_model_was_scored(tmp_path, maths, base, tokenizer):
    evaluator = open_evaluator(write(tmp_path))
    first = evaluator.evaluate(maths, tokenizer, "search").tasks[0]
    other = evaluator.evaluate(base, tokenizer, "search").tasks[0]
    again = evaluator.evaluate(maths, tokenizer, "search").tasks[0]
    assert (first.results == again.results).all() and first.items == again.items
    assert not (first.results == other.results).all()


def test_weights_changed_in_place_are_scored_as_they_are_now(tmp_path, maths, base, tokenizer):
    evaluator = open_evaluator(write(tmp_path))
    evaluator.evaluate(base, tokenizer, "search")
    with torch.no_grad():
        for mine, theirs in zip(base.parameters(), maths.parameters(), strict=True):
            mine.copy_(theirs)
    changed = evaluator.evaluate(base, tokenizer, "search").tasks[0].results
    assert (changed == open_evaluator(write(tmp_path)).evaluate(maths, tokenizer, "search").tasks[0].results).all()


def test_tasks_of_weight_0_are_measured_but_not_searched_for(tmp_path, maths, tokenizer):
    tasks = [{"name": "kovesh_problems"}, {"name": "kovesh_direction", "weight": 0}]
    evaluator = open_evaluator(write(tmp_path, tasks=tasks))
    assert [t.task for t in evaluator.evaluate(maths, tokenizer, "search").tasks] == ["kovesh_problems"]
    test = evaluator.evaluate(maths, tokenizer, "test")
    assert [t.task for t in test.tasks] == ["kovesh_problems", "kovesh_direction"]
    assert test.value == test.task("kovesh_problems").value


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_weights_that_are_not_finite_are_a_failed_candidate(tmp_path, maths, tokenizer, value):
    evaluator = open_evaluator(write(tmp_path, tasks=["kovesh_problems", "kovesh_direction"]))
    with torch.no_grad():
        maths.model.layers[1].mlp.down_proj.weight[0, 0] = value
    with pytest.raises(CandidateError, match="NaN or infinite"):
        evaluator.evaluate(maths, tokenizer, "search")


def test_a_lower_is_better_metric_is_flipped_once():
    items = [Item(i, str(i)) for i in range(4)]
    score = task_score("t", "error", [1, 0, 0, 0], 1.0, False, items, lambda a: sum(a) / len(a))
    assert score.value == -0.25 and score.shown == 0.25 and score.flipped
    np.testing.assert_array_equal(score.results, [-1, 0, 0, 0])


def test_a_metric_that_is_no_mean_keeps_its_value_and_has_no_items():
    items = [Item(i, str(i)) for i in range(2)]
    score = task_score("t", "ppl", [(-3.0, 2), (-5.0, 3)], 1.0, False, items, lambda a: 2.0)
    assert score.value == -2.0 and not score.by_item


def test_nan_from_a_metric_is_a_failed_candidate():
    with pytest.raises(CandidateError, match="nan"):
        task_score("t", "m", [1.0], 1.0, True, [Item(0, "0")], lambda a: float("nan"))


@pytest.mark.ci
@pytest.mark.parametrize(
    ("keys", "words"),
    [
        ({"tasks": ["kovesh_problem"]}, 'unknown task "kovesh_problem"; did you mean "kovesh_problems"'),
        ({"tasks": [{"name": "kovesh_problems", "metric": "exact_mach"}]}, 'did you mean "exact_match"'),
        ({"tasks": [{"name": "kovesh_problems", "metric": "exact_match,strict"}]}, 'no filter "strict"'),
        ({"tasks": []}, "tasks"),
        ({"tasks": ["a", "a"]}, "named twice: a"),
        ({"tasks": [{"name": "a", "weight": 0}]}, "nothing to search for"),
        ({"tasks": [{"name": "a", "weight": -1}]}, "weight"),
        ({"taks": ["a"]}, 'unknown key "taks"; did you mean "tasks"'),
        ({"kind": "lmeval"}, 'did you mean "lm_eval"'),
        ({"kind": "python"}, "function"),
        ({"include_path": "nowhere"}, "include_path = nowhere: no such file or folder"),
        ({"splits": {"search": {"share": 0.9}}}, "more than 1"),
        ({"batch_size": 0}, "batch_size"),
    ],
)
def test_bad_input_is_one_clear_message(tmp_path, keys, words):
    with pytest.raises(EvaluatorError) as error:
        open_evaluator(write(tmp_path, **keys))
    assert words in str(error.value) and "e.yaml" in str(error.value)


def test_unknown_presets_name_the_nearest():
    with pytest.raises(EvaluatorError, match='did you mean "quickstart"'):
        load_evaluator("quikstart")


def test_tasks_on_the_command_line_find_the_zoo():
    evaluator = open_evaluator(evaluator_for(["kovesh_direction"]))
    assert len(evaluator.items("test")["kovesh_direction"]) > 600


def test_a_task_alone_and_in_a_group_is_refused(tmp_path):
    shutil.copytree(presets.folder("evaluators") / "zoo", tmp_path / "zoo")
    (tmp_path / "zoo" / "both.yaml").write_text("group: both\ntask: [ambri_direction, kovesh_direction]\n")
    file = write(tmp_path, include_path=str(tmp_path / "zoo"), tasks=["kovesh_direction", "both"])
    with pytest.raises(EvaluatorError, match='task "kovesh_direction" is in "kovesh_direction" and in "both"'):
        open_evaluator(file)
