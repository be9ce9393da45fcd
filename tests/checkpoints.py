"""Folders that look like checkpoints, and how the opening of one is refused."""

from __future__ import annotations

import json
import struct
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import save_file

from evomerge.errors import SourceError
from evomerge.sources import open_source


def header_bytes(header: Any, data: bytes = b"") -> bytes:
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return struct.pack("<Q", len(text)) + text + data


def checkpoint(folder: Path, layers: int = 2, width: int = 4, seed: int = 0, **config: Any) -> Path:
    """A folder that looks like a llama checkpoint."""
    folder.mkdir(parents=True, exist_ok=True)
    random = np.random.default_rng(seed)
    tensors = {"model.embed_tokens.weight": random.normal(size=(11, width)).astype(np.float32),
               "model.norm.weight": random.normal(size=width).astype(np.float32)}  # fmt: skip
    for i in range(layers):
        tensors[f"model.layers.{i}.mlp.up_proj.weight"] = random.normal(size=(6, width)).astype(np.float32)
    save_file(tensors, folder / "model.safetensors")
    data = {"model_type": "llama", "architectures": ["LlamaForCausalLM"], "num_hidden_layers": layers,
            "hidden_size": width, "vocab_size": 11, "tie_word_embeddings": True} | config  # fmt: skip
    (folder / "config.json").write_text(json.dumps(data))
    return folder


def refused(reference: str | Path, **options: Any) -> str:
    with pytest.raises(SourceError) as e:
        open_source(str(reference), **options)
    assert e.value.exit_code == 2 and "\n" not in str(e.value)
    return str(e.value)
