"""mergekit in process on other families than llama: the same tensors, or a refusal where ours builds."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
import yaml
from safetensors.torch import load_file

from evomerge.merging.engine import Engine
from evomerge.recipe import parse_recipe
from evomerge.sources import open_sources

Make = Callable[..., Path]
pytest.importorskip("mergekit")

AVERAGE = """
merge_method: linear
models:
- {model: <A>, parameters: {weight: [{filter: mlp, value: [0.2, 0.8]}, {value: 0.3}]}}
- {model: <B>, parameters: {weight: 0.5}}
"""
STACK = """
merge_method: passthrough
slices:
- {sources: [{model: <A>, layer_range: [0, 2]}]}
- {sources: [{model: <B>, layer_range: [0, 3], parameters: {scale: [{filter: mlp, value: 0.5}, {value: 1.0}]}}]}
"""
# Known to mergekit by a file of its own; the last three by what it infers from the tensors.
SAME = ("mistral", "qwen2", "qwen3", "gemma2", "phi3", "gpt2", "olmo2", "granite", "cohere2", "bloom", "opt", "gpt_oss")
# Not what it infers: there the final norm is the first slice's, here the last one's, as in its own files.
STACKED = ("mistral", "phi3", "gpt2", "olmo2", "granite")
REFUSED = {
    ("gpt_neox", AVERAGE): "attention.bias required",
    ("falcon", AVERAGE): "ln_attn.(weight|bias) required",
    ("qwen2", STACK): "layer_type",
    ("gemma2", STACK): "layer_type",
}


def recipe(text: str, folders: list[Path]) -> str:
    for short, folder in zip(("<A>", "<B>"), folders, strict=True):
        text = text.replace(short, str(folder))
    return text


def theirs(text: str, out: Path) -> dict[str, torch.Tensor]:
    from mergekit.config import MergeConfiguration
    from mergekit.merge import run_merge
    from mergekit.options import MergeOptions

    run_merge(
        MergeConfiguration.model_validate(yaml.safe_load(text)), str(out),
        MergeOptions(quiet=True, write_model_card=False, copy_tokenizer=False),
    )  # fmt: skip
    found: dict[str, torch.Tensor] = {}
    for file in sorted(out.glob("*.safetensors")):
        found.update(load_file(file))
    return found


def ours(text: str) -> dict[str, torch.Tensor]:
    parsed = parse_recipe(text)
    return dict(Engine(open_sources(parsed.references())).tensors(parsed))


@pytest.mark.parametrize(("name", "text"), [*((n, AVERAGE) for n in SAME), *((n, STACK) for n in STACKED)])
def test_equals_mergekit(name: str, text: str, make: Make, tmp_path: Path) -> None:
    written = recipe(text, [make(name, seed, 3, name in ("gpt2", "gemma2", "bloom", "opt")) for seed in (1, 2)])
    expected, got = theirs(written, tmp_path / "theirs"), ours(written)
    assert got.keys() == expected.keys()
    for tensor, x in got.items():
        torch.testing.assert_close(x, expected[tensor], rtol=1e-5, atol=1e-6, msg=lambda m, t=tensor: f"{t}: {m}")


@pytest.mark.parametrize(("name", "text"), REFUSED)
def test_what_mergekit_refuses(name: str, text: str, make: Make, tmp_path: Path) -> None:
    """test_families.py loads what is built."""
    written = recipe(text, [make(name, seed, 3, name in ("falcon", "gemma2")) for seed in (1, 2)])
    with pytest.raises(Exception, match=REFUSED[name, text]):
        theirs(written, tmp_path / "theirs")
    assert all(bool(torch.isfinite(x).all()) for x in ours(written).values())


def test_experts_keep_their_names(make: Make, tmp_path: Path) -> None:
    """mergekit writes mixtral's experts as transformers 5 has them in memory; ours are as the sources have them."""
    folders = [make("mixtral", seed, 3) for seed in (1, 2)]
    models = "[{model: <A>, parameters: {weight: 0.3}}, {model: <B>, parameters: {weight: 0.5}}]"
    written = recipe(f"{{merge_method: linear, models: {models}}}", folders)
    expected, got = theirs(written, tmp_path / "theirs"), ours(written)
    assert got.keys() == load_file(folders[0] / "model.safetensors").keys()
    for layer in ("model.layers.0", "model.layers.1", "model.layers.2"):
        w1, w3, w2 = (
            torch.stack([got[f"{layer}.block_sparse_moe.experts.{i}.{w}.weight"] for i in range(3)])
            for w in ("w1", "w3", "w2")
        )
        for kind, x in (("gate_up", torch.cat([w1, w3], 1)), ("down", w2)):
            torch.testing.assert_close(x, expected[f"{layer}.mlp.experts.{kind}_proj"], rtol=1e-5, atol=1e-6)
