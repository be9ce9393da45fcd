"""`evomerge.merge`, `evaluate` and `fuse` as functions."""

from __future__ import annotations

import json
from pathlib import Path

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


@pytest.mark.slow
def test_fuse_is_the_command(tmp_path: Path) -> None:
    assert main(["init", "--fusion", str(tmp_path / "f")]) == 0
    fused = evomerge.fuse(tmp_path / "f" / "fusion.yaml", tmp_path / "out", workers=0, progress=False)
    assert (fused.model / "config.json").is_file() and (tmp_path / "out" / "result.json").is_file()
    assert {m.role for m in fused.models} >= {"target", "source", "fused"}
