"""What the search loop asks of an optimizer: propose, and hear what came of it."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

import numpy as np
import numpy.typing as npt

from evomerge.score import Value


@dataclass(frozen=True)
class Worth:
    """What a candidate is worth: Deb's rules (2000) need to know apart what it reaches and by how far it misses.

    One that keeps all constraints is better than every one that misses some; of those that miss some the one that
    misses them less is better, whatever it reaches.

    Attributes:
        values: Of each objective, higher is better, all finite; empty where it failed.
        violation: How far it misses the constraints, 0 where it keeps them; infinite where it failed. None: the search
            has no constraints.
        error: Standard error of the value, of one objective, where it is an estimate from some of the items. None: it
            is of all of them.
    """

    values: tuple[float, ...]
    violation: float | None = None
    error: float | None = None

    @classmethod
    def of(cls, told: Told) -> Worth:
        """What was told, whichever way it was; one that failed where a value is no finite number."""
        if not isinstance(told, Worth):
            told = cls(() if told is None else told if isinstance(told, tuple) else (told,))
        if told.values and all(map(math.isfinite, told.values)) and not math.isnan(told.missed):
            return cls(tuple(map(float, told.values)), told.violation, told.error)
        return cls((), None if told.violation is None else math.inf)

    @property
    def failed(self) -> bool:
        """Whether there is nothing to compare it by."""
        return not self.values

    @property
    def missed(self) -> float:
        """How far it misses the constraints, 0 where there are none."""
        return self.violation or 0.0

    @property
    def key(self) -> tuple[float, float]:
        """Sorts candidates of one objective, better ones higher."""
        return (-math.inf, -math.inf) if self.failed else (-self.missed, self.values[0])


# As it may be told: in a search without constraints also one score, a value of each objective, or None: it failed.
Told = Worth | float | tuple[float, ...] | None


@dataclass(frozen=True)
class Behaviour:
    """What is known of a candidate beyond what it is worth: for searches that keep different ones.

    Attributes:
        tasks: Its value in each task that counts, higher is better, in the evaluator's order.
        items: Its result on each search item, shape (items,), higher is better.
    """

    tasks: tuple[float, ...]
    items: npt.NDArray[np.float32]


class Optimizer(Protocol):
    """Ask and tell on typed parameters; knows neither models, evaluators nor Ray.

    Its state is a pure function of (seed, the sequence of asks and tells): a second one that is fed the same tells asks
    the same, in a fresh process too, so resume is replay. It draws from generators of its own, never the global ones.

    Attributes:
        name: As in the table of optimizers.
        generation: Candidates per generation, the same for any number of workers.
        parents: Of how many candidates it learns: the rank of those below hardly matters.
        elitist: Whether candidates of earlier generations compete for these places too.
        whole: Whether it needs all items of each candidate (its `Behaviour`), so that candidates cannot be raced.
        weighs: Whether it weighs values by their standard errors, so that it is told estimates as they are; the others
            want them in an order.
        done: Whether it has converged and further asks would bring nothing new.
    """

    name: str
    generation: int
    parents: int
    elitist: bool
    whole: bool
    weighs: bool

    @property
    def done(self) -> bool: ...

    def ask(self, n: int) -> list[dict[str, Value]]:
        """`n` candidates, n being `generation`; each has every parameter, in the parameters' order.

        One that was made `asynchronous` gives any number at any time, whatever has not been told yet.

        Raises:
            EvoMergeError: another n, or the generation before has not been told.
        """
        ...

    def tell(
        self,
        params: Sequence[Mapping[str, Value]],
        scores: Sequence[Told],
        behaviours: Sequence[Behaviour | None] | None = None,
    ) -> None:
        """What the generation asked last is worth (see `Worth`); one that failed takes the worst rank.

        One that was made `asynchronous` is told any of the candidates that are asked and not told yet, in any order.

        Args:
            behaviours: Of each candidate (None: failed); only where it is `whole`.

        Raises:
            EvoMergeError: they are not the candidates asked last, or have another number of objectives.
        """
        ...

    def enqueue(self, params: Mapping[str, Value]) -> None:
        """A candidate of one's own: it comes first in the next asks, as it is. Only before the first generation.

        Raises:
            SpaceError: a value is missing, unknown or out of bounds.
        """
        ...


@runtime_checkable
class Recalling(Protocol):
    """An optimizer whose proposals take long to find again, and that only learns from what it is told."""

    def recall(self, params: Sequence[Mapping[str, Value]]) -> None:
        """The next ask begins with these, which were asked in an earlier run of the same search."""
        ...
