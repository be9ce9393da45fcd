"""`evomerge merge` and `check` on recipes with adapters: relative folders, and rebuilding from elsewhere."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from evomerge import zoo

NAME = "model.layers.2.self_attn.q_proj"


@pytest.fixture
def recipe(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    folder = tmp_path / "here" / "my-lora"
    folder.mkdir(parents=True)
    width = load_file(zoo.path("base") / "model.safetensors")[f"{NAME}.weight"].shape
    generator = torch.Generator().manual_seed(0)
    sides = {"A": torch.randn(2, width[1], generator=generator), "B": torch.randn(width[0], 2, generator=generator)}
    tensors = {f"base_model.model.{NAME}.lora_{side}.weight": t for side, t in sides.items()}
    save_file(tensors, folder / "adapter_model.safetensors")
    (folder / "adapter_config.json").write_text(json.dumps({"peft_type": "LORA", "r": 2, "lora_alpha": 1}))
    path = tmp_path / "here" / "recipe.yaml"
    path.write_text("{merge_method: task_arithmetic, base_model: zoo:base, dtype: float32, models: "
                    "[{model: zoo:base+my-lora, parameters: {weight: -2.0}}]}")  # fmt: skip
    monkeypatch.chdir(tmp_path)
    return path


def test_merged_and_rebuilt_from_elsewhere(command: Callable, recipe: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert command("check", recipe).code == 0
    done = command("merge", recipe, "out", "--json")
    assert done.code == 0, done.err
    merged, base = load_file("out/model.safetensors"), load_file(zoo.path("base") / "model.safetensors")
    lora = load_file(recipe.parent / "my-lora" / "adapter_model.safetensors")
    a, b = (lora[f"base_model.model.{NAME}.lora_{side}.weight"].double() for side in "AB")
    expected = base[f"{NAME}.weight"].double() - 2.0 * 0.5 * (b @ a)
    torch.testing.assert_close(merged[f"{NAME}.weight"].double(), expected, rtol=1e-6, atol=1e-6)
    assert all(torch.equal(merged[n], t.float()) for n, t in base.items() if n != f"{NAME}.weight")
    written = Path("out/recipe.yaml").resolve()
    assert str(recipe.parent / "my-lora") in written.read_text()
    monkeypatch.chdir("/")
    again = command("merge", written, written.parents[1] / "again", "--json")
    assert again.json["recipe_hash"] == done.json["recipe_hash"]
    one, two = (written.parents[1] / name / "model.safetensors" for name in ("out", "again"))
    assert one.read_bytes() == two.read_bytes()
    config = recipe.parent / "my-lora" / "adapter_config.json"
    config.write_text(config.read_text().replace('"lora_alpha": 1', '"lora_alpha": 2'))
    assert "its content is not what the recipe was made with" in command("merge", written, "third").error


def test_an_adapter_that_does_not_fit(command: Callable, recipe: Path) -> None:
    folder = recipe.parent / "my-lora"
    tensors = load_file(folder / "adapter_model.safetensors")
    renamed = {n.replace("q_proj", "q_prjo"): t for n, t in tensors.items()}
    save_file(renamed, folder / "adapter_model.safetensors")
    error = command("merge", recipe, "out").error
    assert 'does not fit "zoo:base"' in error and f'(nearest: "{NAME}.weight")' in error
    assert not Path("out").exists()
