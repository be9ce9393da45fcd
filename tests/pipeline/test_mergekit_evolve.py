"""`evomerge search` with mergekit-evolve's own configuration, as it is."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

import evomerge
from evomerge.cli import main

FILE: dict[str, Any] = {
    "genome": {
        "models": ["zoo:maths", "zoo:kovesh"],
        "base_model": "zoo:base",
        "merge_method": "task_arithmetic",
        "layer_granularity": 2,
    },
    "tasks": [{"name": "kovesh_direction", "metric": "acc,none"}, {"name": "ambri_sorting", "weight": 0.5}],
    "limit": 12,
    "shuffle": True,
}


@pytest.fixture
def written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Path]:
    monkeypatch.chdir(tmp_path)

    def write(**change: Any) -> Path:
        (tmp_path / "evolve.yml").write_text(yaml.safe_dump({**FILE, **change}))
        return tmp_path / "evolve.yml"

    return write


@pytest.mark.ci
def test_it_runs_as_it_is_and_says_what_it_changed(
    written: Callable[..., Path], capsys: pytest.CaptureFixture[str]
) -> None:
    file = written()
    assert main(["search", str(file), "--budget", "2", "--workers", "0", "--out", "out", "--json"]) == 0
    said = capsys.readouterr()
    result = json.loads(said.out)
    assert set(result["tasks"]) == {"kovesh_direction", "ambri_sorting"}
    for words in (
        "weights are searched from 0 to 2", "items are divided", "limit: 12 items", "shuffle", "weighted mean",
        "no chat template is applied: zoo:base, zoo:maths, zoo:kovesh has none",
    ):  # fmt: skip
        assert sum(f"{file}: " in line and words in line for line in said.err.splitlines()) == 1, words
    items = evomerge.Study("out").items("search")
    searched = items[items["subject"] == "trial/0"]
    assert searched.groupby("task", observed=True).size().to_dict() == {"kovesh_direction": 12, "ambri_sorting": 12}
    recipe = yaml.safe_load(Path("out/recipe.yaml").read_text())
    assert recipe["merge_method"] == "task_arithmetic" and recipe["dtype"] == "bfloat16"


@pytest.mark.ci
def test_tasks_of_its_own_folder(written: Callable[..., Path], capsys: pytest.CaptureFixture[str]) -> None:
    """mergekit-evolve's --task-search-path."""
    Path("tasks").mkdir()
    Path("tasks/mine.jsonl").write_text("\n".join(json.dumps({"q": f"drevin {i} kunt", "a": i % 2}) for i in range(60)))
    task = {
        "task": "mine", "dataset_path": "json", "dataset_kwargs": {"data_files": {"test": "tasks/mine.jsonl"}},
        "test_split": "test", "output_type": "multiple_choice", "doc_to_text": "{{q}}", "doc_to_target": "a",
        "doc_to_choice": ["nesh", "kunt"], "metric_list": [{"metric": "acc"}],
    }  # fmt: skip
    Path("tasks/mine.yaml").write_text(yaml.safe_dump(task))
    file = written(tasks=["mine"])
    run = ["search", str(file), "--budget", "1", "--workers", "0", "--out", "out"]
    assert main(run) == 2 and "mine" in capsys.readouterr().err
    assert main([*run, "--include-path", "nowhere"]) == 2
    assert "--include-path nowhere: no such folder" in capsys.readouterr().err
    assert main([*run, "--include-path", "tasks"]) == 0
    assert main(["evaluate", "zoo:maths", "--tasks", "mine", "--include-path", "tasks"]) == 0
    capsys.readouterr()
    assert main(["evaluate", "zoo:maths", "--include-path", "tasks"]) == 2


@pytest.mark.ci
@pytest.mark.parametrize(
    ("change", "options", "words"),
    [
        ({"apply_chat_template": True}, [], "apply_chat_template: zoo:base, zoo:maths, zoo:kovesh: has no"),
        ({"tasks": []}, [], "evolve.yml: names no tasks"),
        ({"tasks": ["kovesh_direktion"]}, [], "kovesh_direktion"),
        ({"limit": 0}, [], "limit = 0"),
        ({}, ["--evaluator", "quickstart", "--include-path", "."], "an evaluator names its own folder"),
    ],
)
def test_what_cannot_be_is_refused_first(
    change: dict[str, Any], options: list[str], words: str, written: Callable[..., Path],
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    file = written(**change)
    assert main(["search", str(file), "--budget", "2", "--out", "out", *options]) == 2
    assert words in capsys.readouterr().err and not Path("out").exists()


def test_an_evaluator_or_other_models_may_stand_in_for_the_files(
    written: Callable[..., Path], capsys: pytest.CaptureFixture[str]
) -> None:
    """--models keeps the file's tasks."""
    from evomerge.pipeline import Options
    from evomerge.pipeline.options import Asked
    from evomerge.study.budget import Budget

    file = str(written(apply_chat_template=False))
    other = Asked.by(Options(Budget(1), space=file, models=["zoo:maths", "zoo:sorting"]))
    assert [t.name for t in other.evaluator.config.tasks] == ["kovesh_direction", "ambri_sorting"]
    assert [s.name for s in other.config.sources] == ["maths", "sorting"] and other.config.base_model == "zoo:base"
    named = Asked.by(Options(Budget(1), space=file, evaluator="quickstart"))
    assert named.evaluator.name == "quickstart"
    assert not [line for line in named.changes if "limit" in line or "items" in line]  # another evaluator's own


def test_check_tells_it_too(written: Callable[..., Path], capsys: pytest.CaptureFixture[str]) -> None:
    file = written()
    assert main(["check", str(file)]) == 0
    out = capsys.readouterr().out
    assert "mergekit-evolve's configuration, with tasks: kovesh_direction, ambri_sorting" in out
    assert "weights are searched from 0 to 2" in out


@pytest.mark.ci
def test_its_best_recipe_is_where_a_search_may_begin(
    written: Callable[..., Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """`best_config.yaml`, as mergekit-evolve leaves it, is tried first."""
    evolve = pytest.importorskip("mergekit.evo.config")
    from mergekit.evo.genome import ModelGenome

    from evomerge import zoo

    models = {r: str(zoo.path(r.removeprefix("zoo:"))) for r in ("zoo:base", "zoo:maths", "zoo:kovesh")}
    genome = {**FILE["genome"], "models": [models["zoo:maths"], models["zoo:kovesh"]], "base_model": models["zoo:base"]}
    file = written(genome=genome)
    found = ModelGenome(evolve.EvolMergeConfiguration.model_validate(yaml.safe_load(file.read_text())).genome)
    Path("best_config.yaml").write_text(found.genotype_merge_config([0.9, 0.4, 0.7, 0.6]).to_yaml())
    run = ["search", str(file), "--budget", "1", "--workers", "0", "--out", "out", "--enqueue", "best_config.yaml"]
    assert main([*run, "--no-starts"]) == 0
    capsys.readouterr()
    found = evomerge.Study("out")
    assert sorted(found.best_params.values()) == pytest.approx([0.4, 0.6, 0.7, 0.9])
