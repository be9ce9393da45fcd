"""VaRM: weights from how far each source moved (FuseChat, Wan et al., arXiv 2402.16107, section 3.3)."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from evomerge.merging.group import Group
from evomerge.merging.sums import energies


def varm(group: Group, *, unit: str) -> Tensor:
    """sum v_i W_i / sum v_j, v_i the mean of (W_i - W_0)^2 over a unit; where nothing moved, W_0.

    Args:
        unit: "model"; "layer" (a transformer block; a tensor outside of the blocks is a unit of its own); "matrix"
            (this tensor); "element".
    """
    if unit == "element":
        return group.elementwise(_each, deltas=True)
    moved = group.energy if unit in ("model", "layer") and group.energy else energies(group)
    total = math.fsum(moved) if all(map(math.isfinite, moved)) else math.nan
    return group.add([v / total if total else 0.0 for v in moved])


def _each(deltas: list[Tensor], base: Tensor | None) -> Tensor:
    """W_0 + sum d_i^3 / sum d_i^2, divided by the largest first, so that no square is too small for its type."""
    assert base is not None
    if not deltas:
        return base.clone()
    largest = deltas[0].abs()
    for d in deltas[1:]:
        largest = torch.maximum(largest, d.abs())
    scale = torch.where(largest == 0.0, 1.0, largest)
    above, below = torch.zeros_like(base), torch.zeros_like(base)
    for d in deltas:
        part = d / scale
        square = part * part
        below += square
        above += square.mul_(part)
    below += torch.eq(below, 0.0)
    return above.div_(below).mul_(largest).add_(base)
