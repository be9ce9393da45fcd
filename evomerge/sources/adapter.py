"""A LoRA adapter on a model, as PEFT saves it, told from its configuration and headers; nothing is multiplied here.

W + s B A (Hu et al., arXiv 2106.09685): the task vector of an adapter is a product of two thin matrices, and is kept as
one: an adapter of a 7B model is some megabytes, the model with the adapter merged in would be another 14 GB.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from evomerge.header import TensorInfo

if TYPE_CHECKING:
    from evomerge.sources.source import Source

WEIGHTS, CONFIG = "adapter_model.safetensors", "adapter_config.json"


@dataclass(frozen=True)
class Update:
    """What an adapter adds to one tensor W: scale * B A, or its transpose.

    Attributes:
        a: lora_A, of shape [r, in] (or lora_embedding_A, [r, vocabulary]).
        b: lora_B, of shape [out, r] (or lora_embedding_B, [hidden size, r]).
        scale: lora_alpha / r, or lora_alpha / sqrt(r) (rsLoRA).
        transposed: W is stored as [in, out] (GPT-2's Conv1D, embeddings), so that (B A)^T is added.
    """

    a: TensorInfo
    b: TensorInfo
    scale: float
    transposed: bool

    @property
    def rank(self) -> int:
        """r."""
        return self.a.shape[0]

    @property
    def shape(self) -> tuple[int, int]:
        """Of W."""
        rows, columns = self.b.shape[0], self.a.shape[1]
        return (columns, rows) if self.transposed else (rows, columns)


@dataclass(frozen=True, eq=False)
class Adapter:
    """An opened adapter.

    Attributes:
        reference: Of the adapter alone (what stands after `+`).
        path: Its folder.
        local: Whether that is a folder of the user's.
        model: The model that it is an adapter of.
        updates: What it adds, by the model's tensor name, sorted.
        replaced: Tensors that it brings whole (`modules_to_save`, trained biases), by the model's tensor name, sorted.
    """

    reference: str
    path: Path
    local: bool
    model: Source
    updates: Mapping[str, Update]
    replaced: Mapping[str, TensorInfo]

    @property
    def full_reference(self) -> str:
        """A reference that names this adapter from any folder."""
        return str(self.path.resolve()) if self.local else self.reference

    def labels(self) -> list[tuple[str, TensorInfo]]:
        """Everything that the adapter is, in an order of its own: what its content hash covers."""
        found: list[tuple[str, TensorInfo]] = []
        for name, update in self.updates.items():
            what = f"{name} {update.scale!r} {'transposed' if update.transposed else 'straight'}"
            for side, info in (("a", update.a), ("b", update.b)):
                found.append((f"{what} {side} {info.dtype} {info.shape}", info))
        found += [(f"{name} replaced {info.dtype} {info.shape}", info) for name, info in self.replaced.items()]
        return found
