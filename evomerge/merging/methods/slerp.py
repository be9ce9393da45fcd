"""Spherical interpolation of whole tensors (Shoemake 1985), norms kept as they are."""

from __future__ import annotations

import math

from torch import Tensor

from evomerge.merging.group import Group

# Beyond this cosine two tensors count as parallel, and the straight line is taken.
PARALLEL = 0.9995


def slerp(group: Group, *, t: float) -> Tensor:
    """sin((1-t) a)/sin a * base + sin(t a)/sin a * other, with a the angle between the two as flat vectors.

    Args:
        t: 0 gives the base, 1 the other model.
    """
    cosine, angle = group.angle
    if abs(cosine) > PARALLEL or math.isnan(cosine):
        ours, theirs = 1.0 - t, t
    else:
        ours, theirs = math.sin((1.0 - t) * angle) / math.sin(angle), math.sin(t * angle) / math.sin(angle)
    return (group.base_values * ours).add_(group.values[0] * theirs).reshape(group.shape)
