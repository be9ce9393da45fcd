"""LoRA adapters as sources (`model+adapter`): what peft makes of each is the oracle."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import peft
import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file

from evomerge.merging.live import live_model
from evomerge.sources import Source, open_source
from tests.merging.adapters.vectors import deltas

Lora = Callable[..., Path]


def merged_by_peft(model: Path, adapter: Path) -> dict[str, torch.Tensor]:
    """The live model's weights with the adapter merged in, in float64."""
    live = transformers.AutoModelForCausalLM.from_pretrained(model, dtype=torch.float64)
    adapted = peft.PeftModel.from_pretrained(live, adapter, autocast_adapter_dtype=False)
    return {name: p.detach().double() for name, p in adapted.merge_and_unload().state_dict().items()}


CASES: dict[str, dict[str, Any]] = {
    "plain": {},
    "scaled": {"lora_alpha": 48, "r": 3},
    "patterns": {
        "target_modules": ["q_proj", "k_proj", "down_proj", "up_proj"],
        "rank_pattern": {"k_proj": 2, r"model\.layers\.[12]\.mlp\.down_proj": 6},
        "alpha_pattern": {"layers.0.self_attn.k_proj": 5, "up_proj": 32},
    },
    "rslora": {"use_rslora": True, "r": 8, "rank_pattern": {"v_proj": 2}},
    "square": {"target_modules": ["q_proj", "o_proj"]},
    "head": {"target_modules": ["lm_head", "q_proj"]},
    "embeddings": {"target_modules": ["embed_tokens", "q_proj"]},
    "modules_to_save": {"modules_to_save": ["lm_head", "norm"]},
    "embeddings saved": {"modules_to_save": ["embed_tokens"], "target_modules": "all-linear"},
}


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("case", CASES)
def test_it_is_what_peft_merges(make: Callable[..., Path], lora: Lora, case: str) -> None:
    model = make(seed=0)
    check_against_peft(model, lora(model, **CASES[case]))


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("bias", ["all", "lora_only"])
def test_trained_biases(make: Callable[..., Path], lora: Lora, bias: str) -> None:
    model = make("qwen2", seed=0)
    source = check_against_peft(model, lora(model, bias=bias))
    assert source.adapter is not None
    assert sum(n.endswith("q_proj.bias") for n in source.adapter.replaced) == 3
    assert any(n.endswith("k_proj.bias") for n in source.adapter.replaced) == (bias == "all")


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(
    "config",
    [
        {"target_modules": ["c_attn", "c_fc"]},
        {"target_modules": ["c_proj"]},  # square in the attention: only fan_in_fan_out tells
        {"target_modules": ["wte", "wpe", "c_attn"]},
    ],
)
@pytest.mark.parametrize("prefixed", [True, False])
def test_conv1d(gpt2: Path, lora: Lora, tmp_path: Path, config: dict[str, Any], prefixed: bool) -> None:
    adapter = lora(gpt2, **config)
    if not prefixed:  # as the first GPT-2 checkpoints were saved
        bare = Path(shutil.copytree(gpt2, tmp_path / "bare"))
        tensors = load_file(gpt2 / "model.safetensors")
        save_file({n.removeprefix("transformer."): t for n, t in tensors.items()}, bare / "model.safetensors")
        gpt2 = bare
    source = check_against_peft(gpt2, adapter, "" if prefixed else "transformer.")
    assert source.adapter is not None and all(u.transposed for u in source.adapter.updates.values())


@pytest.mark.filterwarnings("ignore")
def test_a_tied_embedding(make: Callable[..., Path], lora: Lora) -> None:
    model = make(seed=0, tied=True)
    source = check_against_peft(model, lora(model, target_modules=["embed_tokens", "q_proj"]))
    assert "lm_head.weight" not in source.tensors
    check_against_peft(model, lora(model, modules_to_save=["embed_tokens"], ensure_weight_tying=True))


@pytest.mark.filterwarnings("ignore")
def test_a_head_of_its_own_under_a_configuration_that_ties_it(
    make: Callable[..., Path], lora: Lora, tmp_path: Path
) -> None:
    model = Path(shutil.copytree(make(seed=0, tied=True), tmp_path / "model"))
    tensors = load_file(model / "model.safetensors")
    tensors["lm_head.weight"] = -2 * tensors["model.embed_tokens.weight"]
    save_file(tensors, model / "model.safetensors", {"format": "pt"})
    source = check_against_peft(model, lora(model, target_modules=["lm_head", "q_proj"]))
    assert not source.tied and "lm_head.weight" in source.merged_tensors


def check_against_peft(model: Path, adapter: Path, prefix: str = "") -> Source:
    source = open_source(f"{model}+{adapter}")
    assert source.adapter is not None and source.adapter.updates
    original = load_file(model / "model.safetensors")
    expected = merged_by_peft(model, adapter)
    found = deltas(source)
    changed = []
    for name, tensor in original.items():
        there = expected.get(prefix + name, expected.get(name))
        assert there is not None
        delta = there - tensor.double()
        error = float((found[name].double() - delta).abs().max())
        assert error <= 1e-6 * float(delta.abs().max()), name
        if float(delta.abs().max()):
            changed.append(name)
    assert sorted(changed) == sorted({**source.adapter.updates, **source.adapter.replaced})
    return source


def test_an_unchanged_copy_of_the_embedding_does_not_count(make: Callable[..., Path], lora: Lora) -> None:
    model = make(seed=0)
    folder = lora(model, target_modules=["embed_tokens"])
    assert "base_model.model.model.embed_tokens.base_layer.weight" in load_file(folder / "adapter_model.safetensors")
    source = open_source(f"{model}+{folder}")
    assert source.adapter is not None and not source.adapter.replaced
    assert source.tensors["model.embed_tokens.weight"].file == model / "model.safetensors"


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("kind", ["llama", "gpt2"])
def test_the_live_model_answers_as_pefts(make: Callable[..., Path], gpt2: Path, lora: Lora, kind: str) -> None:
    """What is evaluated, and what statistics are collected of, is the model with its adapter."""
    model = gpt2 if kind == "gpt2" else make(seed=0)
    folder = lora(model, target_modules=["c_attn", "c_proj"] if kind == "gpt2" else "all-linear", r=3)
    tokens = torch.tensor([[3, 9, 4, 17]])
    live = transformers.AutoModelForCausalLM.from_pretrained(model, dtype=torch.float32)
    plain = live(input_ids=tokens).logits
    expected = peft.PeftModel.from_pretrained(live, folder)(input_ids=tokens).logits
    found = live_model(open_source(f"{model}+{folder}"), torch.float32)(input_ids=tokens).logits
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)
    assert not torch.allclose(found, plain, rtol=1e-2, atol=1e-2)


@pytest.mark.filterwarnings("ignore")
def test_experts_of_their_own(tmp_path: Path) -> None:
    """An adapter with a pair for each expert, as it was trained before transformers fused them; PEFT reads it too."""
    config = transformers.MixtralConfig(
        vocab_size=40, hidden_size=16, intermediate_size=24, num_hidden_layers=1, num_attention_heads=2,
        num_key_value_heads=1, num_local_experts=3, num_experts_per_tok=2, max_position_embeddings=32,
    )  # fmt: skip
    torch.manual_seed(0)
    transformers.MixtralForCausalLM(config).save_pretrained(tmp_path / "model")
    generator = torch.Generator().manual_seed(1)
    tensors = {}
    for expert in range(3):
        for part, (rows, columns) in {"w1": (24, 16), "w2": (16, 24), "w3": (24, 16)}.items():
            key = f"base_model.model.model.layers.0.block_sparse_moe.experts.{expert}.{part}"
            tensors[f"{key}.lora_A.weight"] = torch.randn(2, columns, generator=generator)
            tensors[f"{key}.lora_B.weight"] = torch.randn(rows, 2, generator=generator)
    folder = tmp_path / "adapter"
    folder.mkdir()
    save_file(tensors, folder / "adapter_model.safetensors")
    settings = {"peft_type": "LORA", "r": 2, "lora_alpha": 3, "target_modules": ["w1", "w2", "w3"]}
    (folder / "adapter_config.json").write_text(json.dumps(settings))
    source = open_source(f"{tmp_path / 'model'}+{folder}")
    assert source.adapter is not None and len(source.adapter.updates) == 9
    live = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "model", dtype=torch.float32)
    tokens = torch.tensor([[3, 9, 4, 17, 5]])
    expected = peft.PeftModel.from_pretrained(live, folder)(input_ids=tokens).logits
    found = live_model(source, torch.float32)(input_ids=tokens).logits
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)
