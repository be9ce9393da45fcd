"""A database that is gone for a minute: what is written or read is tried again, with longer and longer waits.

A write whose acknowledgement was lost is done a second time, so that what is tried here must be safe to repeat.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import sqlalchemy as sa
import tenacity

from evomerge.errors import EvoMergeError
from evomerge.study.database import connectable, reason, shown
from evomerge.study.full import full_disk

T = TypeVar("T")
# Seconds: how long a database may be gone, and the longest wait between two tries.
LONGEST, EVERY = 300.0, 15.0
# PostgreSQL's error codes: connection lost, server shut down or starting, deadlock and the like, too many clients.
_STATES = ("08", "40", "53300", "55P03", "57P01", "57P02", "57P03", "57P05")
# MySQL's: no connection (2000s), lock waited for too long, deadlock, too many clients, shutting down, killed.
_CODES = (0, 1040, 1053, 1077, 1205, 1213, 1927, 2002, 2003, 2006, 2013, 2014, 2055)
# A connection that PostgreSQL refuses has no code. These refusals stay.
_REFUSED = ("authentication failed", "does not exist", "permission denied", "pg_hba.conf", "not permitted", "password")
# SQLite has no codes in its errors' class either; another process writes, or a network disk is away.
_SQLITE = ("locked", "busy", "disk I/O error")


def is_transient(error: BaseException) -> bool:
    """Whether the same may work in a while: the database is gone or busy, and did not refuse."""
    found = error if isinstance(error, sa.exc.DBAPIError) else error.__cause__
    if not isinstance(found, sa.exc.DBAPIError):
        return False
    said, original = str(found.orig), found.orig
    state = getattr(original, "sqlstate", None) or getattr(original, "pgcode", None)
    if state:
        return str(state).startswith(_STATES)
    code = original.args[0] if original is not None and original.args else None
    if isinstance(code, int):
        return code in _CODES
    if type(original).__module__.startswith("sqlite3"):
        return isinstance(found, sa.exc.OperationalError) and any(word in said for word in _SQLITE)
    gone = found.connection_invalidated or isinstance(found, sa.exc.OperationalError | sa.exc.InterfaceError)
    return gone and not any(word in said for word in _REFUSED)


class Patience:
    """Does what is done with one database, again where that was gone.

    Args:
        url: The database's.
        say: Is told once when it is gone, and when it is back.
        seconds: How long it may be gone.
    """

    def __init__(self, url: str, say: Callable[[str], None] | None = None, seconds: float = LONGEST) -> None:
        self._url = url
        self.say = say or (lambda text: None)
        self._seconds = seconds

    def __call__(self, do: Callable[..., T], *args: Any) -> T:
        """What `do` returns.

        Raises:
            EvoMergeError: the database stays away, or refuses, or its disk is full, which no waiting changes.
        """
        said = False

        def tell(state: tenacity.RetryCallState) -> None:
            nonlocal said
            if not said:
                error = state.outcome.exception() if state.outcome is not None else None
                why = reason(error, connectable(self._url)) if error is not None else ""
                self.say(f"storage {shown(self._url)}: {why}; trying again for {self._seconds / 60:g} minutes")
            said = True

        def full(error: BaseException) -> str | None:
            return full_disk(error, self._url, Path(tempfile.gettempdir())) if _of_database(error) else None

        retrying = tenacity.Retrying(
            retry=tenacity.retry_if_exception(lambda e: is_transient(e) and full(e) is None),
            stop=tenacity.stop_after_delay(self._seconds),
            wait=tenacity.wait_exponential(multiplier=0.2, max=EVERY) + tenacity.wait_random(0, 0.2), before_sleep=tell,
            reraise=True,
        )  # fmt: skip
        try:
            result = retrying(do, *args)
        except EvoMergeError:
            raise
        except Exception as e:
            if not _of_database(e):
                raise
            if (words := full(e)) is not None:
                raise EvoMergeError(words) from e
            stayed = f"; it was tried for {self._seconds / 60:g} minutes" if is_transient(e) else ""
            raise EvoMergeError(
                f"storage {shown(self._url)}: {reason(e, connectable(self._url))}{stayed}. The same command goes on "
                "from what is stored"
            ) from e
        if said:
            self.say(f"storage {shown(self._url)}: it answers again")
        return result


def _of_database(error: BaseException) -> bool:
    from optuna.exceptions import StorageInternalError

    return isinstance(error, sa.exc.DBAPIError | StorageInternalError) and not isinstance(error, sa.exc.IntegrityError)
