"""The archive of MAP-Elites (Mouret and Clune 2015) over the tasks' values, by pyribs."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from evomerge.optimizers.behaviours import Elite, Grid, best_first
from evomerge.optimizers.cube import Point
from evomerge.score import Value

# Cells along each task's axis, by the number of tasks: about as many cells as a search has candidates.
CELLS = {2: 10, 3: 5, 4: 4}
MOST_TASKS = max(CELLS)
# How far beyond a value that left the grid it is laid anew, as a share of what is seen: records come in small steps.
MARGIN = 0.1
# At least, so that a task in which all have one value has a range.
NARROW = 1e-6


@dataclass(frozen=True)
class Found:
    """A candidate as it is put into the archive.

    Attributes:
        point: Its place in the cube.
        tasks: Its value in each task.
        told: Its place among all that were told, from 0.
        missed: By how much it misses the constraints.
    """

    point: Point
    params: Mapping[str, Value]
    score: float
    tasks: tuple[float, ...]
    told: int
    missed: float = 0.0

    @property
    def objective(self) -> float:
        """What it is compared by with its like: of those that miss constraints by how little, else its score."""
        return -self.missed if self.missed else self.score


class TaskArchive:
    """A grid over the values in each task; in each cell the candidate of the highest score.

    The values' range is not known ahead (accuracies of merges lie close together, likelihoods anywhere), so the grid
    spans what is seen. Where a value falls outside, the grid is laid anew, a tenth wider (not beyond [0, 1] where all
    values of a task are in it), and filled from all that was ever added: an elite that loses its cell goes, another
    candidate may come back.

    Those that miss constraints are in the archive only as long as no candidate keeps them all, and compete by how
    little they miss them; the first that keeps them empties all cells.

    Attributes:
        ribs: pyribs' `GridArchive`, over [0, 1] in each task; its field `number` counts what was added.
        ranges: Lowest and highest value of the grid in each task, shape (2, tasks).
        kept: Whether a candidate keeps all constraints, so that those that do not are out.
    """

    def __init__(self, size: int, tasks: int, seed: int) -> None:
        from ribs.archives import GridArchive

        self.ribs: Any = GridArchive(
            solution_dim=size,
            dims=[CELLS[tasks]] * tasks,
            ranges=[(0.0, 1.0)] * tasks,
            seed=seed,
            extra_fields={"number": ((), np.int64)},
        )
        self.ranges: npt.NDArray[np.float64] | None = None
        self.kept = False
        self._seen: list[Found] = []

    def add(self, found: Sequence[Found]) -> list[tuple[int, float]]:
        """Put candidates in, one after the other.

        Returns:
            Of each its status (2: in a new cell, 1: in the place of a worse one, 0: not in), and by how much it is
            better than the one that it met (in a new cell: its score). Those that miss constraints and are out: (0, 0).
        """
        if not self.kept and any(not f.missed for f in found):
            self.kept, self.ranges, self._seen = True, None, []
            self.ribs.clear()
        there = [f for f in found if not (self.kept and f.missed)]
        if not there:
            return [(0, 0.0) for _ in found]
        self._cover(np.array([f.tasks for f in there]))
        return [(0, 0.0) if self.kept and f.missed else self._put(f) for f in found]

    def elites(self) -> list[Elite]:
        """Those in the cells, the best first; of equal ones the earlier."""
        number, index = self.ribs.data(["number", "index"], return_type="tuple")
        cells = dict(zip(number.tolist(), self.ribs.int_to_grid_index(index).tolist(), strict=True))
        kept = [(self._seen[i], tuple(cells[i])) for i in sorted(cells)]
        return best_first([Elite(dict(f.params), f.score, f.tasks, f.told, f.missed, cell) for f, cell in kept])

    @property
    def grid(self) -> Grid:
        """Its size, what it spans, and how much of it is filled."""
        low, high = ((), ()) if self.ranges is None else (tuple(r) for r in self.ranges.tolist())
        cells = tuple(int(n) for n in self.ribs.dims)
        return Grid(cells, low, high, self.coverage, self.qd_score, self.qd_score / math.prod(cells), self.offset)

    @property
    def offset(self) -> float:
        """What scores count above: the lowest ever added that keeps the constraints where that is negative, else 0."""
        return min((f.score for f in self._seen if f.score < 0.0 and not f.missed), default=0.0)

    @property
    def coverage(self) -> float:
        """Share of the cells that have a candidate."""
        return float(self.ribs.stats.coverage)

    @property
    def qd_score(self) -> float:
        """Sum over the cells of their scores above the offset (Pugh et al. 2016).

        0 as long as no candidate keeps the constraints.
        """
        return float(np.sum(self.ribs.data("objective") - self.offset)) if self.kept else 0.0

    def _put(self, found: Found) -> tuple[int, float]:
        assert self.ranges is not None
        low, high = self.ranges
        # One at a time: adding a batch compiles with numba, which takes longer than a search's additions together.
        info = self.ribs.add_single(
            solution=found.point,
            objective=found.objective,
            measures=(np.array(found.tasks) - low) / (high - low),
            number=len(self._seen),
        )
        self._seen.append(found)
        return int(info["status"]), float(info["value"])

    def _cover(self, values: npt.NDArray[np.float64]) -> None:
        """Lay the grid anew where some values (candidates, tasks) fall outside."""
        if self.ranges is not None and np.all(values >= self.ranges[0]) and np.all(values <= self.ranges[1]):
            return
        seen = np.array([*(f.tasks for f in self._seen), *values])
        low, high = seen.min(axis=0), seen.max(axis=0)
        margin = np.maximum(MARGIN * (high - low), NARROW)
        ranges = np.stack([low - margin, high + margin])
        share = (low >= 0.0) & (high <= 1.0)
        self.ranges = np.where(share, np.clip(ranges, 0.0, 1.0), ranges)
        again, self._seen = self._seen, []
        self.ribs.clear()
        for f in again:
            self._put(f)
