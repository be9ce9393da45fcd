"""What a space must know of a model: plain facts, read from its files by who opens them."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Shape:
    """One model, as far as a space depends on it.

    Attributes:
        num_layers: Number of transformer blocks.
        tensors: Names of the checkpoint's tensors; empty where they are not looked at.
        tied: Whether the output head is the input embeddings.
        writers: Substrings of the names of the tensors that write to the residual stream ("o_proj", "down_proj").
        unscalable: Why hops over its layers may only have scale 1, or None.
    """

    num_layers: int
    tensors: tuple[str, ...] = ()
    tied: bool = True
    writers: tuple[str, ...] = ()
    unscalable: str | None = None
