"""Competition for items and attraction between candidates: the equations of M2N2 (arXiv 2508.16204).

Every item is a resource of capacity c_j = 1 that the candidates of an archive share in proportion to their results
s_kj in [0, 1]. So what few solve is worth much, and a specialist lives beside better generalists.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[np.float64]
EPSILON = 1e-6


def competition(results: Array) -> Array:
    """How much is asked of each item: z_j = sum_k s_kj, shape (items,).

    Args:
        results: s, in [0, 1], shape (candidates, items).
    """
    found: Array = results.sum(axis=0)
    return found


def fitness(results: Array, alpha: float = 1.0) -> Array:
    """What each candidate gets of the items: f_k = sum_j s_kj c_j / (z_j^alpha + epsilon), shape (candidates,).

    Args:
        results: s, in [0, 1], shape (candidates, items).
        alpha: Strength of the competition; with 0 there is none, and f is the sum of results.
    """
    found: Array = (results / (competition(results) ** alpha + EPSILON)).sum(axis=1)
    return found


def attraction(results: Array, a: int) -> Array:
    """How much each candidate complements one: sum_j c_j / (z_j + epsilon) max(s_kj - s_aj, 0), shape (candidates,).

    Args:
        results: s, in [0, 1], shape (candidates, items).
        a: The one.
    """
    more = np.maximum(results - results[a], 0.0)
    found: Array = (more / (competition(results) + EPSILON)).sum(axis=1)
    return found


class Scale:
    """Brings items' results into [0, 1].

    An item whose results have all been in [0, 1] (right or wrong, a share) stays as it is. One that ever had a result
    outside (a likelihood) is put between the lowest and the highest that was ever seen of it: 0 and 1. Where these are
    the same, all have 0: nobody is better there. What is not a number counts as the lowest.
    """

    def __init__(self) -> None:
        self._low: Array | None = None
        self._high: Array | None = None

    def see(self, results: Array) -> None:
        """Hear of one candidate's results, shape (items,)."""
        finite = np.isfinite(results)
        low, high = np.where(finite, results, np.inf), np.where(finite, results, -np.inf)
        self._low = low if self._low is None else np.minimum(self._low, low)
        self._high = high if self._high is None else np.maximum(self._high, high)

    def __call__(self, results: Array) -> Array:
        """The results of some candidates, scaled by all that was seen, shape (candidates, items)."""
        assert self._low is not None and self._high is not None
        plain = (self._low >= -EPSILON) & (self._high <= 1.0 + EPSILON)  # float32 shares may round beyond
        low, high = np.where(plain, 0.0, self._low), np.where(plain, 1.0, self._high)
        width = high - low
        known = np.isfinite(width) & (width > 0.0)
        low, width = np.where(known, low, 0.0), np.where(known, width, 1.0)
        scaled = (np.where(np.isfinite(results), results, low) - low) / width
        return np.where(known, np.clip(scaled, 0.0, 1.0), 0.0)
