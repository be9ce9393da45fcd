"""One process at a time works in a folder, however the one before it ended."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from evomerge.errors import EvoMergeError

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
    import fcntl

    folder.mkdir(parents=True, exist_ok=True)
    deadline = time.monotonic() + patience
    with (folder / LOCK).open("a+") as file:
        while True:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                file.seek(0)
                holder = file.read().strip() or "another process"
                if time.monotonic() >= deadline:
                    raise EvoMergeError(f"{folder}: {what} ({holder})") from None
                if waiting is not None:
                    waiting(f"waiting for {folder}: {what} ({holder})")
                    waiting = None
                time.sleep(0.5)
            except OSError:
                break  # some shared file systems have no locks
        file.truncate(0)
        file.write(f"process {os.getpid()}")
        file.flush()
        yield
