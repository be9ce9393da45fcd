"""What searches that keep different candidates hear of them, and hand on."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

import numpy as np

from evomerge.errors import EvoMergeError
from evomerge.optimizers.protocol import Behaviour, Told, Worth
from evomerge.score import Value


@dataclass(frozen=True)
class Elite:
    """A candidate that is kept.

    Attributes:
        score: What it was told to reach, higher is better.
        tasks: Its value in each task that counts.
        told: Its place among all that were told, failed ones included, from 0.
        missed: By how much it misses the constraints.
        cell: Its place on each task's axis, from 0 (the lowest values), where the archive is a grid.
        fitness: What it gets of the items that the archive's candidates share, in items, where they do.
    """

    params: dict[str, Value]
    score: float
    tasks: tuple[float, ...]
    told: int
    missed: float = 0.0
    cell: tuple[int, ...] | None = None
    fitness: float | None = None


@dataclass(frozen=True)
class Grid:
    """The grid of an archive over the tasks' values, and how much of it is filled.

    Attributes:
        cells: How many along each task's axis.
        low, high: The values that it spans in each task; nothing before any candidate was told.
        coverage: Share of all cells that have a candidate.
        qd_score: Sum over the cells with a candidate of its score above the offset (Pugh et al. 2016); 0 as long as no
            candidate keeps the constraints.
        norm_qd_score: The same as a mean over all cells, as pyribs has it.
        offset: What scores count above: the lowest ever told of those that keep the constraints, or 0 where none is
            negative.
    """

    cells: tuple[int, ...]
    low: tuple[float, ...]
    high: tuple[float, ...]
    coverage: float
    qd_score: float
    norm_qd_score: float
    offset: float


@runtime_checkable
class Archiving(Protocol):
    """An optimizer that keeps different candidates, and hands them on."""

    def elites(self) -> list[Elite]:
        """Those that it keeps, the best score first; of equal ones the earlier.

        Those that miss constraints are among them only as long as no candidate keeps them all, the least missed first.
        """
        ...

    @property
    def grid(self) -> Grid | None:
        """The grid that they lie in; None where there is none."""
        ...

    def close(
        self,
        params: Sequence[Mapping[str, Value]],
        scores: Sequence[Told],
        behaviours: Sequence[Behaviour | None] | None = None,
    ) -> None:
        """The first candidates of the generation asked last, which has no others: they join the archive.

        For the end of a search whose budget cut a generation short. Nothing can be asked or told after it.
        """
        ...


@dataclass(frozen=True)
class Heard:
    """A candidate that has not failed: its score, its behaviour, and by how much it misses the constraints."""

    score: float
    behaviour: Behaviour
    missed: float = 0.0


def heard(
    told: Sequence[Worth], behaviours: Sequence[Behaviour | None] | None, tasks: int | None = None
) -> list[Heard | None]:
    """Each candidate's score with its behaviour; None where it failed, or has a task's value that is not finite.

    Args:
        tasks: Values that each must have; None: any number.

    Raises:
        EvoMergeError: a candidate with a score has no behaviour, or values of another number of tasks.
    """
    if behaviours is None or len(behaviours) != len(told):
        given = "none" if behaviours is None else str(len(behaviours))
        raise EvoMergeError(f"expected the behaviours of all {len(told)} candidates, got {given}")
    out: list[Heard | None] = []
    for worth, behaviour in zip(told, behaviours, strict=True):
        if worth.failed:
            out.append(None)
            continue
        if behaviour is None:
            raise EvoMergeError("a candidate that has a score has no behaviour")
        if tasks is not None and len(behaviour.tasks) != tasks:
            raise EvoMergeError(f"told a candidate's values in {len(behaviour.tasks)} tasks, expected {tasks}")
        there = bool(np.all(np.isfinite(behaviour.tasks)))
        out.append(Heard(worth.values[0], behaviour, worth.missed) if there else None)
    return out


def best_first(elites: Sequence[Elite]) -> list[Elite]:
    """Those that miss the constraints least first, then those of the highest score; equal ones in the order given."""
    return sorted(elites, key=lambda elite: (elite.missed, -elite.score))
