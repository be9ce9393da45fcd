"""`evomerge init`: files that are right as they are."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

NAMES = ["space.yaml", "evaluator.yaml", "score.py", "items.jsonl"]


def test_writes_and_says_what_next(command: Callable, tmp_path: Path) -> None:
    done = command("init", tmp_path / "a" / "b")
    assert done.code == 0 and "evomerge search space.yaml" in done.out
    assert {f.name for f in (tmp_path / "a" / "b").iterdir()} == set(NAMES)


def test_default_is_this_folder(command: Callable, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    data = command("init", "--json").json
    assert data == {"dir": ".", "files": NAMES}


@pytest.mark.parametrize("name", ["dataflow", "hybrid"])
def test_starts_from_a_preset(command: Callable, tmp_path: Path, name: str) -> None:
    command("init", tmp_path, "--space", name)
    found = command("check", tmp_path / "space.yaml", "--json").json
    assert found["space"] == name
    error = command("init", tmp_path / "b", "--space", "dataflw").error
    assert 'did you mean "dataflow"' in error and not (tmp_path / "b").exists()


def test_touches_nothing_that_exists(command: Callable, tmp_path: Path) -> None:
    (tmp_path / "score.py").write_text("mine")
    assert f"{tmp_path / 'score.py'}: there already" in command("init", tmp_path).error
    assert [f.name for f in tmp_path.iterdir()] == ["score.py"]
    assert (tmp_path / "score.py").read_text() == "mine"


def test_unwritable(command: Callable, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    assert "cannot be written" in command("init", tmp_path / "file").error


def test_what_it_writes_passes_check(command: Callable, tmp_path: Path) -> None:
    command("init", tmp_path)
    space = command("check", tmp_path / "space.yaml", "--json").json
    assert (space["kind"], space["ok"]) == ("space", True) and len(space["parameters"]) > 3
    evaluator = command("check", tmp_path / "evaluator.yaml", "--json").json
    assert evaluator["kind"] == "evaluator"
    assert sum(counts["problems"] for counts in evaluator["items"].values()) == 600


def test_the_scoring_function_scores_a_real_model(command: Callable, tmp_path: Path) -> None:
    """The base solves some of the problems and not all: the function is neither always right nor always wrong."""
    from transformers import AutoModelForCausalLM, AutoTokenizer

    from evomerge import zoo
    from evomerge.evaluation import load_evaluator, open_evaluator

    command("init", tmp_path)
    model = AutoModelForCausalLM.from_pretrained(zoo.path("base"), dtype="float32").eval()
    tokenizer = AutoTokenizer.from_pretrained(zoo.path("base"))
    score = open_evaluator(load_evaluator(tmp_path / "evaluator.yaml")).evaluate(model, tokenizer, "search")
    assert 0.05 < score.value < 0.7
