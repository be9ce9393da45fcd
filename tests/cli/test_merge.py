"""`evomerge merge`: a real checkpoint comes out, or one clear line and nothing on the disk."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from evomerge import zoo

RECIPE = """
merge_method: linear
models:
  - {model: zoo:maths, parameters: {weight: 0.25}}
  - {model: ./mine, parameters: {weight: 0.75}}
dtype: float32
"""


@pytest.fixture
def recipe(tmp_path: Path, command: Callable) -> Path:
    """A recipe beside a model that it names relative to itself."""
    (tmp_path / "here").mkdir()
    command("zoo", "copy", "kovesh", tmp_path / "here" / "mine")
    (tmp_path / "here" / "recipe.yaml").write_text(RECIPE)
    return tmp_path / "here" / "recipe.yaml"


def test_builds_a_checkpoint_that_loads_and_generates(command: Callable, recipe: Path, tmp_path: Path) -> None:
    import torch
    from safetensors.torch import load_file
    from transformers import AutoModelForCausalLM, AutoTokenizer

    data = command("merge", recipe, tmp_path / "out", "--json").json
    assert data["method"] == "linear" and data["bytes"] > 1e6 and len(data["recipe_hash"]) == 64
    merged = load_file(tmp_path / "out" / "model.safetensors")
    a, b = (load_file(zoo.path(n) / "model.safetensors") for n in ("maths", "kovesh"))
    name = "model.layers.1.mlp.down_proj.weight"
    expected = 0.25 * a[name].double().numpy() + 0.75 * b[name].double().numpy()
    np.testing.assert_allclose(merged[name].double().numpy(), expected, rtol=1e-6, atol=1e-7)

    model = AutoModelForCausalLM.from_pretrained(tmp_path / "out")
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "out")
    prompt = torch.tensor([tokenizer("drevin kunt 5 nesh")["input_ids"]])
    assert model.generate(prompt, max_new_tokens=3, do_sample=False).shape[1] > prompt.shape[1]


def test_an_existing_output_is_kept_unless_asked(command: Callable, recipe: Path, tmp_path: Path) -> None:
    assert command("merge", recipe, tmp_path / "out").code == 0
    before = (tmp_path / "out" / "model.safetensors").read_bytes()
    assert str(tmp_path / "out") in command("merge", recipe, tmp_path / "out").error
    assert command("merge", recipe, tmp_path / "out", "--overwrite").code == 0
    assert (tmp_path / "out" / "model.safetensors").read_bytes() == before  # the same recipe, the same bytes


def test_bad_input_writes_nothing(command: Callable, recipe: Path, tmp_path: Path) -> None:
    recipe.write_text(RECIPE.replace("./mine", "./mein"))
    assert "mein" in command("merge", recipe, tmp_path / "out").error
    recipe.write_text(RECIPE.replace("linear", "liner"))
    assert 'did you mean "linear"' in command("merge", recipe, tmp_path / "out").error
    assert "no such file" in command("merge", tmp_path / "none.yaml", tmp_path / "out").error
    assert not (tmp_path / "out").exists()


# ---- chains, options, what is loaded when


CHAIN = RECIPE.replace("dtype: float32", "---\nmerge_method: dare_linear\nbase_model: half\nmodels: [{model: ./mine}]\n"
                       "parameters: {weight: 0.5, density: 0.7}\n")  # fmt: skip
CHAIN = "name: half\n" + CHAIN.lstrip()


def files(folder: Path) -> dict[str, bytes]:
    return {p.name: p.read_bytes() for p in folder.iterdir()}


def test_a_chain_and_its_recipe_beside_it(command: Callable, recipe: Path, tmp_path: Path) -> None:
    recipe.write_text(CHAIN + "---\nname: idle\n" + RECIPE)
    done = command("merge", recipe, tmp_path / "out", "--json")
    assert done.json["steps"] == ["half", None] and done.json["method"] == "dare_linear"
    assert '"idle" is not built' in done.err
    # From any other folder: the recipe says where the models are.
    again = command("merge", tmp_path / "out" / "recipe.yaml", tmp_path / "again", "--json")
    assert again.json["recipe_hash"] == done.json["recipe_hash"] and "idle" not in again.err
    assert files(tmp_path / "again") == files(tmp_path / "out")
    assert sorted(p.name for p in tmp_path.iterdir()) == ["again", "here", "out"]


def test_options_that_change_nothing_and_one_that_does(command: Callable, recipe: Path, tmp_path: Path) -> None:
    recipe.write_text(CHAIN)
    first = command("merge", recipe, tmp_path / "first", "--threads", 1, "--json").json
    weights = files(tmp_path / "first")["model.safetensors"]
    command("merge", recipe, tmp_path / "threads", "--threads", 3)
    assert files(tmp_path / "threads") == files(tmp_path / "first")
    seeded = command("merge", recipe, tmp_path / "seeded", "--seed", 7, "--json").json
    assert files(tmp_path / "seeded")["model.safetensors"] != weights
    assert seeded["recipe_hash"] != first["recipe_hash"]
    command("merge", tmp_path / "seeded" / "recipe.yaml", tmp_path / "again")
    assert files(tmp_path / "again") == files(tmp_path / "seeded")
    command("merge", recipe, tmp_path / "shards", "--shard-size", "500kB")
    names = files(tmp_path / "shards").keys()
    assert "model.safetensors.index.json" in names and sum(n.endswith(".safetensors") for n in names) > 1
    assert all(len(data) < 520_000 for n, data in files(tmp_path / "shards").items() if n.endswith(".safetensors"))


def test_wrong_options(command: Callable, recipe: Path, tmp_path: Path) -> None:
    for words in (("--threads", "0"), ("--seed", "-1"), ("--shard-size", "5B"), ("--shard-size", "much")):
        assert "expected" in command("merge", recipe, tmp_path / "out", *words).error
    assert 'did you mean "--threads"' in command("merge", recipe, tmp_path / "out", "--treads", "2").error
    recipe.write_text(CHAIN.replace("model: zoo:maths", "model: half"))
    assert "in a circle: half > half" in command("merge", recipe, tmp_path / "out").error
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("text", "number"),
    [("5GB", 5 * 10**9), ("5G", 5 * 10**9), ("512 MiB", 512 << 20), ("1.5kb", 1500), ("1e6", 10**6), ("77", 77)],
)
def test_sizes(text: str, number: int) -> None:
    from evomerge.cli.merge import size

    assert size(text) == number


def test_mergekits_yaml_and_ours_give_the_same_bytes(command: Callable, recipe: Path, tmp_path: Path) -> None:
    import yaml

    config = pytest.importorskip("mergekit.config")
    from evomerge.recipe import parse_recipe

    text = RECIPE.replace("dtype: float32", "chat_template: chatml\ntokenizer: {source: union, tokens: {new: {source: "
                          "{kind: zero}}}, pad_to_multiple_of: 8}\nout_dtype: bfloat16")  # fmt: skip
    theirs = config.MergeConfiguration.model_validate(yaml.safe_load(text)).to_yaml()
    for name, written in (("first", text), ("ours", parse_recipe(text).to_yaml()), ("theirs", theirs)):
        recipe.write_text(written)
        assert command("merge", recipe, tmp_path / name).code == 0
    assert files(tmp_path / "first") == files(tmp_path / "ours") == files(tmp_path / "theirs")


LOADED = """
import sys
from evomerge.cli import main
code = main(["merge", *sys.argv[1:]])
print(code, *(name for name in ("torch", "transformers", "ray", "optuna", "pandas") if name in sys.modules))
"""


def test_what_is_loaded(recipe: Path, tmp_path: Path) -> None:
    import subprocess
    import sys

    def run(text: str) -> list[str]:
        recipe.write_text(text)
        words = [sys.executable, "-c", LOADED, str(recipe), str(tmp_path / "out")]
        return subprocess.run(words, capture_output=True, text=True, check=True).stdout.split("\n")[-2].split()

    # What is wrong with the plan is said before torch is loaded.
    assert run(RECIPE.replace("weight: 0.25", "wieght: 0.25")) == ["2"]
    assert run(RECIPE + "tokenizer_source: elsewhere\n") == ["2"]
    assert run(RECIPE.replace("parameters: {weight: 0.25}", "parameters: {}")) == ["2"]
    assert run(RECIPE + "tokenizer_source: union\n") == ["0", "torch"]


def test_the_bar_shows_bytes_on_a_terminal(recipe: Path, tmp_path: Path, command: Callable, monkeypatch: Any) -> None:
    import io

    import rich.console

    shown = io.StringIO()
    real = rich.console.Console.__init__

    def terminal(self: Any, **options: Any) -> None:
        real(self, **{**options, "file": shown, "stderr": False, "force_terminal": True, "width": 100})

    monkeypatch.setattr(rich.console.Console, "__init__", terminal)
    done = command("merge", recipe, tmp_path / "out")
    assert done.code == 0 and "merging" in shown.getvalue() and "MB" in shown.getvalue()
    size = (tmp_path / "out" / "model.safetensors").stat().st_size
    assert f"{size / 1e6:.1f}/{size / 1e6:.1f} MB" in shown.getvalue()
