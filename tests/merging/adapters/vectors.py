"""The task vectors of an adapter: as merge methods see them, and from its files alone in float64."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file

from evomerge.merging import adapters
from evomerge.merging.group import Group
from evomerge.merging.mapped import MappedFiles
from evomerge.sources import Source


def deltas(source: Source) -> dict[str, torch.Tensor]:
    """The task vector of each tensor that an adapter changes, against its own model, as merge methods see it."""
    assert source.adapter is not None
    files = MappedFiles()
    found = {}
    for name in source.tensors:
        own = adapters.operand(source, name, files.tensor)
        group = Group([own], adapters.operand(source.adapter.model, name, files.tensor))
        found[name] = group.delta(0, 0, group.elements).reshape(group.shape)
    return found


def numpy_delta(adapter: Path, name: str) -> Any:
    """scale B A of one tensor, from the adapter's files alone; 0 where it has none."""
    config = json.loads((adapter / "adapter_config.json").read_text())
    tensors = load_file(adapter / "adapter_model.safetensors")
    key = "base_model.model." + name.removesuffix(".weight")
    if f"{key}.lora_A.weight" not in tensors:
        return 0.0
    a, b = (tensors[f"{key}.lora_{side}.weight"].double().numpy() for side in "AB")
    return config["lora_alpha"] / config["r"] * (b @ a)
