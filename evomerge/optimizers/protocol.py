"""What the search loop asks of an optimizer: propose, and hear what came of it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import numpy.typing as npt

from evomerge.score import Value

# What a candidate is worth, higher is better: one score, or a value of each objective; None where it failed.
Told = float | tuple[float, ...] | None


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
        done: Whether it has converged and further asks would bring nothing new.
    """

    name: str
    generation: int
    parents: int
    elitist: bool
    whole: bool

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
        """The results of the generation asked last, higher is better; None (or NaN) failed and takes the worst rank.

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
