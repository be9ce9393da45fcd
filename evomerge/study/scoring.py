"""Candidates, or parts of them, go to the workers and come back; what is known already costs nothing."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from evomerge.evaluation.splits import Places
from evomerge.recipe import Recipe
from evomerge.score import Score, Value
from evomerge.study.job import Answer, Job
from evomerge.study.known import KnownResults
from evomerge.study.workers import Pool


@dataclass(frozen=True)
class Ask:
    """A candidate to score.

    Attributes:
        number: Its number in the study.
        params: The optimizer's parameters.
        hash: What identifies its recipe: equal ones are scored once.
        places: Which of the search items; None: all of them.
        payer: Number of the candidate whose budget it is scored on; default its own.
    """

    number: int
    params: Mapping[str, Value]
    recipe: Recipe
    hash: str
    places: Places | None = None
    payer: int | None = None


@dataclass
class Underway:
    """A candidate while it is scored block by block: what it was scored and charged so far.

    Attributes:
        attributes: What is recorded of it when it starts.
    """

    ask: Ask
    attributes: dict[str, Any] = field(default_factory=dict)
    parts: list[Score] = field(default_factory=list)
    seconds: dict[str, float] = field(default_factory=dict)
    charged: float = 0.0
    layers: tuple[int, int] | None = None

    def take(self, answer: Answer) -> None:
        """Add what a block took, and its score."""
        for step, seconds in answer.seconds.items():
            self.seconds[step] = self.seconds.get(step, 0.0) + seconds
        if answer.layers is not None:
            asked, ran = self.layers or (0, 0)
            self.layers = (asked + answer.layers[0], ran + answer.layers[1])
        if answer.score is not None:
            self.parts.append(answer.score)


class Scoring:
    """Scores candidates on a pool.

    Args:
        known: What is known of the search items, where there are results by item.

    Attributes:
        heard: Is told of each answer of a worker, how many items were scored; what was known already is no answer.
    """

    def __init__(self, pool: Pool, known: KnownResults | None = None) -> None:
        self.pool = pool
        self.heard: Callable[[int], None] | None = None
        self._known = known
        self._whole: dict[str, Score] = {}

    def remember(self, hash_: str, score: Score) -> None:
        """A whole score of an earlier candidate of this study."""
        self._whole.setdefault(hash_, score)

    def cost(self, ask: Ask) -> float:
        """The share of all search items that a candidate is charged with."""
        if self._known is None:
            return 0.0 if ask.hash in self._whole else 1.0
        return self._known.share(ask.hash, _places(ask, self._known), ask.number)

    def is_known(self, ask: Ask) -> bool:
        """Whether nothing has to be run for it."""
        return self._lookup(ask)[0] is not None

    def answers(self, asks: Iterator[Ask], late: bool = False) -> Iterator[tuple[Ask, Answer]]:
        """What became of each, in order of completion; asks are drawn while workers have room for them.

        Args:
            late: They had better be drawn as late as can be, for they depend on what was answered.

        Raises:
            Interrupted: the search is to end. What was under way has been yielded.
        """
        running: dict[int, tuple[Ask, Score | None]] = {}
        twins: dict[tuple[str, str], list[Ask]] = {}
        while True:
            # More than there are workers, so that none waits while the driver records, and each can prepare its next.
            more = int(self.pool.eager) if late else max(1, self.pool.ahead)
            room = self.pool.size + more
            while not self.pool.stop.asked and len(running) < room and (ask := next(asks, None)) is not None:
                if _run(ask) in twins:
                    twins[_run(ask)].append(ask)
                    continue
                found, part, missing = self._lookup(ask)
                if found is not None:
                    yield ask, Answer(found)
                    continue
                twins[_run(ask)] = []
                running[ask.number] = (ask, part)
                self.pool.submit(ask.number, Job("search", ask.recipe, only=missing, hash=ask.hash))
            if not running:
                self.pool.stop.check()
                return
            key, answer = self.pool.wait()
            assert isinstance(key, int)
            ask, part = running.pop(key)
            if self.heard is not None:
                self.heard(answer.score.items if answer.score is not None else 0)
            answer = self._kept(ask, part, answer)
            yield ask, answer
            for twin in twins.pop(_run(ask)):
                yield twin, Answer(answer.score, answer.reason)

    def forget(self, hashes: list[str]) -> None:
        """Nothing is held in memory any more of candidates that have ended."""
        if self._known is not None:
            self._known.forget(hashes)

    def _lookup(self, ask: Ask) -> tuple[Score | None, Score | None, Places | None]:
        """(what is known whole, what is known in part, which items are to be run: None is all)."""
        if self._known is None:
            return (self._whole.get(ask.hash) if ask.places is None else None), None, ask.places
        places = _places(ask, self._known)
        missing = self._known.missing(ask.hash, places)
        if not missing:
            return self._known.score(ask.hash, places), None, None
        if missing == places:  # so it is of most
            return None, None, ask.places
        there = {t: tuple(sorted(set(at) - set(missing.get(t, ())))) for t, at in places.items()}
        there = {t: at for t, at in there.items() if at}
        if not there:
            return None, None, ask.places
        return None, self._known.score(ask.hash, there), missing

    def _kept(self, ask: Ask, part: Score | None, answer: Answer) -> Answer:
        if answer.score is None:
            return answer
        if self._known is None:
            if ask.places is None:
                self.remember(ask.hash, answer.score)
            return answer
        self._known.keep(ask.hash, answer.score, ask.number if ask.payer is None else ask.payer)
        # Joined even where it is one part, so that a value is the same to the bit when it is read again.
        parts = [answer.score] if part is None else [part, answer.score]
        return Answer(self._known.draw.joined(parts), None, answer.seconds, answer.layers)


def _run(ask: Ask) -> tuple[str, str]:
    """What is run for a candidate: the same for equal ones of which the same items are asked for."""
    return ask.hash, repr(ask.places)


def _places(ask: Ask, known: KnownResults) -> Places:
    return ask.places or known.draw.all_places
