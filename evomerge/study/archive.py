"""What a search that keeps different candidates holds at its end."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from evomerge.optimizers import Optimizer
from evomerge.optimizers.behaviours import Archiving, Grid
from evomerge.score import Trial


@dataclass(frozen=True)
class Member:
    """A candidate that is kept.

    Attributes:
        cell: Its place on each task's axis, from 0 (the lowest values), where the archive is a grid.
        fitness: What it gets of the search items that the archive's candidates share, in items, where they do.
    """

    trial: Trial
    cell: tuple[int, ...] | None
    fitness: float | None

    @property
    def tasks(self) -> dict[str, float]:
        """Its value in each task that counts, higher is better, in the order of the grid's axes."""
        return {} if self.trial.score is None else {t.task: t.value for t in self.trial.score.weighted}


@dataclass(frozen=True)
class Archive:
    """The candidates that an optimizer keeps beside each other.

    Attributes:
        sampler: The optimizer's name.
        members: Best first; of equal ones the earlier.
        grid: What they lie in; None where they differ by the items that they solve.
    """

    sampler: str
    members: tuple[Member, ...]
    grid: Grid | None

    @classmethod
    def of(cls, optimizer: Optimizer, trials: Sequence[Trial]) -> Archive | None:
        """The archive of an optimizer that was told of all these candidates; None where it keeps none."""
        if not isinstance(optimizer, Archiving):
            return None
        # By their place among the tells, for equal candidates have equal parameters.
        told = {t.told: t for t in trials}
        members = tuple(Member(told[e.told], e.cell, e.fitness) for e in optimizer.elites())
        return cls(optimizer.name, members, optimizer.grid)

    @property
    def tasks(self) -> tuple[str, ...]:
        """Names of the tasks that count, in the order of the grid's axes; none where it keeps nothing."""
        return tuple(self.members[0].tasks) if self.members else ()
