"""Which of some candidates are best, where a candidate has one value or several (NSGA-II, Deb et al. 2002)."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt


def best_first(values: Sequence[tuple[float, ...] | None]) -> list[int]:
    """Indices of the candidates, the best first (higher is better).

    By front (those that no other dominates, then those that only the first front dominates, ...), in a front the least
    crowded first; equal ones stay in the order given. Those that failed (None) come last.

    Args:
        values: One or more values of each candidate.
    """
    failed = [i for i, told in enumerate(values) if told is None]
    left = np.array([i for i, told in enumerate(values) if told is not None], dtype=np.int64)
    out: list[int] = []
    while len(left):
        points = np.array([values[i] for i in left], dtype=np.float64)
        first = ~dominated(points)
        order = np.argsort(-_distance(points[first]), kind="stable")
        out += left[first][order].tolist()
        left = left[~first]
    return out + failed


def dominated(points: npt.NDArray[np.float64]) -> npt.NDArray[np.bool_]:
    """Whether another point is nowhere worse and somewhere better, shape (n,)."""
    no_worse = np.all(points[None] >= points[:, None], axis=2)
    better = np.any(points[None] > points[:, None], axis=2)
    found: npt.NDArray[np.bool_] = np.logical_and(no_worse, better).any(axis=1)
    return found


def _distance(front: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    """Crowding distance of each point, shape (n,); of points that are equal, all but the first have none."""
    _, first = np.unique(front, axis=0, return_index=True)
    unique = front[first]
    found = np.zeros(len(unique))
    for column in unique.T:
        order = np.argsort(column, kind="stable")
        spread = column[order[-1]] - column[order[0]]
        found[order[0]] = found[order[-1]] = np.inf
        if spread > 0:
            found[order[1:-1]] += (column[order[2:]] - column[order[:-2]]) / spread
    out = np.zeros(len(front))
    out[first] = found
    return out
