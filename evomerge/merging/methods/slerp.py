"""Spherical interpolation of whole tensors (Shoemake, "Animating rotation with quaternion curves", 1985)."""

from __future__ import annotations

import math

from torch import Tensor

from evomerge.merging.group import Group

# Beyond this cosine two tensors count as parallel, and the straight line is taken (mergekit's limit).
PARALLEL = 0.9995
# Norms below this are not divided by.
SMALL = 1e-8


def slerp(group: Group, *, t: float) -> Tensor:
    """sin((1-t) a)/sin a * base + sin(t a)/sin a * other, with a the angle between the two as flat vectors.

    Args:
        t: 0 gives the base, 1 the other model.
    """
    (other, product), (_, base) = group.gram()
    cosine = product / math.prod(n if n > SMALL else 1.0 for n in (math.sqrt(other), math.sqrt(base)))
    ours, theirs = spherical(max(-1.0, min(1.0, cosine)), t, PARALLEL)
    return group.combine([theirs], base_weight=ours)


def spherical(cosine: float, t: float, parallel: float) -> tuple[float, float]:
    """Factors of the first and the second vector at t; those of the straight line where the two are (anti)parallel."""
    if not abs(cosine) <= parallel:
        return 1.0 - t, t
    angle = math.acos(cosine)
    return math.sin((1.0 - t) * angle) / math.sin(angle), math.sin(t * angle) / math.sin(angle)
