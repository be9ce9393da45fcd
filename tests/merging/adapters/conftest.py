"""Adapters as peft saves them, on tiny models."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import peft
import pytest
import torch
import transformers

ATTENTION = ["q_proj", "v_proj"]
Lora = Callable[..., Path]


@pytest.fixture(scope="session")
def gpt2(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A GPT-2, whose layers are Conv1D: weights are stored as [in, out]."""
    folder = tmp_path_factory.mktemp("gpt2") / "model"
    config = transformers.GPT2Config(vocab_size=40, n_embd=16, n_layer=2, n_head=2, n_positions=32)
    torch.manual_seed(0)
    transformers.GPT2LMHeadModel(config).save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def lora(tmp_path_factory: pytest.TempPathFactory) -> Lora:
    """lora(model, seed, **LoraConfig): the folder of an adapter as peft saves it, every trained tensor random."""

    def build(model: Path, seed: int = 0, **config: Any) -> Path:
        live = transformers.AutoModelForCausalLM.from_pretrained(model, dtype=torch.float32)
        adapted = peft.get_peft_model(live, peft.LoraConfig(**{"r": 4, "target_modules": ATTENTION} | config))
        generator = torch.Generator().manual_seed(seed)
        with torch.no_grad():
            for p in adapted.parameters():
                if p.requires_grad:
                    p.add_(torch.randn(p.shape, generator=generator) * 0.1)
        folder = tmp_path_factory.mktemp("lora") / f"adapter{seed}"
        adapted.save_pretrained(folder)
        return folder

    return build


@pytest.fixture(scope="session")
def three(make: Callable[..., Path], lora: Lora) -> tuple[Path, list[Path]]:
    """A model and adapters of ranks 2, 4 and 8 on it, on different layers."""
    model = make(seed=0)
    targets = (["q_proj", "v_proj"], ["q_proj", "down_proj"], ["q_proj", "v_proj", "up_proj"])
    return model, [lora(model, seed=r, r=r, lora_alpha=3 * r + 1, target_modules=t)
                   for r, t in zip((2, 4, 8), targets, strict=True)]  # fmt: skip
