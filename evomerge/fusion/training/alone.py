"""One process at a time trains in a folder, however the one before it ended."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from evomerge.errors import EvoMergeError

LOCK = ".lock"
# A process that was told to end may still be writing its last file.
PATIENCE = 60.0


@contextmanager
def alone(work: Path, patience: float = PATIENCE) -> Iterator[None]:
    """Hold a folder; the lock goes with the process.

    Raises:
        EvoMergeError: another process holds it still after `patience` seconds.
    """
    import fcntl

    work.mkdir(parents=True, exist_ok=True)
    deadline = time.monotonic() + patience
    with (work / LOCK).open("a+") as file:
        while True:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                if time.monotonic() >= deadline:
                    file.seek(0)
                    holder = file.read().strip() or "another process"
                    raise EvoMergeError(f"{work}: a training is still running there ({holder})") from None
                time.sleep(0.5)
            except OSError:
                break  # some shared file systems have no locks
        file.truncate(0)
        file.write(f"process {os.getpid()}")
        file.flush()
        yield
