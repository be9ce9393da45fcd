"""Karcher mean: the point of a sphere with the least sum of squared angles to some others.

Karcher, "Riemannian center of mass and mollifier smoothing", 1977; for merging: arXiv 2603.04972. The mean stays in the
span of its inputs, so the iteration runs on their dot products alone, in float64, and the tensors are read twice.
"""

from __future__ import annotations

import math

import numpy as np
import numpy.typing as npt
from torch import Tensor

from evomerge.merging.group import Group
from evomerge.merging.methods.weights import finite

# From here on two unit vectors count as opposite: there is no one shortest way between them.
OPPOSITE = 1e-12

Vector = npt.NDArray[np.float64]


def karcher(group: Group, *, max_iter: int, tol: float) -> Tensor:
    """mu * mean |W_i|, where mu <- exp_mu(sum log_mu(u_i) / n), u_i = W_i / |W_i|.

    Starts at the mean of the unit vectors, made one. Tensors shorter than `tol` have no direction and are left out.

    Args:
        max_iter: Steps at most.
        tol: A step shorter than this (in radians) is the last.
    """
    gram = group.gram()
    if not finite(gram):
        return group.combine([1.0 / group.n] * group.n)  # so that it shows
    norms = [math.sqrt(gram[i][i]) for i in range(group.n)]
    used = [i for i, norm in enumerate(norms) if norm > tol]
    if not used:
        return group.combine([0.0] * group.n)
    cosines = np.array([[gram[i][j] / (norms[i] * norms[j]) for j in used] for i in used])
    scale = math.fsum(norms) / group.n
    weights = [0.0] * group.n
    for i, share in zip(used, mean(cosines, max_iter, tol), strict=True):
        weights[i] = scale * float(share) / norms[i]
    return group.combine(weights)


def mean(cosines: Vector, max_iter: int, tol: float) -> Vector:
    """Coefficients of the mean of unit vectors, from their dot products [n, n]."""
    n = len(cosines)

    def norm(c: Vector) -> float:
        return math.sqrt(max(float(c @ cosines @ c), 0.0))

    start = np.full(n, 1.0 / n)
    length = norm(start)
    mu = start / length if length >= tol else np.eye(n)[0]
    for _ in range(max_iter):
        step = np.zeros(n)
        for i, dot in enumerate(np.clip(cosines @ mu, -1.0, 1.0)):
            angle = math.acos(dot)
            if angle < tol or math.pi - angle < OPPOSITE:
                continue
            own = -dot * mu
            own[i] += 1.0
            step += own * (angle / math.sin(angle) / n)
        length = norm(step)
        if length < tol:
            break
        mu = math.cos(length) * mu + math.sin(length) / length * step
        mu /= norm(mu)
    return mu
