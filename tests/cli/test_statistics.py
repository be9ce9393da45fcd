"""`evomerge statistics`, and `evomerge merge` with what it wrote."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
from safetensors import safe_open

TEXT = "drevin kunt 5 nesh\nnesh 7 kunt 3 drevin\n5 + 3 = 7\n"


@pytest.fixture
def text(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "text.txt").write_text(TEXT)
    return tmp_path / "text.txt"


@pytest.mark.parametrize(("kind", "method"), [("fisher", "fisher"), ("gram", "regmean")])
def test_collected_and_merged(command: Callable, text: Path, kind: str, method: str) -> None:
    from transformers import AutoModelForCausalLM

    folders = {}
    for name in ("maths", "kovesh"):
        done = command("statistics", f"zoo:{name}", text, "--kind", kind, "--json")
        assert done.code == 0, done.err
        data = done.json
        assert data["out"] == f"{name}-{kind}" and data["kind"] == kind and data["samples"] == 3
        assert (data["tensors"], data["reference"]) == ({"fisher": 38, "gram": 28}[kind], f"zoo:{name}")
        folders[f"zoo:{name}"] = data["out"]
    recipe = text.parent / "recipe.yaml"
    models = [{"model": reference} for reference in folders]
    recipe.write_text(json.dumps({"merge_method": method, "models": models, "dtype": "float32",
                                  "evomerge": {"statistics": folders}}))  # fmt: skip
    assert command("check", recipe).code == 0
    merged = command("merge", recipe, "out", "--json")
    assert merged.code == 0 and merged.json["method"] == method
    AutoModelForCausalLM.from_pretrained("out")
    # What was written can be built again, from any folder, and knows the statistics that it was made with.
    again = command("merge", Path("out") / "recipe.yaml", "again", "--json")
    assert again.code == 0 and again.json["recipe_hash"] == merged.json["recipe_hash"]
    assert Path("again/model.safetensors").read_bytes() == Path("out/model.safetensors").read_bytes()
    recipe.write_text(recipe.read_text().replace(json.dumps(folders), "{}"))
    error = command("merge", recipe, "third").error
    assert f"evomerge statistics 'zoo:maths' TEXT --kind {kind}" in error and not Path("third").exists()


def test_options(command: Callable, text: Path) -> None:
    words = ("statistics", "zoo:base", text, "--kind", "fisher", "--json")
    done = command(*words, "--out", "a", "--samples", 2, "--max-length", 4, "--labels", "text", "--seed", 5)
    assert done.json["samples"] == 2 and done.json["tokens"] == 8 and done.json["labels"] == "text"
    assert command(*words, "--out", "b").json["labels"] == "model"
    command(*words, "--out", "c", "--seed", 1)
    name = "model.layers.0.mlp.up_proj.weight"
    values = []
    for folder in "bc":
        with safe_open(f"{folder}/statistics.safetensors", framework="pt") as f:
            values.append(f.get_tensor(name))
    assert not values[0].equal(values[1])
    shown = command("statistics", "zoo:base", text, "--kind", "gram", "--out", "d")
    assert shown.code == 0 and "28 tensors" in shown.out and "statistics: {zoo:base: d}" in shown.out


def test_what_is_refused(command: Callable, text: Path) -> None:
    def error(*words: object) -> str:
        return command("statistics", *words).error

    assert "--kind" in error("zoo:base", text)
    assert 'did you mean "fisher"' in error("zoo:base", text, "--kind", "fischer")
    assert 'did you mean "maths"' in error("zoo:math", text, "--kind", "gram")
    assert "cannot be read" in error("zoo:base", "none.txt", "--kind", "gram")
    assert "at least 2" in error("zoo:base", text, "--kind", "gram", "--max-length", 1)
    assert "at least 1" in error("zoo:base", text, "--kind", "gram", "--samples", 0)
    assert "--device nowhere" in error("zoo:base", text, "--kind", "gram", "--device", "nowhere")
    Path("base-gram").mkdir()
    Path("base-gram/mine").write_text("")
    assert "exists already" in error("zoo:base", text, "--kind", "gram")
    assert sorted(p.name for p in Path().iterdir()) == ["base-gram", "text.txt"]
