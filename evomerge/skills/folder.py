"""What the folder of a gated model holds. Nothing here loads torch."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from pydantic import Field

from evomerge.config import Frozen
from evomerge.library import GATE_CONFIG as GATE_CONFIG

GATE, LIBRARY = "gate.safetensors", "library"


class GateConfig(Frozen):
    """gate_config.json.

    Attributes:
        version: Of the format.
        skills: Names, in the order of the gate's outputs.
        groups: How many parts of the model have weights of their own: 1, or the number of layers.
        hidden_size: Of the base.
        width: Hidden units of the gate.
        base_sha256: Content hash of the base that it was trained with; None in folders of before it was kept.
        skills_sha256: Hash of each skill, by name, as the library's index has it; empty in folders of before.
        trained: What it was trained on and how: options, losses, SHA-256 of the data.
    """

    version: int = Field(default=1, ge=1, le=1)
    skills: tuple[str, ...] = Field(min_length=1)
    groups: int = Field(ge=1)
    hidden_size: int = Field(ge=1)
    width: int = Field(ge=1)
    base_sha256: str | None = None
    skills_sha256: dict[str, str] = Field(default_factory=dict)
    trained: dict[str, Any] = Field(default_factory=dict)


def is_gated(folder: str | Path) -> bool:
    """Whether a folder holds a gated model."""
    return (Path(folder) / GATE_CONFIG).is_file()
