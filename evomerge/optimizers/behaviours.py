"""What searches that keep different candidates hear of them, and hand on."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from evomerge.errors import EvoMergeError
from evomerge.optimizers.protocol import Behaviour
from evomerge.score import Value


@dataclass(frozen=True)
class Elite:
    """A candidate that is kept.

    Attributes:
        score: What it was told to be worth, higher is better.
        tasks: Its value in each task that counts.
    """

    params: dict[str, Value]
    score: float
    tasks: tuple[float, ...]


@dataclass(frozen=True)
class Heard:
    """A candidate that has not failed: its score and its behaviour."""

    score: float
    behaviour: Behaviour


def heard(
    told: Sequence[float | None], behaviours: Sequence[Behaviour | None] | None, tasks: int | None = None
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
    for score, behaviour in zip(told, behaviours, strict=True):
        if score is None:
            out.append(None)
            continue
        if behaviour is None:
            raise EvoMergeError("a candidate that has a score has no behaviour")
        if tasks is not None and len(behaviour.tasks) != tasks:
            raise EvoMergeError(f"told a candidate's values in {len(behaviour.tasks)} tasks, expected {tasks}")
        out.append(Heard(score, behaviour) if np.all(np.isfinite(behaviour.tasks)) else None)
    return out


def best_first(elites: Sequence[Elite]) -> list[Elite]:
    """Those of the highest score first; of equal ones in the order given."""
    return sorted(elites, key=lambda elite: -elite.score)
