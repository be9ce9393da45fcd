"""How far two tensors are from each other."""

from __future__ import annotations

from torch import Tensor


def distance(found: Tensor, expected: Tensor) -> float:
    """Largest difference, relative to the largest value."""
    return float((found - expected).abs().max() / expected.abs().max())
