"""Tiny real checkpoints of three families, made in milliseconds."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
import transformers

from evomerge import zoo

VOCABULARY = 134  # the zoo's tokenizer serves them all

Make = Callable[..., Path]


def _config(kind: str, layers: int, tied: bool) -> transformers.PreTrainedConfig:
    shape = {
        "vocab_size": VOCABULARY, "hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": layers,
        "num_attention_heads": 2, "max_position_embeddings": 64, "tie_word_embeddings": tied,
        "bos_token_id": None, "eos_token_id": 1, "pad_token_id": 0,
    }  # fmt: skip
    if kind == "llama":
        return transformers.LlamaConfig(num_key_value_heads=1, **shape)
    if kind == "qwen2":
        return transformers.Qwen2Config(
            num_key_value_heads=1, use_sliding_window=True, sliding_window=8, max_window_layers=1, **shape
        )
    return transformers.GPTNeoXConfig(**shape)


@pytest.fixture(scope="session")
def make(tmp_path_factory: pytest.TempPathFactory) -> Make:
    """make(kind, seed, layers, tied, dtype, near): the folder of a fresh checkpoint.

    With `near`, another checkpoint's folder, the weights are that one's plus a little noise: a "fine-tune".
    """
    root = tmp_path_factory.mktemp("checkpoints")

    def build(
        kind: str = "llama",
        seed: int = 0,
        layers: int = 3,
        tied: bool = False,
        dtype: torch.dtype = torch.float32,
        near: Path | None = None,
    ) -> Path:
        folder = root / f"{kind}-{seed}-{layers}-{tied}-{str(dtype)[6:]}-{near.name if near else 'fresh'}"
        if folder.exists():
            return folder
        generator = torch.Generator().manual_seed(seed)
        model = transformers.AutoModelForCausalLM.from_config(_config(kind, layers, tied))
        start = {}
        if near:
            other = transformers.AutoModelForCausalLM.from_pretrained(near, dtype=torch.float32)
            start = dict(other.named_parameters())
        with torch.no_grad():
            for name, p in model.named_parameters():
                noise = torch.randn(p.shape, generator=generator)
                p.copy_(start[name] + 0.05 * noise if near else 0.3 * noise + (1.0 if "norm" in name else 0.0))
        model.to(dtype).save_pretrained(folder)
        for file in ("tokenizer.json", "tokenizer_config.json"):
            shutil.copyfile(zoo.path("base") / file, folder / file)
        return folder

    return build


@pytest.fixture(scope="session")
def family(make: Make) -> tuple[str, str, str]:
    """A base and two fine-tunes of it, in bfloat16: their folders, as recipes name them."""
    base = make(seed=0, dtype=torch.bfloat16)
    return str(base), *(str(make(seed=s, dtype=torch.bfloat16, near=base)) for s in (1, 2))  # type: ignore[return-value]


@pytest.fixture(scope="session")
def exact_family(make: Make) -> tuple[str, str, str]:
    """The same in float32: no two elements of a task vector are equal."""
    base = make(seed=0)
    return str(base), *(str(make(seed=s, near=base)) for s in (1, 2))  # type: ignore[return-value]
