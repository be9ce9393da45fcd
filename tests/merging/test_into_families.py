"""A text model becomes the language model of vision-language models of many families, tiny and fresh.

The oracle is transformers' own idea of which part of a model is its decoder.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from safetensors.torch import load_file

from evomerge import zoo
from evomerge.errors import SourceError
from evomerge.merging.engine import Engine
from evomerge.merging.live import live_model, live_model_for
from evomerge.recipe import Recipe, parse_recipe
from evomerge.sources import open_sources

SHAPE = {
    "vocab_size": 134, "hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 2, "num_attention_heads": 2,
    "num_key_value_heads": 1, "max_position_embeddings": 64, "bos_token_id": None, "eos_token_id": 1, "pad_token_id": 0,
    "tie_word_embeddings": False,
}  # fmt: skip
HEADS = {"head_dim": 8}
ROPE = {"rope_parameters": {"rope_type": "default", "mrope_section": [1, 1, 2], "rope_theta": 1e4}}
VISION = {
    "hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 2, "num_attention_heads": 2, "image_size": 8,
    "patch_size": 4,
}  # fmt: skip
QWEN = {"depth": 2, "num_heads": 2, "patch_size": 4}
CLIP = {"model_type": "clip_vision_model", "projection_dim": 16, **VISION}
SIGLIP = {"model_type": "siglip_vision_model", **VISION}


def _llava(kind: str, text: str, vision: dict[str, Any], **more: Any) -> Any:
    return lambda: (
        getattr(transformers, kind)(text_config={"model_type": text, **SHAPE}, vision_config=vision,
                                    image_token_index=5, vision_feature_layer=-1, tie_word_embeddings=False, **more)
    )  # fmt: skip


def _of(kind: str, text: dict[str, Any], vision: dict[str, Any], **more: Any) -> Any:
    own = {"image_token_id": 5, "tie_word_embeddings": False, **more}
    return lambda: getattr(transformers, kind)(text_config={**SHAPE, **text}, vision_config=vision, **own)


# By family: its configuration, and the text models that go into it.
FAMILIES: dict[str, tuple[Callable[[], Any], str, dict[str, Any]]] = {
    "llava": (_llava("LlavaConfig", "llama", CLIP), "LlamaConfig", {}),
    "llava of mistral": (_llava("LlavaConfig", "mistral", CLIP), "MistralConfig", {}),
    "llava_next": (
        _llava("LlavaNextConfig", "llama", CLIP, image_grid_pinpoints=[[8, 8]]), "LlamaConfig", {}),
    "llava_onevision": (
        _llava("LlavaOnevisionConfig", "qwen2", SIGLIP, image_grid_pinpoints=[[8, 8]]), "Qwen2Config", {}),
    "mistral3": (
        _llava("Mistral3Config", "mistral", {"model_type": "pixtral", **VISION}), "MistralConfig", {}),
    "idefics3": (
        _of("Idefics3Config", {"model_type": "llama"}, VISION, scale_factor=2), "LlamaConfig", {}),
    "smolvlm": (
        _of("SmolVLMConfig", {"model_type": "llama"}, VISION, scale_factor=2), "LlamaConfig", {}),
    "paligemma": (
        lambda: transformers.PaliGemmaConfig(
            text_config={"model_type": "gemma", **SHAPE, **HEADS}, vision_config={**SIGLIP, "projection_dim": 16},
            image_token_index=5, projection_dim=16, tie_word_embeddings=False),
        "GemmaConfig", HEADS),
    "gemma3": (
        lambda: transformers.Gemma3Config(
            text_config={**SHAPE, **HEADS}, vision_config=VISION, mm_tokens_per_image=4, image_token_index=5,
            boi_token_index=6, eoi_token_index=7, tie_word_embeddings=False),
        "Gemma3TextConfig", HEADS),
    "qwen2_vl": (
        _of("Qwen2VLConfig", ROPE, {"embed_dim": 16, "hidden_size": 16, "mlp_ratio": 2, **QWEN}), "Qwen2Config", {}),
    "qwen2_5_vl": (
        _of("Qwen2_5_VLConfig", ROPE,
            {"hidden_size": 16, "out_hidden_size": 16, "intermediate_size": 24, "fullatt_block_indexes": [1], **QWEN}),
        "Qwen2Config", {}),
    "qwen3_vl": (
        _of("Qwen3VLConfig", {**ROPE, **HEADS},
            {"hidden_size": 16, "out_hidden_size": 16, "intermediate_size": 24, "deepstack_visual_indexes": [0],
             "num_position_embeddings": 16, **QWEN}),
        "Qwen3Config", HEADS),
    "internvl": (
        _of("InternVLConfig", {"model_type": "qwen2"},
            {**VISION, "image_size": [8, 8], "patch_size": [4, 4]}, image_seq_length=1),
        "Qwen2Config", {}),
    "aya_vision": (
        _of("AyaVisionConfig", {"model_type": "cohere2"}, SIGLIP, image_token_index=5, downsample_factor=2),
        "Cohere2Config", {}),
}  # fmt: skip


def saved(model: Any, folder: Path, seed: int) -> Path:
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for p in model.parameters():
            p.copy_(0.1 * torch.randn(p.shape, generator=generator))
    model.save_pretrained(folder)
    for file in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copyfile(zoo.path("base") / file, folder / file)
    return folder


def text_model(kind: str, more: dict[str, Any]) -> Any:
    return transformers.AutoModelForCausalLM.from_config(getattr(transformers, kind)(**SHAPE, **more))


def opened(text: str) -> tuple[Engine, Recipe]:
    recipe = parse_recipe(text)
    return Engine(open_sources(recipe.references())), recipe


def inside(text: Path, vlm: Path) -> str:
    return f"{{merge_method: passthrough, models: [{{model: {text}}}], evomerge: {{into: {vlm}}}}}"


def decoder(model: Any) -> dict[str, torch.Tensor]:
    found = dict(model.get_decoder().state_dict())
    head = model.get_output_embeddings()
    return found | ({"lm_head": head.weight} if head is not None else {})


@pytest.mark.parametrize("family", FAMILIES)
def test_a_text_model_inside(family: str, tmp_path: Path) -> None:
    config, kind, more = FAMILIES[family]
    vlm = saved(transformers.AutoModelForImageTextToText.from_config(config()), tmp_path / "vlm", 1)
    text = saved(text_model(kind, more), tmp_path / "text", 2)
    engine, recipe = opened(inside(text, vlm))
    engine.write(recipe, tmp_path / "out")
    model, info = transformers.AutoModelForImageTextToText.from_pretrained(tmp_path / "out", output_loading_info=True)
    assert not any(info[key] for key in ("missing_keys", "unexpected_keys", "mismatched_keys")), info
    expected = decoder(transformers.AutoModelForCausalLM.from_pretrained(text))
    got = decoder(model)
    assert got.keys() == expected.keys()
    assert all(torch.equal(x, expected[name]) for name, x in got.items())
    own, new = load_file(vlm / "model.safetensors"), load_file(tmp_path / "out" / "model.safetensors")
    changed = [name for name, x in own.items() if not torch.equal(x, new[name])]
    assert new.keys() == own.keys() and len(changed) == len(expected) < len(own), "encoder and projector are the VLM's"
    live = live_model_for(engine.plan(recipe))
    engine.build_into(recipe, live)
    assert all(torch.equal(x, live.state_dict()[name]) for name, x in model.state_dict().items())


def test_a_language_model_of_another_kind_is_refused_with_a_true_reason(tmp_path: Path) -> None:
    """Fusing the text model first would help nobody: there are no text models of that architecture."""
    vision = {**VISION, "num_global_layers": 1, "max_num_tiles": 1, "supported_aspect_ratios": [[1, 1]],
              "intermediate_layers_indices": [0], "vision_output_dim": 32, "attention_heads": 2}  # fmt: skip
    rope = {"rope_type": "default", "rope_theta": 1e4}
    config = transformers.MllamaConfig(
        text_config={**SHAPE, "bos_token_id": 0, "cross_attention_layers": [1], "rope_parameters": rope},
        vision_config=vision,
    )
    vlm = saved(transformers.AutoModelForImageTextToText.from_config(config), tmp_path / "vlm", 1)
    text = saved(text_model("LlamaConfig", {}), tmp_path / "text", 2)
    with pytest.raises(SourceError) as e:
        engine, recipe = opened(inside(text, vlm))
        engine.plan(recipe)
    message = str(e.value)
    assert "architecture llama against mllama_text_model (a vision-language model takes text models of its" in message
    assert "fuse" not in message


def test_a_renamed_language_model_goes_with_its_text_models(tmp_path: Path) -> None:
    """glm4v_text is a glm4, for all that "glm4_" does not begin its name."""
    rope = {"rope_parameters": {"rope_type": "default", "mrope_section": [1, 1, 2], "rope_theta": 1e4,
                                "partial_rotary_factor": 1.0}}  # fmt: skip
    config = transformers.Glm4vConfig(
        text_config={**SHAPE, **rope},
        vision_config={"depth": 2, "hidden_size": 16, "out_hidden_size": 16, "intermediate_size": 24, "num_heads": 2,
                       "image_size": 8, "patch_size": 4},
        image_token_id=5, tie_word_embeddings=False,
    )  # fmt: skip
    vlm = saved(transformers.AutoModelForImageTextToText.from_config(config), tmp_path / "vlm", 1)
    text = saved(text_model("Glm4Config", HEADS), tmp_path / "text", 2)
    engine, recipe = opened(inside(text, vlm))
    engine.write(recipe, tmp_path / "out")
    got = decoder(live_model(tmp_path / "out"))
    expected = decoder(live_model(text))
    assert got.keys() == expected.keys() and all(torch.equal(x, expected[name]) for name, x in got.items())
