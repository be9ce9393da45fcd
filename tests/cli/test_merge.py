"""`evomerge merge`: a real checkpoint comes out, or one clear line and nothing on the disk."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

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
