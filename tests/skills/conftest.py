"""A tiny base with the zoo's tokenizer, and adapters on it as peft saves them."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import peft
import pytest
import torch
import transformers

from evomerge import zoo
from evomerge.library import Library
from evomerge.skills import add

Lora = Callable[..., Path]
LAYERS = 3


def make_base(folder: Path, seed: int = 0, **config: Any) -> Path:
    """A random llama."""
    torch.manual_seed(seed)
    shape = {
        "vocab_size": 134, "hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": LAYERS,
        "num_attention_heads": 2, "num_key_value_heads": 1, "max_position_embeddings": 64, "tie_word_embeddings": False,
        "bos_token_id": None, "eos_token_id": 1, "pad_token_id": 0,
    }  # fmt: skip
    live = transformers.LlamaForCausalLM(transformers.LlamaConfig(**shape | config))
    with torch.no_grad():
        for name, parameter in live.named_parameters():
            if "norm" not in name:  # larger than transformers' own, so that answers differ
                parameter.mul_(4.0)
    live.save_pretrained(folder)
    for file in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copyfile(zoo.path("base") / file, folder / file)
    return folder


def make_lora(model: Path, folder: Path, seed: int = 0, **config: Any) -> Path:
    """An adapter as peft saves it, every trained tensor random."""
    live = transformers.AutoModelForCausalLM.from_pretrained(model, dtype=torch.float32)
    settings = {"r": 4, "target_modules": ["q_proj", "v_proj"]} | config
    adapted = peft.get_peft_model(live, peft.LoraConfig(**settings))
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for p in adapted.parameters():
            if p.requires_grad:
                p.add_(torch.randn(p.shape, generator=generator) * 0.2)
    adapted.save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_base(tmp_path_factory.mktemp("skills") / "base")


@pytest.fixture(scope="session")
def adapters(base: Path) -> dict[str, Path]:
    """Ranks 2, 4 (rsLoRA, of several ranks) and 8, on different layers."""
    place = base.parent
    return {
        "two": make_lora(base, place / "a2", 2, r=2, lora_alpha=7),
        "four": make_lora(
            base, place / "a4", 4, r=4, lora_alpha=13, use_rslora=True, rank_pattern={"layers.1.self_attn.q_proj": 3},
            target_modules=["q_proj", "down_proj"],
        ),
        "eight": make_lora(base, place / "a8", 8, r=8, lora_alpha=25, target_modules=["q_proj", "v_proj", "up_proj"]),
    }  # fmt: skip


@pytest.fixture(scope="session")
def shared(base: Path, adapters: dict[str, Path]) -> Library:
    """A library of the three; not to be changed."""
    for name, folder in adapters.items():
        library = add(base.parent / "shared", name, folder)
    return library


@pytest.fixture
def library(shared: Library) -> Library:
    """A copy of it, beside it, that may be changed."""
    place = shared.folder.parent / "copy"
    shutil.rmtree(place, ignore_errors=True)
    shutil.copytree(shared.folder, place)
    return Library(place, shared.index)
