"""What a search tells whoever watches it."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

from evomerge.evaluation.config import Split
from evomerge.recipe import Recipe
from evomerge.score import Interval, Score, Trial, Value
from evomerge.study.budget import Budget


@dataclass(frozen=True)
class Beginning:
    """A search that begins (the main one, or a control), or goes on.

    Attributes:
        name: "search", "first stage", "control: NAME".
        study: Name of its study.
        lines: Base, sources and uniform merge on the search items, by name; the best source's with its interval.
        sources: Which of these names are sources.
        items: Number of search items of the tasks that count; 0 where the evaluator has none.
        spent: Seconds of earlier runs.
        workers: How many there are at the beginning.
        decode: Parameters to recipe.
        names: Short names of the sources by reference.
    """

    name: str
    study: str
    budget: Budget
    lines: Mapping[str, Interval]
    sources: tuple[str, ...]
    items: int
    spent: float
    workers: int
    decode: Callable[[Mapping[str, Value]], Recipe]
    names: Mapping[str, str]

    @property
    def goal(self) -> tuple[str, Interval] | None:
        """The best source, which is to be beaten; None where there is none."""
        there = {n: self.lines[n] for n in self.sources if n in self.lines}
        return max(there.items(), key=lambda pair: pair[1].mean) if there else None


class Watcher(Protocol):
    """Is told what happens, to show it. Called by the thread that searches, one call after the other."""

    def say(self, text: str) -> None:
        """What is done now, or a fact worth a line."""

    def begin(self, beginning: Beginning) -> None:
        """A search begins, or goes on."""

    def started(self, number: int, params: Mapping[str, Value]) -> None:
        """A candidate is being run; one that was cut off in an earlier run too."""

    def scored(self, items: int) -> None:
        """A worker's answer came: so many items of a candidate were scored (0: it failed)."""

    def finished(self, trial: Trial, replayed: bool) -> None:
        """A candidate ended, or one of an earlier run was read again."""

    def measuring(self, split: Split, names: Sequence[str]) -> None:
        """Models are being scored on all items of a split: base, sources, uniform merge, "candidate 17"."""

    def measured(self, split: Split, name: str, found: Score | str, known: bool) -> None:
        """One of them was, or could not be (a str: why).

        Args:
            known: It was scored in an earlier run; it was not among those of `measuring`.
        """

    def end(self) -> None:
        """The job is done, to the winner's checkpoint."""


class Silent:
    """Shows nothing."""

    def say(self, text: str) -> None:
        """Nothing."""

    def begin(self, beginning: Beginning) -> None:
        """Nothing."""

    def started(self, number: int, params: Mapping[str, Value]) -> None:
        """Nothing."""

    def scored(self, items: int) -> None:
        """Nothing."""

    def finished(self, trial: Trial, replayed: bool) -> None:
        """Nothing."""

    def measuring(self, split: Split, names: Sequence[str]) -> None:
        """Nothing."""

    def measured(self, split: Split, name: str, found: Score | str, known: bool) -> None:
        """Nothing."""

    def end(self) -> None:
        """Nothing."""


class Several:
    """Tells each of some watchers."""

    def __init__(self, watchers: Sequence[Watcher]) -> None:
        self._watchers = tuple(watchers)

    def say(self, text: str) -> None:
        """See `Watcher`."""
        for watcher in self._watchers:
            watcher.say(text)

    def begin(self, beginning: Beginning) -> None:
        """See `Watcher`."""
        for watcher in self._watchers:
            watcher.begin(beginning)

    def started(self, number: int, params: Mapping[str, Value]) -> None:
        """See `Watcher`."""
        for watcher in self._watchers:
            watcher.started(number, params)

    def scored(self, items: int) -> None:
        """See `Watcher`."""
        for watcher in self._watchers:
            watcher.scored(items)

    def finished(self, trial: Trial, replayed: bool) -> None:
        """See `Watcher`."""
        for watcher in self._watchers:
            watcher.finished(trial, replayed)

    def measuring(self, split: Split, names: Sequence[str]) -> None:
        """See `Watcher`."""
        for watcher in self._watchers:
            watcher.measuring(split, names)

    def measured(self, split: Split, name: str, found: Score | str, known: bool) -> None:
        """See `Watcher`."""
        for watcher in self._watchers:
            watcher.measured(split, name, found, known)

    def end(self) -> None:
        """See `Watcher`."""
        for watcher in self._watchers:
            watcher.end()
