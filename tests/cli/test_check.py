"""`evomerge check`: which kind of file it is, and what is wrong with it."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from evomerge import presets

RECIPE = """
merge_method: task_arithmetic
base_model: zoo:base
models:
  - {model: zoo:maths, parameters: {weight: 0.8}}
dtype: bfloat16
"""


def test_a_recipe(command: Callable, tmp_path: Path) -> None:
    (tmp_path / "r.yaml").write_text(RECIPE)
    data = command("check", tmp_path / "r.yaml", "--json").json
    assert (data["kind"], data["ok"], data["method"]) == ("recipe", True, "task_arithmetic")
    assert data["models"] == ["zoo:maths", "zoo:base"] and data["plan"]
    assert "recipe, in order" in command("check", tmp_path / "r.yaml").out


@pytest.mark.parametrize("name", presets.names("search_spaces"))
def test_every_preset_space(command: Callable, name: str) -> None:
    data = command("check", f"search_spaces/{name}.yaml", "--json").json
    assert data["kind"] == "space" and data["parameters"] and data["layers"] == 4


@pytest.mark.parametrize("name", presets.names("evaluators"))
def test_every_preset_evaluator(command: Callable, name: str) -> None:
    data = command("check", f"evaluators/{name}", "--json").json
    assert data["kind"] == "evaluator" and set(data["items"]) == {"search", "select", "test"}


def test_mergekit_evolves_configuration_is_a_space(command: Callable, tmp_path: Path) -> None:
    (tmp_path / "evolve.yaml").write_text(
        "genome:\n  models: [zoo:maths, zoo:kovesh]\n  base_model: zoo:base\n  merge_method: task_arithmetic\n"
        "  layer_granularity: 2\ntasks:\n  - {name: kovesh_problems, weight: 1.0}\n"
    )
    assert command("check", tmp_path / "evolve.yaml", "--json").json["kind"] == "space"


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("merge_method: tise\nmodels: [{model: zoo:maths}]\n", 'did you mean "ties"'),
        ("merge_method: linear\nmodels: [{model: zoo:math, parameters: {weight: 1}}]\n", "zoo:math"),
        ("merge_method: linear\nmodls: []\n", 'did you mean "models"'),
        ("a: [1\n", "YAML syntax error"),
        ("colour: blue\n", "neither a recipe, a space nor an evaluator"),
        ("", "expected a mapping"),
        ("kind: python\ntasks: [x]\nfunction: none.py:f\n", "none.py"),
        ("tasks: [x]\nsplit_sed: 3\n", 'did you mean "split_seed"'),
    ],
)
def test_what_is_wrong_is_one_message(command: Callable, tmp_path: Path, text: str, words: str) -> None:
    (tmp_path / "f.yaml").write_text(text)
    assert words in command("check", tmp_path / "f.yaml").error


def test_low_above_high(command: Callable, tmp_path: Path) -> None:
    command("init", tmp_path)
    text = (tmp_path / "space.yaml").read_text().replace("low: 0.0, high: 1.5", "low: 1.5, high: 0.2")
    (tmp_path / "space.yaml").write_text(text)
    error = command("check", tmp_path / "space.yaml").error
    assert "low = 1.5" in error and "space.yaml:" in error


def test_a_missing_file_names_the_nearest(command: Callable, tmp_path: Path) -> None:
    (tmp_path / "space.yaml").write_text("")
    assert f'did you mean "{tmp_path / "space.yaml"}"' in command("check", tmp_path / "spac.yaml").error
