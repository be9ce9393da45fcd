"""The candidates in flight: what was asked, what is told of it, and what each told score is worth.

Every optimizer holds one `Generation`; the state that they share in form lives here, not in a base class.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Generic, TypeVar

import numpy as np
import numpy.typing as npt

from evomerge.errors import EvoMergeError
from evomerge.optimizers.protocol import Told, Worth
from evomerge.score import Value
from evomerge.space.parameters import Parameter, check

T = TypeVar("T")
Params = dict[str, Value]


@dataclass(frozen=True)
class _Asked(Generic[T]):
    """One candidate that is out, what the optimizer keeps of it, and in which of its runs it was drawn."""

    params: Params
    kept: T
    run: int


class Generation(Generic[T]):
    """Candidates asked and not yet told, each with what the optimizer keeps of it, and those enqueued.

    One generation after the other: all are told at once, in the order of the asks. Asynchronous: any number is asked
    and told at any time; who needs whole generations takes them from `complete`, as many as have come together.

    Args:
        parameters: What candidates consist of.
        size: Candidates per generation.
        objectives: Number of values that each is told with.
    """

    def __init__(
        self, parameters: Sequence[Parameter], size: int, objectives: int = 1, asynchronous: bool = False
    ) -> None:
        self.parameters = tuple(parameters)
        self.size = size
        self.objectives = objectives
        self.asynchronous = asynchronous
        self.queue: list[Params] = []
        # By number, in the order of the asks, and of equal ones the numbers: so that one that is told is found at once,
        # however many workers there are.
        self._out: dict[int, _Asked[T]] = {}
        self._equal: dict[frozenset[tuple[str, Value]], list[int]] = {}
        self._asked = 0
        self._heard: list[tuple[T, Worth]] = []
        self._run = 0
        self._started = False
        self._told = 0

    @property
    def told(self) -> int:
        """How many have been told so far, failed ones included."""
        return self._told

    def enqueue(self, params: Mapping[str, Value]) -> None:
        """Put a candidate in front of the next asks."""
        if self._started:
            raise EvoMergeError("a candidate can be enqueued before the first generation only")
        self.queue.append(check(self.parameters, params))

    def open(self, n: int) -> None:
        """Check that n candidates can be asked for now."""
        if self.asynchronous:
            if n < 1:
                raise EvoMergeError(f"{n} candidates were asked for, expected 1 or more")
        elif self._out:
            raise EvoMergeError("the generation asked last has not been told")
        elif n != self.size:
            raise EvoMergeError(f"a generation has {self.size} candidates, {n} were asked for")
        self._started = True

    def take(self, n: int) -> list[Params]:
        """The next of those enqueued, at most n."""
        given, self.queue = self.queue[: max(n, 0)], self.queue[max(n, 0) :]
        return given

    def ask(self, candidates: Sequence[tuple[Params, T]]) -> list[Params]:
        """Remember the candidates; what goes out are copies."""
        for params, kept in candidates:
            self._out[self._asked] = _Asked(params, kept, self._run)
            self._equal.setdefault(frozenset(params.items()), []).append(self._asked)
            self._asked += 1
        return [dict(params) for params, _ in candidates]

    def tell(self, params: Sequence[Mapping[str, Value]], scores: Sequence[Told]) -> tuple[list[T], list[Worth]]:
        """What was kept of each candidate with what it is worth, in the order told."""
        found = self._found(params, scores)
        return [asked.kept for asked, _ in found], [worth for _, worth in found]

    def close(self, params: Sequence[Mapping[str, Value]], scores: Sequence[Told]) -> tuple[list[T], list[Worth]]:
        """As `tell`, of the first candidates of a generation that is not told to its end: the last that is heard."""
        never = {number: self._out.pop(number) for number in list(self._out)[len(params) :]}
        try:
            return self.tell(params, scores)
        finally:
            self._out |= never

    def complete(
        self, params: Sequence[Mapping[str, Value]], scores: Sequence[Told]
    ) -> Iterator[tuple[list[T], list[Worth]]]:
        """Whole generations, as `tell` has them: with this telling one, or, asynchronously, none or several.

        Candidates of an earlier run (see `renew`) take no part.
        """
        found = self._found(params, scores)
        self._heard += [(asked.kept, worth) for asked, worth in found if asked.run == self._run]
        while len(self._heard) >= self.size:
            whole, self._heard = self._heard[: self.size], self._heard[self.size :]
            yield [kept for kept, _ in whole], [worth for _, worth in whole]

    def renew(self, size: int) -> None:
        """A new run, of another size of generations, begins: what is out or told so far is none of its business."""
        self.size = size
        self._run += 1
        self._heard = []

    def _found(self, params: Sequence[Mapping[str, Value]], scores: Sequence[Told]) -> list[tuple[_Asked[T], Worth]]:
        """The candidates told, no longer out, with what they are worth."""
        if not self._out:
            raise EvoMergeError("no generation is asked for: nothing to tell")
        given = [dict(p) for p in params]
        if self.asynchronous:
            numbers = self._numbers(given, scores)
        else:
            numbers = list(self._out)
            if len(given) != len(scores) or given != [asked.params for asked in self._out.values()]:
                raise EvoMergeError(
                    f"told {len(given)} candidates and {len(scores)} scores, expected the {self.size} asked last, "
                    "in order"
                )
        worths = [Worth.of(score) for score in scores]
        for worth in worths:
            if not worth.failed and len(worth.values) != self.objectives:
                raise EvoMergeError(f"told {len(worth.values)} values of a candidate, expected {self.objectives}")
        found = [self._taken(number) for number in numbers]
        self._told += len(found)
        return list(zip(found, worths, strict=True))

    def _taken(self, number: int) -> _Asked[T]:
        """One that is out, and is no longer."""
        asked = self._out.pop(number)
        key = frozenset(asked.params.items())
        self._equal[key].remove(number)
        if not self._equal[key]:
            del self._equal[key]
        return asked

    def _numbers(self, given: Sequence[Params], scores: Sequence[Told]) -> list[int]:
        """Which of those that are out are told: of twins the one that was asked first."""
        if len(given) != len(scores):
            raise EvoMergeError(f"told {len(given)} candidates and {len(scores)} scores, expected one of each")
        numbers: list[int] = []
        for params in given:
            equal = self._equal.get(frozenset(params.items()), [])
            number = next((n for n in equal if n not in numbers), None)
            if number is None:
                raise EvoMergeError(f"told {params}: not asked for, or told before")
            numbers.append(number)
        return numbers


def losses(worths: Sequence[Worth]) -> npt.NDArray[np.float64]:
    """What candidates of one objective are worth as losses to minimise, shape (n,), all finite; failed ones are worst.

    Finite because pycma takes NaN for the median and infinities break its statistics. Where some miss a constraint the
    losses are places in the order, equal for equal ones: their values are on no scale with what is missed.
    """
    if any(w.missed for w in worths if not w.failed):
        places = {key: place for place, key in enumerate(sorted({w.key for w in worths}, reverse=True))}
        return np.array([places[w.key] for w in worths], dtype=np.float64)
    found = [-w.values[0] for w in worths if not w.failed]
    worst = max(found, default=0.0) + max(1.0, max(found, default=0.0) - min(found, default=0.0))
    return np.array([worst if w.failed else -w.values[0] for w in worths], dtype=np.float64)


def ranks(worths: Sequence[Worth]) -> npt.NDArray[np.int64]:
    """Ranks from 0 (best), shape (n,); ties in the order of the asks, which is random."""
    order = np.argsort(losses(worths), kind="stable")
    found = np.empty(len(order), dtype=np.int64)
    found[order] = np.arange(len(order))
    return found
