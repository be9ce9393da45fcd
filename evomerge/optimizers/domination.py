"""Which of some candidates are best, where a candidate has one value or several (NSGA-II, Deb et al. 2002)."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from evomerge.optimizers.protocol import Worth


def best_first(worths: Sequence[Worth]) -> list[int]:
    """Indices of the candidates, the best first.

    By front (those that no other dominates, then those that only the first front dominates, ...), in a front the least
    crowded first; equal ones stay in the order given. Those that miss constraints come after all others, the less they
    miss the sooner (of those that miss as much, by front), and those that failed come last.
    """
    out: list[int] = []
    there = [i for i, worth in enumerate(worths) if not worth.failed]
    for missed in sorted({worths[i].missed for i in there}):
        left = np.array([i for i in there if worths[i].missed == missed], dtype=np.int64)
        while len(left):
            points = np.array([worths[i].values for i in left], dtype=np.float64)
            first = ~dominated(points)
            order = np.argsort(-_distance(points[first]), kind="stable")
            out += left[first][order].tolist()
            left = left[~first]
    return out + [i for i, worth in enumerate(worths) if worth.failed]


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
