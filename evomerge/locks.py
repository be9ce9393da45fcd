"""One process at a time holds a file, however the one before it ended."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

# Seconds between two tries.
_EVERY = 0.5


@contextmanager
def held(lock: Path, busy: Callable[[str], None]) -> Iterator[None]:
    """Hold a lock file, which goes with the process. Some shared file systems have no locks: there nothing is held.

    Args:
        busy: Called, as long as another process holds it, with words for who does; raises where that is too long.
    """
    import fcntl

    with lock.open("a+") as file:
        while True:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                file.seek(0)
                busy(file.read().strip() or "another process")
                time.sleep(_EVERY)
            except OSError:
                yield
                return
        file.truncate(0)
        file.write(f"process {os.getpid()}")
        file.flush()
        yield
