"""NuSLERP: spherical interpolation by weights, of two models or of their task vectors (mergekit's method).

Shoemake, "Animating rotation with quaternion curves", 1985, as in slerp; whole tensors, or row by row, or column by
column.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from evomerge.merging.group import Group
from evomerge.merging.methods.slerp import spherical
from evomerge.merging.methods.weights import products, weighted
from evomerge.merging.sums import column_gram

# A sum of weights below this counts as 0: the middle is taken (mergekit's limit).
NO_WEIGHT = 1e-6
# Beyond this cosine two vectors count as (anti)parallel: mergekit's 1 - cos^2 <= 1e-16.
PARALLEL = math.sqrt(1.0 - 1e-16)


def nuslerp(group: Group, *, weight: Sequence[float], nuslerp_row_wise: bool, nuslerp_flatten: bool) -> Tensor:
    """sin((1-t) a)/sin a * v_1 + sin(t a)/sin a * v_2, t = w_2 / (w_1 + w_2); v = W, or W_0 + with v = W - W_0.

    A vector of zeros counts as perpendicular to any other.

    Args:
        weight: Of the two sources.
        nuslerp_flatten: One angle for the whole tensor.
        nuslerp_row_wise: Without flattening: one angle for each vector along the *first* dimension (a column of a
            matrix, which mergekit, thinking of x W, calls a row) instead of along the last one.
    """
    total = math.fsum(weight)
    t = 0.5 if abs(total) < NO_WEIGHT else weight[1] / total
    if nuslerp_flatten or len(group.shape) < 2:
        (a, ab), (_, b) = products(group)
        norms = math.sqrt(a) * math.sqrt(b)
        return weighted(group, spherical(max(-1.0, min(1.0, ab / norms)) if norms else 0.0, t, PARALLEL))
    based = group.base is not None
    if not nuslerp_row_wise:
        rows = group.by_last()
        first, second = _factors(rows.row_delta_gram() if based else rows.row_gram(), t)
        return rows.add([first, second]) if based else rows.combine([first, second])
    first, second = (f.to(group.dtype) for f in _factors(column_gram(group, deltas=based), t))

    def columns(own: list[Tensor], base: Tensor | None) -> Tensor:
        mixed = own[0] * first + own[1] * second
        return mixed if base is None else mixed.add_(base)

    return group.by_rows(columns, deltas=based)


def _factors(gram: Tensor, t: float) -> tuple[Tensor, Tensor]:
    """`spherical` for many pairs at once: float64 [m, 2, 2] -> two of [m]."""
    norms = gram[:, 0, 0].sqrt() * gram[:, 1, 1].sqrt()
    cosine = torch.where(norms > 0, gram[:, 0, 1] / norms.clamp(min=torch.finfo(torch.float64).tiny), 0.0).clamp(-1, 1)
    straight = ~(cosine.abs() <= PARALLEL)
    angle = torch.acos(torch.where(straight, 0.0, cosine))
    sine = angle.sin()
    first, second = ((1.0 - t) * angle).sin() / sine, (t * angle).sin() / sine
    return torch.where(straight, 1.0 - t, first), torch.where(straight, t, second)
