"""What searches that keep different candidates hear of them, and hand on."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from evomerge.errors import EvoMergeError
from evomerge.optimizers.protocol import Behaviour, Worth
from evomerge.score import Value


@dataclass(frozen=True)
class Elite:
    """A candidate that is kept.

    Attributes:
        score: What it was told to reach, higher is better.
        tasks: Its value in each task that counts.
        missed: By how much it misses the constraints.
    """

    params: dict[str, Value]
    score: float
    tasks: tuple[float, ...]
    missed: float = 0.0


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
