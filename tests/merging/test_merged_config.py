"""config.json of a merge whose layers are not those of its donor."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers

from evomerge.merging.config import merged_config
from evomerge.merging.engine import Engine
from evomerge.recipe import parse_recipe
from evomerge.sources import open_sources

Make = Callable[..., Path]

# Which layer of which model each output layer is.
ORDER = [("a", 1), ("a", 2), ("b", 3), ("b", 0), ("a", 3)]


@pytest.fixture
def stacked(make: Make, tmp_path: Path) -> Callable[..., dict[str, Any]]:
    """stacked(kind, a, b): the merged configuration of models with these changes to theirs (None: without the key)."""

    def build(kind: str, *changes: dict[str, Any], order: list[tuple[str, int]] = ORDER) -> dict[str, Any]:
        folders = {}
        for name, change in zip("ab", changes, strict=True):
            folders[name] = Path(shutil.copytree(make(kind, ord(name), 4), tmp_path / name))
            config = json.loads((folders[name] / "config.json").read_text())
            part = config.get("text_config", config)
            part |= change
            for key in [k for k, v in change.items() if v is None]:
                del part[key]
            (folders[name] / "config.json").write_text(json.dumps(config))
        slices = "\n".join(f"- sources: [{{model: {folders[m]}, layer_range: [{i}, {i + 1}]}}]" for m, i in order)
        recipe = parse_recipe(f"merge_method: passthrough\nslices:\n{slices}")
        return merged_config(Engine(open_sources(recipe.references())).plan(recipe))

    return build


def test_lists_by_layer_follow_each_layer(stacked: Callable[..., dict[str, Any]]) -> None:
    a = {"layer_types": ["full_attention", "sliding_attention"] * 2, "no_rope_layers": [1, 1, 0, 1], "eos_token_id": [
        1, 2, 3, 4]}  # fmt: skip
    b = {"layer_types": ["sliding_attention", "full_attention"] * 2, "no_rope_layers": None}
    config = stacked("llama", a, b)
    full, sliding = "full_attention", "sliding_attention"
    assert config["num_hidden_layers"] == 5
    assert config["layer_types"] == [sliding, full, full, sliding, sliding]
    assert config["no_rope_layers"] == [1, 0, 1, 1, 1]  # where b has no such list, a's at its place
    assert config["eos_token_id"] == [1, 2, 3, 4]  # as long by chance


def test_lists_of_layers_follow_them(stacked: Callable[..., dict[str, Any]]) -> None:
    a = {"mlp_only_layers": [], "moe_layers": [0, 1, 2, 3], "dense_layers": [1, 3]}
    b = {"mlp_only_layers": [], "moe_layers": [0, 1, 2, 3], "dense_layers": [0]}
    config = stacked("llama", a, b)
    assert config["mlp_only_layers"] == []
    assert config["moe_layers"] == [0, 1, 2, 3, 4]  # as long as there are layers, and yet their numbers
    assert config["dense_layers"] == [0, 3, 4]


def test_numbers_of_layers_are_those_of_the_merge(make: Make, tmp_path: Path) -> None:
    """A list of dense layers, in a family that makes some of its layers so."""
    layers = {"mlp_only_layers": [1]}
    config = transformers.Qwen3MoeConfig(
        vocab_size=134, hidden_size=16, intermediate_size=24, moe_intermediate_size=8, num_hidden_layers=3,
        num_experts=2, num_experts_per_tok=1, num_attention_heads=2, num_key_value_heads=1, head_dim=8, **layers,
    )  # fmt: skip
    transformers.AutoModelForCausalLM.from_config(config).save_pretrained(tmp_path / "model")
    recipe = parse_recipe(f"""
merge_method: passthrough
slices:
- sources: [{{model: {tmp_path}/model, layer_range: [0, 2]}}]
- sources: [{{model: {tmp_path}/model, layer_range: [1, 3]}}]
""")  # fmt: skip
    engine = Engine(open_sources(recipe.references()))
    assert merged_config(engine.plan(recipe))["mlp_only_layers"] == [1, 2]
    engine.write(recipe, tmp_path / "out")
    _, info = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "out", output_loading_info=True)
    assert not any(info[key] for key in ("missing_keys", "unexpected_keys", "mismatched_keys"))


def test_rules_by_position_are_written_down(stacked: Callable[..., dict[str, Any]]) -> None:
    """gemma2 takes sliding and full attention in turns: old configurations do not say so, and moved layers must."""
    config = stacked("gemma2", {"layer_types": None}, {"layer_types": None})
    full, sliding = "full_attention", "sliding_attention"
    assert config["layer_types"] == [full, sliding, full, sliding, full]


def test_no_family_is_asked_where_there_is_no_rule(make: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("transformers.AutoConfig.from_pretrained", lambda *_, **__: pytest.fail("imported"))
    folder = make(seed=1, layers=4)
    recipe = parse_recipe(
        f"{{merge_method: passthrough, slices: [{{sources: [{{model: {folder}, layer_range: [1, 3]}}]}}]}}"
    )
    assert merged_config(Engine(open_sources(recipe.references())).plan(recipe))["num_hidden_layers"] == 2


def test_a_composite_models_language_part(stacked: Callable[..., dict[str, Any]]) -> None:
    config = stacked("gemma3", {}, {})
    text = config["text_config"]
    full, sliding = "full_attention", "sliding_attention"
    assert text["layer_types"] == [sliding, full, sliding, full, sliding]
    assert (text["num_hidden_layers"], config["vision_config"]["num_hidden_layers"]) == (5, 2)
    assert "num_hidden_layers" not in config


def test_the_whole_of_the_donor_is_left_as_it_is(make: Make) -> None:
    folder = make("gemma2", seed=1, layers=3, tied=True, dtype=torch.bfloat16)
    recipe = parse_recipe(f"{{merge_method: linear, models: [{{model: {folder}}}], parameters: {{weight: 1}}}}")
    plan = Engine(open_sources(recipe.references())).plan(recipe)
    assert merged_config(plan) == json.loads((folder / "config.json").read_text())
    other = parse_recipe(recipe.to_yaml() + "out_dtype: float32\n")
    assert merged_config(Engine(open_sources(recipe.references())).plan(other))["dtype"] == "float32"
