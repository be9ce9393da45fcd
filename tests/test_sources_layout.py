"""Modules and layers found by pattern, in the names of real families."""

from __future__ import annotations

import pytest

from evomerge.errors import SourceError
from evomerge.sources.layout import TEXT, Layout, Place, Stack, count_layers

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
    assert layout.stacks == {TEXT: Stack(prefix, 12)} and layout.num_layers == 12
    places = layout.places
    assert [places[n] for n in layered] == [Place(TEXT, i, inner) for i in range(12)]
    assert {places[n].stage for n in before} == {"before"} and {places[n].stage for n in after} == {"after"}
    assert {places[n].stage for n in layered} == {"layer"}
    assert layout.named(Place(TEXT, 40, inner)) == f"{prefix}40.{inner}"  # a layer that a merge may have
    assert [layout.named(places[n]) for n in after] == after
    assert layout.inside(TEXT, 3) == [places[layered[3]]]


def test_the_same_places_with_and_without_the_models_prefix() -> None:
    names = ["model.embed_tokens.weight", "model.layers.0.a.w", "model.layers.1.a.w", "model.norm.weight"]
    bare = Layout.of([n.removeprefix("model.") for n in names], 2)
    assert set(bare.places.values()) == set(Layout.of(names, 2).places.values())
    # A name both with and without it: no two tensors have one place.
    both = Layout.of([*names, "norm.weight"], 2)
    assert both.places["norm.weight"] != both.places["model.norm.weight"] and len(both.names) == 5


def test_tensors_with_a_row_for_every_token() -> None:
    names = [
        "transformer.wte.weight", "transformer.wpe.weight", "transformer.h.0.embed.weight", "transformer.ln_f.weight",
        "transformer.word_embeddings.weight", "transformer.word_embeddings_layernorm.weight", "lm_head.weight",
        "lm_head.bias", "embed_out.weight", "transformer.embed_positions.weight", "transformer.embed_tokens.weight",
        "transformer.embed_in.weight", "output.weight",
    ]  # fmt: skip
    by_token = [n for n, place in Layout.of(names, 1).places.items() if place.by_token]
    assert by_token == [names[i] for i in (0, 4, 6, 7, 8, 10, 11, 12)]


TOWER = [f"encoder.layers.{i}.{p}" for i in range(4) for p in ("a.w", "b.w", "c.w")] + ["post_layernorm.weight"]
LANGUAGE = ["embed_tokens.weight", *(f"layers.{i}.a.w" for i in range(4)), "norm.weight"]
# The same composite model as transformers 4.51, 4.52 to 4.57, and 5 save it.
COMPOSITES = {
    "language_model first": ("language_model.model.", "language_model.lm_head.weight", "vision_tower.vision_model.",
                             "multi_modal_projector.linear_1.weight"),
    "below model": ("model.language_model.", "lm_head.weight", "model.vision_tower.vision_model.",
                    "model.multi_modal_projector.linear_1.weight"),
    "transformers 5": ("language_model.model.", "language_model.lm_head.weight", "vision_tower.",
                       "multi_modal_projector.linear_1.weight"),
}  # fmt: skip


@pytest.mark.parametrize("style", COMPOSITES)
def test_composite_models(style: str) -> None:
    text, head, tower, projector = COMPOSITES[style]
    names = [*(text + n for n in LANGUAGE), head, *(tower + n for n in TOWER), projector]
    layout = Layout.of(names, 4, composite=True)
    assert layout.stacks == {
        TEXT: Stack(f"{text}layers.", 4),
        "vision_tower": Stack(f"{tower}encoder.layers.", 4),
        "multi_modal_projector": None,
    }
    alone = Layout.of(["model." + n for n in LANGUAGE] + ["lm_head.weight"], 4)
    assert [p for p in layout.places.values() if p.module == TEXT] == list(alone.places.values())
    others = [p for p in layout.places.values() if p.module != TEXT]
    first = Layout.of(_style("language_model first"), 4, composite=True)
    assert others == [p for p in first.places.values() if p.module != TEXT]
    assert count_layers(names) == 4


def _style(style: str) -> list[str]:
    text, head, tower, projector = COMPOSITES[style]
    return [*(text + n for n in LANGUAGE), head, *(tower + n for n in TOWER), projector]


def test_a_vision_tower_beside_the_text_layers() -> None:
    names = ["lm_head.weight", "model.embed_tokens.weight", "model.norm.weight", "visual.merger.mlp.0.weight",
             "visual.merger.mlp.2.weight", "visual.patch_embed.proj.weight"]  # fmt: skip
    names += [f"model.layers.{i}.vision_expert.w" for i in range(3)]  # named so, and yet the language model's
    names += [f"visual.blocks.{i}.{p}.w" for i in range(3) for p in "abcdef"]
    layout = Layout.of(names, 3, composite=True)
    assert layout.stacks == {
        TEXT: Stack("model.layers.", 3),
        "multi_modal_projector": None,
        "vision_tower": Stack("visual.blocks.", 3),
    }
    assert layout.places["visual.patch_embed.proj.weight"].module == "vision_tower"


def test_a_configuration_that_disagrees_with_the_tensors() -> None:
    with pytest.raises(SourceError, match=r"m: its configuration has 5 layers, its tensors have model.layers.N with 4"):
        Layout.of([f"model.layers.{i}.w" for i in range(4)], 5, "m")
    with pytest.raises(SourceError, match="no numbered modules"):
        Layout.of(["a.w"], 5)
    assert count_layers(["a.w"]) is None


def test_numbers_that_are_none_of_a_layer() -> None:
    names = [f"model.layers.{i}.x.weight" for i in range(2)]
    odd = [f"model.layers.{n}.x.weight" for n in ("\u00b2", "\u0663", "1" * 5000, "01", "-1")]
    layout = Layout.of([*names, *odd], 2)
    assert layout.num_layers == 2 and all(layout.places[n].layer is None for n in odd)
    assert len(layout.names) == 7


@pytest.mark.parametrize("said", [400_000_000, 10**15, 0, -1])
def test_a_number_of_layers_that_no_model_has(said: int) -> None:
    with pytest.raises(SourceError, match=f"has {said} layers, its tensors have model.layers.N with 2"):
        Layout.of([f"model.layers.{i}.x.weight" for i in range(2)], said)
