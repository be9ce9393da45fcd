"""The generation in flight: what was asked, and what each told score is worth.

Every optimizer holds one `Generation`; the state that they share in form lives here, not in a base class.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Generic, TypeVar

import numpy as np
import numpy.typing as npt

from evomerge.errors import EvoMergeError
from evomerge.optimizers.protocol import Told
from evomerge.score import Value
from evomerge.space.parameters import Parameter, check

T = TypeVar("T")
Params = dict[str, Value]


class Generation(Generic[T]):
    """Candidates asked and not yet told, each with what the optimizer keeps of it, and those enqueued.

    Args:
        parameters: What candidates consist of.
        size: Candidates per generation.
        objectives: Number of values that each is told with.
    """

    def __init__(self, parameters: Sequence[Parameter], size: int, objectives: int = 1) -> None:
        self.parameters = tuple(parameters)
        self.size = size
        self.objectives = objectives
        self.queue: list[Params] = []
        self._asked: list[tuple[Params, T]] | None = None
        self._started = False

    def enqueue(self, params: Mapping[str, Value]) -> None:
        """Put a candidate in front of the next asks."""
        if self._started:
            raise EvoMergeError("a candidate can be enqueued before the first generation only")
        self.queue.append(check(self.parameters, params))

    def open(self, n: int) -> None:
        """Check that a generation of n can be asked for now."""
        if self._asked is not None:
            raise EvoMergeError("the generation asked last has not been told")
        if n != self.size:
            raise EvoMergeError(f"a generation has {self.size} candidates, {n} were asked for")
        self._started = True

    def ask(self, candidates: list[tuple[Params, T]]) -> list[Params]:
        """Remember the candidates; what goes out are copies."""
        self._asked = candidates
        return [dict(params) for params, _ in candidates]

    def tell(self, params: Sequence[Mapping[str, Value]], scores: Sequence[Told]) -> tuple[list[T], list[float | None]]:
        """What was kept of each candidate with its one score, in the order of the asks (None: failed)."""
        kept, told = self.tell_all(params, scores)
        return kept, [None if values is None else values[0] for values in told]

    def tell_all(
        self, params: Sequence[Mapping[str, Value]], scores: Sequence[Told]
    ) -> tuple[list[T], list[tuple[float, ...] | None]]:
        """The same with the values of all objectives."""
        if self._asked is None:
            raise EvoMergeError("no generation is asked for: nothing to tell")
        if len(params) != len(scores) or [dict(p) for p in params] != [p for p, _ in self._asked]:
            raise EvoMergeError(
                f"told {len(params)} candidates and {len(scores)} scores, expected the {self.size} asked last, in order"
            )
        values = [None if s is None else s if isinstance(s, tuple) else (s,) for s in scores]
        for told in values:
            if told is not None and len(told) != self.objectives:
                raise EvoMergeError(f"told {len(told)} values of a candidate, expected {self.objectives}")
        kept = [k for _, k in self._asked]
        self._asked = None
        return kept, [
            None if told is None or not all(map(math.isfinite, told)) else tuple(map(float, told)) for told in values
        ]


def losses(scores: Sequence[float | None]) -> npt.NDArray[np.float64]:
    """Scores as losses to minimise, shape (n,); a failed one is worse than every other, and all finite.

    Finite because pycma takes NaN for the median and infinities break its statistics.
    """
    found = [-s for s in scores if s is not None]
    worst = max(found, default=0.0) + max(1.0, max(found, default=0.0) - min(found, default=0.0))
    return np.array([worst if s is None else -s for s in scores], dtype=np.float64)


def ranks(scores: Sequence[float | None]) -> npt.NDArray[np.int64]:
    """Ranks from 0 (best), shape (n,); ties in the order of the asks, which is random."""
    order = np.argsort(losses(scores), kind="stable")
    found = np.empty(len(order), dtype=np.int64)
    found[order] = np.arange(len(order))
    return found
