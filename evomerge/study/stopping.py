"""A search that is asked to end: once, and it finishes what is under way; twice, and it ends at once.

Asked before the search has begun, or after its end, it ends at once too: there is nothing to finish. Whatever the
moment, the same command goes on from what is stored.
"""

from __future__ import annotations

import signal
from collections.abc import Iterator
from contextlib import contextmanager

from evomerge.errors import Interrupted

AGAIN = "the same command goes on from there"


class Stop:
    """Whether whoever runs a search wants it to end.

    Attributes:
        asked: By which signal, or None.
    """

    def __init__(self) -> None:
        self.asked: int | None = None
        self._orderly = False

    def ask(self, signum: int = signal.SIGINT) -> None:
        """Ask the search to end; called by the main thread, as handlers of signals are.

        Raises:
            Interrupted: it ends at once: it was asked before, or has nothing to finish.
        """
        again, self.asked = bool(self.asked), signum
        if again:
            raise Interrupted(f"ended at once; what was under way is done again: {AGAIN}", signum)
        if not self._orderly:
            raise Interrupted("the same command goes on where it was", signum)

    @contextmanager
    def orderly(self) -> Iterator[None]:
        """Inside the block, whoever is asked once goes on until it looks (`check`)."""
        self._orderly = True
        try:
            yield
        finally:
            self._orderly = False

    def check(self) -> None:
        """Raise where it was asked.

        Raises:
            Interrupted: it was, and everything that was under way is recorded.
        """
        if self.asked:
            raise Interrupted(f"what was under way is recorded: {AGAIN}", self.asked)
