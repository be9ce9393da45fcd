"""`evomerge.merge`, `evaluate` and `fuse` as functions."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

import evomerge
from evomerge.cli import main
from evomerge.errors import InputError, RecipeError

RECIPE = {
    "merge_method": "ties",
    "base_model": "zoo:base",
    "models": [
        {"model": "zoo:maths", "parameters": {"weight": 1, "density": 0.5}},
        {"model": "zoo:kovesh", "parameters": {"weight": [0.4, 0.9], "density": 0.5}},
    ],
}


def test_a_recipe_as_mapping_file_and_object_gives_the_same_bytes(tmp_path: Path) -> None:
    import yaml

    (tmp_path / "recipe.yaml").write_text(yaml.safe_dump(RECIPE))
    file = tmp_path / "recipe.yaml"
    given = [RECIPE, file, str(file), evomerge.load_recipe(file)]
    built = [evomerge.merge(r, tmp_path / str(i)) for i, r in enumerate(given)]
    assert main(["merge", str(tmp_path / "recipe.yaml"), str(tmp_path / "command")]) == 0
    weights = {(b.out / "model.safetensors").read_bytes() for b in built}
    assert weights == {(tmp_path / "command" / "model.safetensors").read_bytes()}
    assert len({b.recipe_hash for b in built}) == 1 and set(built[0].sources) == {"zoo:base", "zoo:maths", "zoo:kovesh"}


def test_a_wrong_recipe_is_refused_and_nothing_is_written(tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match=r'<recipe>:\d+: .*tise.*did you mean "ties"'):
        evomerge.merge({**RECIPE, "merge_method": "tise"}, tmp_path / "out")
    assert not (tmp_path / "out").exists()
    evomerge.merge(RECIPE, tmp_path / "out")
    with pytest.raises(InputError, match="is not empty"):
        evomerge.merge(RECIPE, tmp_path / "out")
    evomerge.merge(RECIPE, tmp_path / "out", overwrite=True)


@pytest.mark.ci
def test_evaluate_is_the_command(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    found = evomerge.evaluate("zoo:maths", "quickstart_likelihood")
    capsys.readouterr()
    assert main(["evaluate", "zoo:maths", "--evaluator", "quickstart_likelihood", "--json"]) == 0
    said = json.loads(capsys.readouterr().out)
    assert found.value == pytest.approx(said["score"]) and found.split == said["split"] == "select"
    tasks = found.tasks().set_index("task")
    for name, facts in said["tasks"].items():
        assert tasks.loc[name, "score"] == pytest.approx(facts["score"])
        assert tasks.loc[name, "items"] == facts["items"]
    items = found.items()
    counted = [t for t in found.score.tasks if t.weight]
    assert len(items[items["task"] == counted[0].task]) == len(counted[0].items)
    with pytest.raises(InputError, match="cannot both be given"):
        evomerge.evaluate("zoo:maths", "quickstart", tasks=["a"])
    with pytest.raises(InputError, match='split = "dev"'):
        evomerge.evaluate("zoo:maths", split="dev")  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"seed": -1}, "seed = -1: expected a whole number from 0"),
        ({"seed": "x"}, "seed = 'x': expected a whole number"),
        ({"threads": 0}, "threads = 0: expected a whole number from 1"),
        ({"device": "foo"}, "--device foo: expected cpu"),
        ({"device": None}, r"device = nothing \(empty\): expected a text"),
        ({"overwrite": "no"}, "overwrite = 'no': expected True or False"),
        ({"recipe": None}, r"recipe = nothing \(empty\): expected a file, a mapping"),
        ({"recipe": [1]}, r"recipe = \[1\]: expected a file, a mapping"),
        ({"recipe": {}}, '<recipe>: key "merge_method" is missing'),
        ({"recipe": {**RECIPE, "models": [object()]}}, "<recipe>: holds <object object at .*; expected texts, numbers"),
        ({"out": None}, r"out = nothing \(empty\): expected the path"),
    ],
)
def test_what_is_wrong_with_a_merge(change: dict[str, object], words: str, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=words):
        evomerge.merge(**{"recipe": RECIPE, "out": tmp_path / "out", **change})  # type: ignore[arg-type]
    assert not (tmp_path / "out").exists()


def test_numbers_of_numpy_give_the_same_merge(tmp_path: Path) -> None:
    parameters = {"weight": np.array([0.4, 0.9]), "density": np.float64(0.5)}
    first = {"model": "zoo:maths", "parameters": {"weight": np.int64(1), "density": np.float64(0.5)}}
    given = {**RECIPE, "models": (first, {"model": "zoo:kovesh", "parameters": parameters})}
    built = evomerge.merge(given, tmp_path / "numpy", seed=np.int64(3), threads=np.int32(1))  # type: ignore[arg-type]
    assert built.recipe_hash == evomerge.merge(RECIPE, tmp_path / "plain", seed=3, threads=1).recipe_hash


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"fusion": {"kind": "fuse"}}, "fusion = .*: expected the path of a file"),
        ({"out": 3}, "out = 3: expected the path"),
        ({"workers": -1}, "workers = -1: expected a whole number"),
        ({"progress": "no"}, "progress = 'no': expected True or False"),
    ],
)
def test_what_is_wrong_with_a_fusion(change: dict[str, object], words: str, tmp_path: Path) -> None:
    given = {"fusion": tmp_path / "fusion.yaml", "out": tmp_path / "out", **change}
    with pytest.raises(InputError, match=words):
        evomerge.fuse(**given)  # type: ignore[arg-type]
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"device": "foo"}, "--device foo: expected cpu"),
        ({"device": 0}, "device = 0: expected a text"),
        ({"model": None}, r"model = nothing \(empty\): expected a text"),
        ({"evaluator": {}}, '<evaluator>: key "tasks" is missing'),
        ({"evaluator": 3}, "evaluator = 3: expected a file, a preset's name"),
        ({"tasks": 3}, "tasks = 3: expected a list of texts"),
    ],
)
def test_what_is_wrong_with_an_evaluation(change: dict[str, object], words: str) -> None:
    with pytest.raises(InputError, match=words):
        evomerge.evaluate(**{"model": "zoo:maths", **change})  # type: ignore[arg-type]


@pytest.mark.slow
def test_fuse_is_the_command(tmp_path: Path) -> None:
    assert main(["init", "--fusion", str(tmp_path / "f")]) == 0
    fused = evomerge.fuse(tmp_path / "f" / "fusion.yaml", tmp_path / "out", workers=0, progress=False)
    assert (fused.model / "config.json").is_file() and (tmp_path / "out" / "result.json").is_file()
    assert {m.role for m in fused.models} >= {"target", "source", "fused"}
