"""What must hold where a transaction is committed: checked inside it, so that nothing comes in between."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import sqlalchemy as sa

Check = Callable[[sa.Connection], None]
# An option of connections whose commits are not fenced: those that keep the lease itself.
UNFENCED = "evomerge_unfenced"
_WROTE = "evomerge_wrote"


class Commits:
    """Looks at every transaction of an engine that has written, Optuna's own too, before it is committed.

    A check that raises rolls the transaction back; the exception reaches whoever wrote.
    """

    def __init__(self, engine: sa.Engine) -> None:
        self._fence: Check | None = None
        self._local = threading.local()
        sa.event.listen(engine, "before_cursor_execute", self._before)
        sa.event.listen(engine, "commit", self._commit)
        sa.event.listen(engine, "rollback", self._rollback)

    def fence(self, check: Check | None) -> None:
        """Check every commit from now on, of all threads; None: no more."""
        self._fence = check

    @contextmanager
    def guarded(self, check: Check) -> Iterator[None]:
        """Check the commits of this thread, for a while. The check may write what belongs to the transaction, too."""
        self._local.guard = check
        try:
            yield
        finally:
            self._local.guard = None

    def _before(
        self, connection: sa.Connection, cursor: Any, statement: str, parameters: Any, context: Any, many: bool
    ) -> None:
        if not statement.lstrip()[:6].upper().startswith(("SELECT", "PRAGMA")):
            connection.info[_WROTE] = True

    def _commit(self, connection: sa.Connection) -> None:
        if not connection.info.pop(_WROTE, False):
            return
        if self._fence is not None and not connection.get_execution_options().get(UNFENCED):
            self._fence(connection)
        guard: Check | None = getattr(self._local, "guard", None)
        if guard is not None:
            guard(connection)
            connection.info.pop(_WROTE, None)

    def _rollback(self, connection: sa.Connection) -> None:
        if not connection.invalidated:
            connection.info.pop(_WROTE, None)
