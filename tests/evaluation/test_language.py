"""Answers count only in the language asked for: by the identifier on given texts, and end to end through lm-eval."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import pytest
import yaml

from evomerge import presets
from evomerge.errors import EvaluatorError
from evomerge.evaluation import EvaluatorFile, load_evaluator, open_evaluator
from evomerge.evaluation.language import in_language, probability
from tests.evaluation.told import ANSWERS, evaluator, model, tokenizer

JAPANESE = "りんごが3つあり、5つもらったので、3 + 5 = 8。答えは8です。"
ENGLISH = "She has 3 apples and gets 5 more, so that 3 + 5 = 8. The answer is 8."


@pytest.mark.parametrize(
    ("text", "language"),
    [
        (JAPANESE, "ja"),
        ("答え：１２", "ja"),
        (ENGLISH, "en"),
        ("Sie hat 3 Äpfel und bekommt 5 dazu, also sind es 8.", "de"),
        ("小明有3个苹果,又得到5个。3+5=8。答案是8。", "zh"),
        ("Elle a 3 pommes et en reçoit 5, donc 3 + 5 = 8.", "fr"),
    ],
)
def test_answers_are_told_apart(text: str, language: str) -> None:
    assert in_language(text, language)
    assert not any(in_language(text, other) for other in {"ja", "en", "de", "zh", "fr", "ko"} - {language})


@pytest.mark.parametrize("text", ["", "8", "#### 1,200", "3 + 5 = 8", "１２", "$\n"])
def test_numbers_are_of_no_language(text: str) -> None:
    assert all(probability(text, language) == 0.0 for language in ("ja", "en", "sr"))


def test_a_few_letters_that_may_be_of_several_languages_do_not_count() -> None:
    assert 0 < probability("El total es 8", "es") <= 0.5


@pytest.fixture
def told(tmp_path: Path):
    """(model, tokenizer, evaluator's maker): items are answered as told."""

    def made(items: int = 40, keys: dict | None = None, **task: object) -> EvaluatorFile:
        return load_evaluator(evaluator(tmp_path, items, keys, **task))

    return model(), tokenizer(), made


def kinds(texts: tuple[str, ...]) -> list[str]:
    return [t.split("|")[-1].split(" ")[0] for t in texts]


def test_end_to_end_a_right_answer_counts_in_its_language_alone(told, tmp_path: Path) -> None:
    live, words, made = told
    plain = open_evaluator(made()).evaluate(live, words, "test").tasks
    held = open_evaluator(made(language="ja"))
    asked = kinds(held.texts("test")["mgsm_ja_steps"])
    assert set(asked) == set(ANSWERS)
    target, share = held.evaluate(live, words, "test").tasks
    assert len(plain) == 1 and plain[0].results.tolist() == [float(k in ("one", "two", "four")) for k in asked]
    assert target.results.tolist() == [float(k == "one") for k in asked]
    assert target.metric == "exact_match, answers in ja" and target.weight == 1
    assert share.task == "mgsm_ja_steps in ja" and share.weight == 0
    assert share.results.tolist() == [float(k in ("one", "three")) for k in asked]
    assert held.items("test")[share.task] == share.items == target.items
    # While searching only what counts is scored, block by block too.
    (searched,) = held.evaluate(live, words, "search", {"mgsm_ja_steps": (0, 2)}).tasks
    assert searched.items == tuple(held.items("search")["mgsm_ja_steps"][p] for p in (0, 2))
    assert "mgsm_ja_steps in ja" not in held.items("search")
    english = open_evaluator(made(language="en")).evaluate(live, words, "test").tasks[0]
    assert english.results.tolist() == [float(k == "two") for k in asked]


def test_the_share_of_answers_in_the_language_is_measured_by_item_for_constraints(told) -> None:
    live, words, made = told
    constraints = {"constraints": [{"of": "mgsm_ja_steps.language", "at_least": 0.9}]}
    held = open_evaluator(made(keys=constraints, language="ja"))
    asked = kinds(held.texts("search")["mgsm_ja_steps"])
    assert set(asked) == set(ANSWERS)
    target, share = held.evaluate(live, words, "search").tasks
    assert target.results.tolist() == [float(k == "one") for k in asked]
    assert (share.task, share.metric, share.weight) == ("mgsm_ja_steps.language", "language", 0)
    assert share.results.tolist() == [float(k in ("one", "three")) for k in asked] and share.items == target.items
    assert share.value == pytest.approx(share.results.mean()) and not share.flipped
    (some,) = (t for t in held.evaluate(live, words, "search", {"mgsm_ja_steps": (0, 2)}).tasks if t.task == share.task)
    assert some.items == (share.items[0], share.items[2]) and some.results.tolist() == share.results[[0, 2]].tolist()


def test_results_of_another_language_are_not_used_again(told) -> None:
    _, _, made = told
    found = [open_evaluator(made(**keys)) for keys in ({}, {"language": "ja"}, {"language": "zh"})]
    assert len({e.versions()["mgsm_ja_steps"] for e in found}) == 3
    assert len({e.definition()["mgsm_ja_steps"] for e in found}) == 3


@pytest.mark.parametrize(
    ("keys", "words"),
    [
        ({"language": "jp"}, 'task "mgsm_ja_steps": language = "jp": expected an ISO 639-1 code that py3langid knows'),
        ({"language": "wuu"}, 'language = "wuu"'),
        ({"language": "Japanese"}, "did you mean ja? Valid: af, am,"),
        ({"language": "ja", "greedy_likelihood": True}, "language needs the answers, and greedy_likelihood generates"),
        ({"language": "ja", "higher_is_better": False}, "is better when lower; expected one that is 0 at the least"),
    ],
)
def test_what_cannot_be_is_one_message(told, keys: dict, words: str) -> None:
    with pytest.raises(EvaluatorError) as error:
        open_evaluator(told[2](**keys))
    assert words in str(error.value) and "e.yaml" in str(error.value) and "\n" not in str(error.value)


def test_a_task_without_answers_and_a_function_are_refused(tmp_path: Path) -> None:
    file = tmp_path / "e.yaml"
    zoo = str(presets.folder("evaluators") / "zoo")
    file.write_text(yaml.safe_dump({"include_path": zoo, "tasks": [{"name": "kovesh_direction", "language": "ja"}]}))
    with pytest.raises(EvaluatorError, match="the task is multiple_choice; expected generate_until"):
        open_evaluator(load_evaluator(file))
    python = {"kind": "python", "function": "f.py:score", "tasks": [{"name": "mine", "language": "ja"}]}
    file.write_text(yaml.safe_dump(python))
    with pytest.raises(EvaluatorError, match='task "mine": language belongs to kind "lm_eval"'):
        load_evaluator(file)


def test_the_preset_is_read_and_needs_the_hub_alone() -> None:
    file = load_evaluator("mgsm_ja")
    (task,) = file.config.tasks
    assert (task.name, task.metric, task.language) == ("mgsm_ja_steps", "exact_match,last-number", "ja")


@pytest.mark.parametrize(
    ("text", "number"),
    [
        ("2個で1,200円。答えは1,200円です。", "1200"),
        ("答えは１，２００です", "1200"),
        ("1,234,567.50", "1234567.5"),
        ("3 + 5 = 8.", "8"),
        ("5-3", "3"),
        ("答えは-3", "-3"),
        ("12.00", "12"),
        ("100", "100"),
        ("1,2", "2"),
        ("12,3456", "3456"),
        ("わかりません", ""),
    ],
)
def test_the_presets_filter_reads_numbers_as_people_write_them(text: str, number: str) -> None:
    path = presets.folder("evaluators") / "mgsm_ja" / "answers.py"
    spec = importlib.util.spec_from_file_location("answers", path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    assert module.last_number([[text]], [{}]) == [[number]]


def test_what_the_published_code_and_lm_evals_filter_read() -> None:
    """Why the preset has a filter of its own."""
    import re

    from lm_eval.filters.extraction import RegexFilter

    assert re.findall(r"\d*\.?\d+", "1,200")[-1] == "200"  # the published evaluation's pattern, arXiv 2403.13187
    flexible = RegexFilter(r"(-?[$0-9.,]{2,})|(-?[0-9]+)", group_select=-1)  # of mgsm_direct_ja
    assert flexible.apply([["1,200"]], [{}]) == [["1,200"]]  # right, once the metric leaves out punctuation,
    assert flexible.apply([["12.5"]], [{}]) == [["12.5"]]  # which makes 125 of this
