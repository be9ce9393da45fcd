"""The weights files of a checkpoint before they are written: which tensors are in which, and where, to the byte."""

from __future__ import annotations

import json
import struct
from collections.abc import Sequence
from typing import Any

from evomerge.header import ITEM_SIZES
from evomerge.merging.plan import Plan, TensorPlan

# Largest size of one file where nothing else is asked.
SHARD_BYTES = 5_000_000_000


def weights_bytes(plan: Plan, shard_bytes: int = SHARD_BYTES) -> int:
    """Size of all weights files together, headers included."""
    return plan.bytes_written + sum(len(layout(group)[0]) for group in split(plan.tensors, shard_bytes))


def split(tensors: Sequence[TensorPlan], shard_bytes: int) -> list[list[TensorPlan]]:
    """Tensors by file, none larger than `shard_bytes` (unless one tensor alone is)."""
    shards: list[list[TensorPlan]] = [[]]
    size = 0
    for t in tensors:
        if shards[-1] and size + t.bytes > shard_bytes:
            shards.append([])
            size = 0
        shards[-1].append(t)
        size += t.bytes
    return shards


def layout(tensors: Sequence[TensorPlan]) -> tuple[bytes, dict[str, int]]:
    """The header of a safetensors file, and where each tensor's data begins after it.

    Wider types first, so that every tensor is aligned for readers that map the file.
    """
    ordered = sorted(tensors, key=lambda t: -ITEM_SIZES[t.dtype])
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    places: dict[str, int] = {}
    at = 0
    for t in ordered:
        header[t.name] = {"dtype": t.dtype, "shape": list(t.shape), "data_offsets": [at, at + t.bytes]}
        places[t.name] = at
        at += t.bytes
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-(8 + len(text)) % 64)
    return struct.pack("<Q", len(text)) + text, places
