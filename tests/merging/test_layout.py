"""Layers found by pattern, in the names of real families."""

from __future__ import annotations

import pytest

from evomerge.errors import SourceError
from evomerge.merging.layout import Layout

FAMILIES = {
    "llama": ("model.layers.", ["model.embed_tokens.weight"], "self_attn.q_proj.weight",
              ["model.norm.weight", "lm_head.weight"]),
    "gpt2": ("h.", ["wte.weight", "wpe.weight"], "attn.c_attn.weight", ["ln_f.weight", "ln_f.bias"]),
    "gpt2 with prefix": ("transformer.h.", ["transformer.wte.weight"], "mlp.c_fc.bias", ["transformer.ln_f.bias"]),
    "gpt_neox": ("gpt_neox.layers.", ["gpt_neox.embed_in.weight"], "attention.dense.bias",
                 ["gpt_neox.final_layer_norm.weight", "embed_out.weight"]),
    "opt": ("model.decoder.layers.", ["model.decoder.embed_tokens.weight", "model.decoder.embed_positions.weight"],
            "fc1.weight", ["model.decoder.final_layer_norm.bias"]),
    "mixtral": ("model.layers.", ["model.embed_tokens.weight"], "block_sparse_moe.experts.7.w1.weight",
                ["model.norm.weight", "lm_head.weight"]),
    "bloom": ("transformer.h.", ["transformer.word_embeddings.weight", "transformer.word_embeddings_layernorm.bias"],
              "mlp.dense_h_to_4h.bias", ["transformer.ln_f.weight"]),
}  # fmt: skip


@pytest.mark.parametrize("family", FAMILIES)
def test_families(family: str) -> None:
    prefix, before, inner, after = FAMILIES[family]
    layered = [f"{prefix}{i}.{inner}" for i in range(12)]
    layout = Layout.of([*before, *layered, *after], 12)
    assert layout == Layout(prefix, 12)
    assert [layout.layer(n) for n in layered] == list(range(12))
    assert {layout.place(n) for n in before} == {"before"} and {layout.place(n) for n in after} == {"after"}
    assert layout.moved(layered[1], 11) == layered[11] and layout.moved(layered[11], 1) == layered[1]
    assert layout.moved(after[0], 3) == after[0] and layout.layer(after[0]) is None
    assert layout.bare(layered[10]) == inner and layout.inside(layered, 1) == [layered[1]]


def test_a_composite_model_has_the_language_models_layers() -> None:
    names = [f"vision_tower.encoder.layers.{i}.{p}" for i in range(4) for p in ("a.w", "b.w", "c.w")]
    names += [f"language_model.model.layers.{i}.a.w" for i in range(4)]
    assert Layout.of(names, 4).prefix == "language_model.model.layers."


def test_a_configuration_that_disagrees_with_the_tensors() -> None:
    with pytest.raises(SourceError, match=r"m: its configuration has 5 layers, its tensors have model.layers.N with 4"):
        Layout.of([f"model.layers.{i}.w" for i in range(4)], 5, "m")
    with pytest.raises(SourceError, match="no numbered modules"):
        Layout.of(["a.w"], 5)
