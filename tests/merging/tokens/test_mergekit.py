"""mergekit as an oracle, recipe file to checkpoint: the same embedding for every token, whatever its number."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
import yaml
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, AutoTokenizer

from evomerge.merging.engine import Engine
from evomerge.recipe import parse_recipe
from evomerge.sources import open_sources

pytest.importorskip("mergekit")

LINEAR = """
merge_method: linear
base_model: <BASE>
models:
- {model: <BASE>, parameters: {weight: 1}}
- {model: <CODE>, parameters: {weight: 2}}
- {model: <CHAT>, parameters: {weight: 3}}
"""
DELTAS = """
merge_method: task_arithmetic
base_model: <BASE>
models:
- {model: <CODE>, parameters: {weight: 0.3}}
- {model: <CHAT>, parameters: {weight: -0.5}}
"""
# No base: the token that two of three have gets the mean of both in the third.
NO_BASE = """
merge_method: linear
parameters: {weight: 1}
models: [{model: <CODE>}, {model: <CHAT>}, {model: <BASE>}]
"""
SPLICED = """
merge_method: passthrough
base_model: <BASE>
slices:
- sources: [{model: <BASE>, layer_range: [0, 1]}]
- sources: [{model: <CODE>, layer_range: [0, 2]}]
"""
FINE_TUNE = """
merge_method: slerp
base_model: <BASE>
models: [{model: <CHAT>}]
parameters: {t: 0.4}
"""
TOKENS = """
tokenizer:
  source: union
  tokens:
    "<|end|>": {source: <CODE>}
    "<|im_end|>": {source: {kind: model_token, model: <CODE>, token: "<|end|>"}, force: true}
    "the": {source: {kind: model_token, model: <CODE>, token_id: 7}, force: true}
    new zero: {source: {kind: zero}}
    new one: {source: {kind: model_token, model: <CHAT>, token: "<|im_start|>"}}
"""
CASES = {
    "union": LINEAR + "tokenizer_source: union",
    "union of task vectors": DELTAS + "tokenizer_source: union",
    "union without a base": NO_BASE + "tokenizer_source: union",
    "union of a fine-tune's special tokens": FINE_TUNE + "tokenizer_source: union",
    "union of spliced models": SPLICED + "tokenizer_source: union",
    "base": DELTAS + "tokenizer_source: base",
    "a model's": DELTAS + "tokenizer_source: <CODE>",
    "a model's, named at length": LINEAR + "tokenizer_source: {model: {path: <CHAT>}}",
    "that of a model that is not merged": FINE_TUNE + "tokenizer_source: <CODE>",
    "that of a model that is not merged, padded": FINE_TUNE + "tokenizer: {source: <CODE>, pad_to_multiple_of: 64}",
    "padded": LINEAR + "tokenizer: {source: union, pad_to_multiple_of: 64}",
    "padded task vectors": DELTAS + "tokenizer: {source: base, pad_to_multiple_of: 128}",
    "tokens": LINEAR + TOKENS,
    "tokens of task vectors": DELTAS + TOKENS,
}


def merged(text: str, folder: Path) -> dict[str, torch.Tensor]:
    """Both tools' checkpoints: theirs in folder/theirs, ours in folder/ours."""
    from mergekit.config import MergeConfiguration
    from mergekit.merge import run_merge
    from mergekit.options import MergeOptions

    options = MergeOptions(quiet=True, write_model_card=False)
    run_merge(MergeConfiguration.model_validate(yaml.safe_load(text)), str(folder / "theirs"), options)
    recipe = parse_recipe(text)
    Engine(open_sources(recipe.references())).write(recipe, folder / "ours")
    return load_file(folder / "theirs" / "model.safetensors")


@pytest.mark.parametrize("name", CASES)
def test_every_token_has_mergekits_embedding(name: str, trio: dict[str, str], tmp_path: Path) -> None:
    text = CASES[name]
    for short, folder in trio.items():
        text = text.replace(short, folder)
    theirs = merged(text, tmp_path)
    ours = load_file(tmp_path / "ours" / "model.safetensors")
    words = [AutoTokenizer.from_pretrained(tmp_path / who).get_vocab() for who in ("ours", "theirs")]
    assert words[0].keys() == words[1].keys()
    assert ours.keys() == theirs.keys()
    rows = [torch.tensor([v[token] for token in words[0]]) for v in words]
    for tensor, values in ours.items():
        expected = theirs[tensor]
        assert values.shape == expected.shape, tensor
        if "embed" in tensor or "head" in tensor:
            torch.testing.assert_close(values[rows[0]], expected[rows[1]], rtol=1e-5, atol=2e-6, msg=tensor)
            padding = slice(len(words[0]), None)
            torch.testing.assert_close(values[padding], expected[padding], rtol=1e-5, atol=2e-6)
        else:
            torch.testing.assert_close(values, expected, rtol=1e-5, atol=2e-6)
    sizes = [json.loads((tmp_path / who / "config.json").read_text())["vocab_size"] for who in ("ours", "theirs")]
    assert sizes[0] == sizes[1] == len(ours["model.embed_tokens.weight"])
    model, info = AutoModelForCausalLM.from_pretrained(tmp_path / "ours", output_loading_info=True)
    assert not info["missing_keys"] and not info["unexpected_keys"]
    assert model(torch.tensor([[max(words[0].values())]])).logits.shape[-1] == sizes[0]


def test_special_tokens_are_split_off_as_mergekit_does(trio: dict[str, str], tmp_path: Path) -> None:
    text = CASES["union of a fine-tune's special tokens"]
    for short, folder in trio.items():
        text = text.replace(short, folder)
    merged(text, tmp_path)
    ours, theirs = (AutoTokenizer.from_pretrained(tmp_path / who) for who in ("ours", "theirs"))
    for words in ("<|im_start|>the other fox<|im_end|>", "<s>cats</s> <|im_end|>of", "naïve 狐 \n\t"):
        assert ours.encode(words) == theirs.encode(words)
        assert ours.decode(ours.encode(words), skip_special_tokens=True) == theirs.decode(
            theirs.encode(words), skip_special_tokens=True
        )
    assert ours.get_vocab() == theirs.get_vocab()
