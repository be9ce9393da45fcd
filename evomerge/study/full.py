"""A full disk while a search runs: one clear stop instead of whatever the library raised that met it first."""

from __future__ import annotations

import errno
import shutil
import sqlite3
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from evomerge.errors import DiskFullError, EvoMergeError
from evomerge.study.database import shown
from evomerge.study.place import sqlite_path

AGAIN = "free some, and give the same command again: the search goes on where it was"
_ERRNOS = (errno.ENOSPC, errno.EDQUOT)
# What servers call it: PostgreSQL's disk_full; MySQL's ER_DISK_FULL and ER_RECORD_FILE_FULL.
_SQLSTATE, _MYSQL = "53100", (1021, 1114)
# With less than this left, SQLite's other errors of reading and writing mean that the disk is full.
_LEAST = 64 << 10


@contextmanager
def full_disks_stop(storage: str, out: Path) -> Iterator[None]:
    """Inside the block, an error that means that a disk is full becomes one message.

    Nothing is damaged by it: a database's transaction is undone, and files are renamed into place when they are whole.

    Args:
        storage: URL of the study's database.
        out: The search's output folder.

    Raises:
        EvoMergeError: a disk is full: which, and how much is needed.
    """
    try:
        yield
    except DiskFullError as e:
        raise EvoMergeError(f"{e}; {AGAIN}") from None
    except EvoMergeError:
        raise  # it has its words already
    except Exception as e:
        words = full_disk(e, storage, out)
        if words is None:
            raise
        raise EvoMergeError(words) from e


def full_disk(error: BaseException, storage: str, out: Path) -> str | None:
    """Which disk is full, and what to do about it, where that is what an error means; see `full_disks_stop`."""
    words = next((w for cause in _chain(error) if (w := _words(cause, storage, out)) is not None), None)
    return None if words is None else f"{words}; {AGAIN}"


def _chain(error: BaseException | None) -> Iterator[BaseException]:
    """An error and what led to it; SQLAlchemy keeps the driver's as `orig`."""
    seen: list[BaseException] = []
    while error is not None and error not in seen:
        seen.append(error)
        yield error
        original = getattr(error, "orig", None)
        error = original if isinstance(original, BaseException) else error.__cause__ or error.__context__


def _words(error: BaseException, storage: str, out: Path) -> str | None:
    if isinstance(error, OSError) and error.errno in _ERRNOS:
        place = Path(str(error.filename)) if error.filename else out
        return f"{place}: the disk is full{_free(place)}"
    database = sqlite_path(storage)
    if isinstance(error, sqlite3.OperationalError) and database is not None:
        name = getattr(error, "sqlite_errorname", "") or ""
        low = shutil.disk_usage(database.parent).free < _LEAST
        if name == "SQLITE_FULL" or (low and name.startswith(("SQLITE_IOERR", "SQLITE_CANTOPEN"))):
            size = sum(f.stat().st_size for f in database.parent.glob(f"{database.name}*") if f.is_file())
            grows = f"the study has {size:,} bytes by now and grows with every candidate"
            return f"{database}: the disk of the study's database is full{_free(database)}; {grows}"
    code: Any = error.args[0] if error.args else None
    if getattr(error, "sqlstate", None) == _SQLSTATE or (code in _MYSQL and "sql" in type(error).__module__):
        return f"storage {shown(storage)}: the server's disk is full"
    return None


def _free(place: Path) -> str:
    folder = next((p for p in (place, *place.absolute().parents) if p.is_dir()), None)
    return "" if folder is None else f" ({shutil.disk_usage(folder).free:,} bytes free)"
