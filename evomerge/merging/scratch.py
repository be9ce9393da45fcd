"""What is being made beside a target: gone when the work ends, and after a kill with the next work on that target.

Every such folder or file is locked (flock) while its process lives, and the system gives locks back however a process
ends: what can be locked belongs to nobody any more. Where locks are not to be had, nothing is swept.
"""

from __future__ import annotations

import os
import re
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

try:
    import fcntl
except ImportError:  # no POSIX system
    fcntl = None  # type: ignore[assignment]

# Names may have 255 bytes; what is added to the target's is less than 55, and a character has at most 4.
_LONGEST = 50
_RANDOM = "[a-z0-9_]{8}"
WEIGHTS = ".weights."


def open_to_all(folder: Path) -> None:
    """Give a folder the rights that a new one has: temporary ones are their owner's alone."""
    umask = os.umask(0)
    os.umask(umask)
    folder.chmod(0o777 & ~umask)


@contextmanager
def scratch_folder(parent: Path, name: str, kind: str) -> Iterator[Path]:
    """A new folder in `parent`, for what is to become `parent/name`; removed at the end, unless it was renamed.

    Raises:
        OSError: it cannot be made.
    """
    with _alone(parent) as alone:
        if alone:
            _sweep(parent, name)
        folder = Path(tempfile.mkdtemp(prefix=f".{name[:_LONGEST]}.", suffix=f".{kind}", dir=parent))
        lock = _lock(folder)
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)
        if lock is not None:
            os.close(lock)


def scratch_file(parent: Path) -> tuple[int, Path]:
    """A new file in `parent`, open for reading and writing, and its name."""
    with _alone(parent):
        fd, name = tempfile.mkstemp(prefix=WEIGHTS, suffix=".part", dir=parent)
        if fcntl is not None:
            with suppress(OSError):
                fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    return fd, Path(name)


def _sweep(parent: Path, name: str) -> None:
    """Remove what a killed process left in `parent` of work on `name`."""
    # What an interrupted replacement set aside is the only copy while the target has not come back.
    kinds = "part|steps|old" if (parent / name).exists() else "part|steps"
    left = re.compile(rf"\.{re.escape(name[:_LONGEST])}\.{_RANDOM}\.(?:{kinds})|{re.escape(WEIGHTS)}{_RANDOM}\.part")
    for path in sorted(parent.iterdir()):
        if not left.fullmatch(path.name) or path.is_symlink():
            continue
        lock = _lock(path)
        if lock is None:
            continue
        if path.is_dir():
            shutil.rmtree(path, ignore_errors=True)
        else:
            with suppress(OSError):
                path.unlink()
        os.close(lock)


@contextmanager
def _alone(parent: Path) -> Iterator[bool]:
    """Whether no other process makes or sweeps anything in `parent` meanwhile: a new folder is unlocked at first."""
    lock = _lock(parent)
    try:
        yield lock is not None
    finally:
        if lock is not None:
            os.close(lock)


def _lock(path: Path) -> int | None:
    """A descriptor that holds the lock of a file or folder, or None where another has it."""
    if fcntl is None:
        return None
    try:
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    except OSError:
        return None
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        os.close(fd)
        return None
    return fd
