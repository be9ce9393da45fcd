"""What the search loop asks of an optimizer: propose, and hear what came of it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Protocol

from evomerge.score import Value

# What a candidate is worth, higher is better: one score, or a value of each objective; None where it failed.
Told = float | tuple[float, ...] | None


class Optimizer(Protocol):
    """Ask and tell on typed parameters; knows neither models, evaluators nor Ray.

    Its state is a pure function of (seed, the sequence of asks and tells): a second one that is fed the same tells asks
    the same, in a fresh process too, so resume is replay. It draws from generators of its own, never the global ones.

    Attributes:
        name: As in the table of optimizers.
        generation: Candidates per generation, the same for any number of workers.
        parents: Of how many candidates it learns: the rank of those below hardly matters.
        elitist: Whether candidates of earlier generations compete for these places too.
        done: Whether it has converged and further asks would bring nothing new.
    """

    name: str
    generation: int
    parents: int
    elitist: bool

    @property
    def done(self) -> bool: ...

    def ask(self, n: int) -> list[dict[str, Value]]:
        """`n` candidates, n being `generation`; each has every parameter, in the parameters' order.

        Raises:
            EvoMergeError: another n, or the generation before has not been told.
        """
        ...

    def tell(self, params: Sequence[Mapping[str, Value]], scores: Sequence[Told]) -> None:
        """The results of the generation asked last, higher is better; None (or NaN) failed and takes the worst rank.

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
