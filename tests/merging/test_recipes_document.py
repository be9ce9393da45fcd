"""docs/recipes.md: every example is checked and built, and every key of the schema is in it."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import save_file

from evomerge import zoo
from evomerge.header import read_header
from evomerge.recipe import Extras, Recipe, load_chain

DOCUMENT = Path(__file__).parents[2] / "docs" / "recipes.md"
TEXT = DOCUMENT.read_text(encoding="utf-8")
EXAMPLES = re.findall(r"^## ([^\n]*)$|^```yaml\n(.*?)^```", TEXT, re.DOTALL | re.MULTILINE)


def titled() -> list[tuple[str, str]]:
    """Each example under the heading that it stands below."""
    found, title = [], ""
    for heading, example in EXAMPLES:
        title = heading or title
        if example:
            found.append((title, example))
    return found


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory, make: Callable[..., Path], here: Callable[..., Any]) -> Path:
    """A folder with what the examples name."""
    folder = tmp_path_factory.mktemp("examples")
    base = make("llava", seed=0)
    (folder / "vlm-base").symlink_to(base)
    for name, seed in (("vlm-a", 1), ("vlm-b", 2)):
        (folder / name).symlink_to(make("llava", seed=seed, near=base))
    rows, columns = read_header(zoo.path("base") / "model.safetensors")["model.layers.0.mlp.up_proj.weight"].shape
    for name, rank in (("lora-a", 2), ("lora-b", 5)):
        (folder / name).mkdir()
        config = {"peft_type": "LORA", "r": rank, "lora_alpha": 4, "target_modules": ["up_proj"], "bias": "none"}
        (folder / name / "adapter_config.json").write_text(json.dumps(config))
        stem = "base_model.model.model.layers.0.mlp.up_proj.lora_"
        tensors = {f"{stem}A.weight": np.full((rank, columns), 0.1), f"{stem}B.weight": np.full((rows, rank), 0.1)}
        tensors = {k: v.astype(np.float32) for k, v in tensors.items()}
        save_file(tensors, folder / name / "adapter_model.safetensors")
    (folder / "text.txt").write_text("drevin kunt 5 nesh\n")
    for model in ("maths", "kovesh"):
        here("statistics", f"zoo:{model}", folder / "text.txt", "--kind", "fisher", "--out", folder / f"{model}-fisher")
    return folder


@pytest.mark.parametrize(("title", "text"), titled(), ids=[f"{i} {t}" for i, (t, _) in enumerate(titled())])
def test_example(title: str, text: str, place: Path, here: Callable[..., Any], tmp_path: Path) -> None:
    file = place / "recipe.yaml"
    file.write_text(text)
    said = here("check", file, "--json").result
    done = here("merge", file, tmp_path / "out", "--json").result
    assert said["output_bytes"] == done["bytes"]
    # What lies beside the model is the same recipe, and rebuilds the same bytes from another folder.
    again = load_chain(tmp_path / "out" / "recipe.yaml")
    assert again.final.merge_method == said["method"]
    here("merge", tmp_path / "out" / "recipe.yaml", tmp_path / "again")
    for written in (tmp_path / "out").iterdir():
        assert written.read_bytes() == (tmp_path / "again" / written.name).read_bytes(), written.name


def test_every_section_has_an_example_and_every_key_is_told() -> None:
    assert len(titled()) >= 9
    for key in [*Recipe.model_fields, *Extras.model_fields, "name"]:
        assert f"`{key}`" in TEXT, key
    for link in re.findall(r"\]\(([\w./-]+\.md)\)", TEXT):
        assert (DOCUMENT.parent / link).is_file(), link
