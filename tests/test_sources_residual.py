"""Every family in the table of residual writers: a tiny random model whose stream is scaled by hand, against its
checkpoint with the scales folded into the tensors that the table names.
"""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from evomerge.sources import open_source, residual, writers

# What the stream is multiplied by before each layer.
SCALES = (0.6, 1.7, 0.8)
# The norms' epsilon sees the scale of the stream; float32 does the rest. What does not fold is off by far more.
CLOSE, FAR = 1e-4, 1e-2

_SHAPE = {
    "vocab_size": 40, "hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": len(SCALES),
    "num_attention_heads": 2, "max_position_embeddings": 64, "tie_word_embeddings": False, "bos_token_id": None,
    "eos_token_id": 1, "pad_token_id": 0,
}  # fmt: skip
_GPT2 = {"vocab_size": 40, "n_embd": 16, "n_layer": len(SCALES), "n_head": 2, "n_positions": 64, "pad_token_id": 0}
_GQA = {"num_key_value_heads": 1}
_BIASED = {**_GQA, "attention_bias": True, "mlp_bias": True}
_MOE = {**_GQA, "num_experts_per_tok": 2}

# Configurations of one family where its layers differ by a setting, and biases wherever there may be some.
FOLD: dict[str, tuple[str, dict[str, Any]]] = {
    "apertus": ("Apertus", {**_GQA, "attention_bias": True}),
    "arcee": ("Arcee", _BIASED),
    "bloom": ("Bloom", {}),
    "codegen": ("CodeGen", {**_GPT2, "num_attention_heads": 4, "rotary_dim": 4}),
    "cohere": ("Cohere", {**_GQA, "attention_bias": True}),
    "cohere with norms in attention": ("Cohere", {**_GQA, "use_qk_norm": True}),
    "cohere2": ("Cohere2", {**_GQA, "sliding_window": 4}),
    "deepseek_v2": ("DeepseekV2", {
        "n_routed_experts": 4, "n_shared_experts": 1, "moe_intermediate_size": 8, "kv_lora_rank": 8,
        "q_lora_rank": None, "qk_rope_head_dim": 4, "qk_nope_head_dim": 4, "v_head_dim": 8, "topk_method": "greedy",
        "first_k_dense_replace": 1, **_MOE,
    }),
    "ernie4_5": ("Ernie4_5", {**_GQA, "use_bias": True, "head_dim": 8}),
    "falcon": ("Falcon", {"bias": True}),
    "falcon, in turn": ("Falcon", {"bias": True, "parallel_attn": False, "alibi": True}),
    "falcon, new": ("Falcon", {"new_decoder_architecture": True, "num_kv_heads": 1}),
    "gemma": ("Gemma", {**_GQA, "head_dim": 8, "attention_bias": True}),
    "glm": ("Glm", {**_GQA, "head_dim": 8, "attention_bias": True}),
    "gpt2": ("GPT2", _GPT2),
    "gpt_bigcode": ("GPTBigCode", _GPT2),
    "gpt_neo": ("GPTNeo", {"num_layers": 3, "num_heads": 2, "attention_types": [[["global", "local", "global"], 1]]}),
    "gpt_neox": ("GPTNeoX", {}),
    "gpt_neox, in turn": ("GPTNeoX", {"use_parallel_residual": False}),
    "gpt_oss": ("GptOss", {"num_local_experts": 4, **_MOE, "head_dim": 8, "sliding_window": 4}),
    "gptj": ("GPTJ", {**_GPT2, "rotary_dim": 4}),
    "granite": ("Granite", {**_BIASED, "residual_multiplier": 0.5, "embedding_multiplier": 3.0}),
    "granitemoe": ("GraniteMoe", {"num_local_experts": 4, **_MOE, "residual_multiplier": 0.5}),
    "helium": ("Helium", {**_BIASED, "head_dim": 8}),
    "hunyuan_v1_dense": ("HunYuanDenseV1", {**_GQA, "head_dim": 8, "attention_bias": True}),
    "llama": ("Llama", _BIASED),
    "ministral": ("Ministral", {**_GQA, "head_dim": 8}),
    "mistral": ("Mistral", {**_GQA, "head_dim": 8, "sliding_window": 4}),
    "mixtral": ("Mixtral", {"num_local_experts": 3, **_MOE}),
    "mpt": ("Mpt", {"d_model": 16, "n_heads": 2, "n_layers": len(SCALES)}),
    "nemotron": ("Nemotron", _BIASED),
    "olmo": ("Olmo", {**_GQA, "attention_bias": True}),
    "olmo that clips": ("Olmo", {**_GQA, "clip_qkv": 0.5}),
    "olmoe": ("Olmoe", {"num_experts": 4, **_MOE}),
    "opt": ("OPT", {"ffn_dim": 24, "word_embed_proj_dim": 16}),
    "opt with narrow embeddings": ("OPT", {"ffn_dim": 24, "word_embed_proj_dim": 8}),
    "phi": ("Phi", _GQA),
    "phi with norms in attention": ("Phi", {"qk_layernorm": True}),
    "phi3": ("Phi3", _GQA),
    "qwen2": ("Qwen2", _GQA),
    "qwen2_moe": ("Qwen2Moe", {
        "num_experts": 3, **_MOE, "moe_intermediate_size": 8, "shared_expert_intermediate_size": 12,
        "mlp_only_layers": [1],
    }),
    "qwen3": ("Qwen3", {**_GQA, "head_dim": 8, "attention_bias": True}),
    "qwen3_moe": ("Qwen3Moe", {"num_experts": 4, **_MOE, "moe_intermediate_size": 8, "head_dim": 8}),
    "seed_oss": ("SeedOss", {**_BIASED, "head_dim": 8, "attention_out_bias": True}),
    "smollm3": ("SmolLM3", _BIASED),
    "stablelm": ("StableLm", {**_GQA, "use_qkv_bias": True}),
    "stablelm, parallel": ("StableLm", {**_GQA, "use_parallel_residual": True, "qk_layernorm": True}),
    "starcoder2": ("Starcoder2", {**_GQA, "use_bias": True}),
}  # fmt: skip
REFUSED: dict[str, tuple[str, dict[str, Any]]] = {
    "bloom": ("Bloom", {"apply_residual_connection_post_layernorm": True}),
    "exaone4": ("Exaone4", {**_GQA, "sliding_window": 4}),
    "gemma2": ("Gemma2", {**_GQA, "head_dim": 8, "sliding_window": 8}),
    "gemma3_text": ("Gemma3Text", {**_GQA, "head_dim": 8, "sliding_window": 8}),
    "glm4": ("Glm4", {**_GQA, "head_dim": 8}),
    "olmo2": ("Olmo2", _GQA),
    "olmo3": ("Olmo3", _GQA),
    "opt": ("OPT", {"ffn_dim": 24, "word_embed_proj_dim": 16, "do_layer_norm_before": False}),
    "opt without a last norm": ("OPT", {"ffn_dim": 24, "word_embed_proj_dim": 16, "_remove_final_layer_norm": True}),
}


def made(family: str, own: dict[str, Any], folder: Path, seed: int = 0) -> Path:
    """A random checkpoint of a family, every bias and norm included."""
    config = getattr(transformers, f"{family}Config")(**{**_SHAPE, **own})
    model = transformers.AutoModelForCausalLM.from_config(config)
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, p in model.named_parameters():
            noise = torch.randn(p.shape, generator=generator)
            p.copy_(noise if "emb" in name or "wte" in name else 0.3 * noise + ("norm" in name or "ln_" in name))
    model.save_pretrained(folder)
    return folder


def loaded(folder: Path) -> Any:
    loader: Any = transformers.AutoModelForCausalLM
    model, info = loader.from_pretrained(folder, output_loading_info=True)
    assert not info["missing_keys"] and not info["unexpected_keys"] and not info["mismatched_keys"], info
    return model.eval()


def logits(model: Any) -> Tensor:
    with torch.no_grad():
        found: Tensor = model(torch.arange(5, 17)[None]).logits
    return found - found.mean()


def layers_of(model: nn.Module) -> nn.ModuleList:
    (found,) = [m for m in model.modules() if isinstance(m, nn.ModuleList) and len(m) == len(SCALES)]
    return found


def scaled_by_hand(folder: Path) -> Tensor:
    """The logits when the residual stream is multiplied where each layer begins."""
    model = loaded(folder)

    def multiply(by: float) -> Any:
        def hook(_: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
            if "hidden_states" in kwargs:
                return args, {**kwargs, "hidden_states": kwargs["hidden_states"] * by}
            return (args[0] * by, *args[1:]), kwargs

        return hook

    for layer, by in zip(layers_of(model), SCALES, strict=True):
        layer.register_forward_pre_hook(multiply(by), with_kwargs=True)
    return logits(model)


def folded(folder: Path, out: Path) -> tuple[Tensor, dict[str, Tensor]]:
    """The logits of the checkpoint whose writers are divided by C_t, and the tensors that were."""
    source = open_source(str(folder))
    filters = writers(source).filters
    tensors = load_file(folder / "model.safetensors")
    divided: dict[str, Tensor] = {}
    factor = 1.0
    factors = [factor := factor / w for w in SCALES]
    for name, tensor in tensors.items():
        if any(f in name for f in filters):
            layer = source.layout.places[name].layer
            assert layer is not None, f"{name} is in no layer"
            divided[name] = tensors[name] = tensor * factors[layer]
    out.mkdir()
    save_file(tensors, out / "model.safetensors", {"format": "pt"})
    (out / "config.json").write_text((folder / "config.json").read_text())
    return logits(loaded(out)), divided


def difference(a: Tensor, b: Tensor) -> float:
    return float((a - b).abs().max() / b.abs().max())


@pytest.mark.parametrize("kind", FOLD)
def test_scales_fold_into_the_writers(kind: str, tmp_path: Path) -> None:
    folder = made(*FOLD[kind], tmp_path / "model")
    found = writers(open_source(str(folder)))
    assert found.reason is None
    by_hand = scaled_by_hand(folder)
    ours, divided = folded(folder, tmp_path / "folded")
    assert difference(ours, by_hand) < CLOSE
    # The scales matter, and so does each filter.
    assert difference(logits(loaded(folder)), by_hand) > FAR
    assert all(any(f in name for name in divided) for f in found.filters)


@pytest.mark.parametrize("kind", REFUSED)
def test_families_that_do_not_fold_are_refused(kind: str, tmp_path: Path) -> None:
    folder = made(*REFUSED[kind], tmp_path / "model")
    found = writers(open_source(str(folder)))
    assert found.filters and found.reason
    ours, _ = folded(folder, tmp_path / "folded")
    assert difference(ours, scaled_by_hand(folder)) > FAR


def test_every_family_of_the_table_is_tried() -> None:
    def families(kinds: dict[str, tuple[str, dict[str, Any]]]) -> set[str]:
        return {getattr(transformers, f"{name}Config")(**{**_SHAPE, **own}).model_type for name, own in kinds.values()}

    assert families(FOLD) | families(REFUSED) == set(residual.FILTERS)
    assert families(FOLD) & families(REFUSED) == {"bloom", "opt"}


def test_the_document_lists_every_family() -> None:
    text = (Path(__file__).parents[1] / "docs" / "families.md").read_text(encoding="utf-8")
    section = text.partition("## Data-flow paths")[2].partition("\n## ")[0]
    rows = [line.split("|")[1:3] for line in section.splitlines() if line.startswith("| ")][1:]
    any_scale = [named for named, scales in rows if scales.strip() == "any"]
    assert [name.strip() for name in any_scale[0].split(",")] == sorted(set(residual.FILTERS) - set(residual.REFUSED))
    others = " ".join(named for named, scales in rows if scales.strip() != "any")
    assert all(re.search(rf"\b{name}\b", others) for name in (*residual.REFUSED, "opt", "bloom"))


def test_a_family_that_is_not_known_may_only_use_scale_1(tmp_path: Path) -> None:
    folder = made("Llama", _GQA, tmp_path / "model")
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "model_type": "nobody"}))
    found = writers(open_source(str(folder)))
    assert found.filters == ()
    assert found.reason == 'which tensors of a model of type "nobody" write to the residual stream is not known'


def test_a_reason_names_the_setting(tmp_path: Path) -> None:
    folder = made(*REFUSED["opt"], tmp_path / "model")
    reason = writers(open_source(str(folder))).reason
    assert reason is not None and reason.endswith("do_layer_norm_before = false")
