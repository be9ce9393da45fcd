"""One process at a time works in a folder, however the one before it ended."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from evomerge.errors import EvoMergeError
from evomerge.locks import held

LOCK = ".lock"
# A process that was told to end may still be writing its last file.
PATIENCE = 60.0


@contextmanager
def alone(
    folder: Path,
    what: str = "a training is still running there",
    *,
    patience: float = PATIENCE,
    waiting: Callable[[str], None] | None = None,
) -> Iterator[None]:
    """Hold a folder; the lock goes with the process.

    Args:
        what: What another process does there, in words.
        waiting: Is told once, in words, when it has to wait.

    Raises:
        EvoMergeError: another process holds it still after `patience` seconds.
    """
    folder.mkdir(parents=True, exist_ok=True)
    deadline = time.monotonic() + patience
    told = waiting is None

    def busy(holder: str) -> None:
        nonlocal told
        if time.monotonic() >= deadline:
            raise EvoMergeError(f"{folder}: {what} ({holder})")
        if not told:
            assert waiting is not None
            waiting(f"waiting for {folder}: {what} ({holder})")
            told = True

    with held(folder / LOCK, busy):
        yield
