"""What fusion is handed to run its work on, in this process or on many machines."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any, Protocol

# Makes, on a worker and for its device ("cpu", "cuda"), what works off one item after the other.
Make = Callable[[str], Callable[[Any], Any]]


class Workers(Protocol):
    """Works off items; made and kept by whoever runs a fusion."""

    size: int
    # Whether work is done in this process, so that functions handed over are called in it.
    local: bool
    # What the work is done on: "cpu", "cuda".
    device: str

    def run(
        self, make: Make, items: Sequence[Any], poll: Callable[[], None] | None = None
    ) -> Iterator[tuple[int, Any]]:
        """The number of each item and what became of it, in the order in which they are done.

        Args:
            make: Called once on each worker; it and the items are pickled where the worker is another process.
            poll: Called every few seconds meanwhile, where the work is done in other processes.
        """


class Watcher(Protocol):
    """Is told what goes on."""

    def say(self, text: str) -> None:
        """What is done now, or a fact worth a line."""

    def begin(self, what: str, total: int, unit: str, done: int = 0) -> None:
        """Something that takes time begins.

        Args:
            what: In words.
            total: How many of the unit it is in all.
            unit: Of what: tokens, steps, documents.
            done: How many were done before.
        """

    def advance(self, count: int, note: str = "") -> None:
        """So many more of the unit are done."""

    def end(self) -> None:
        """It has ended."""


class Silent:
    """A watcher that says nothing."""

    def say(self, text: str) -> None:
        """Nothing."""

    def begin(self, what: str, total: int, unit: str, done: int = 0) -> None:
        """Nothing."""

    def advance(self, count: int, note: str = "") -> None:
        """Nothing."""

    def end(self) -> None:
        """Nothing."""
