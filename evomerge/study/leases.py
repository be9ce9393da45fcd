"""The lease on a study: one process drives it, says so by the database's clock, and loses it when it falls silent.

Whoever writes without it is stopped inside the transaction (see `commits`): a process that was suspended while another
took over changes nothing when it wakes. A search's controls and a hybrid's stages share one lease.
"""

from __future__ import annotations

import contextlib
import datetime
import json
import os
import threading
import uuid
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from typing import Any

import sqlalchemy as sa

from evomerge.errors import EvoMergeError, InputError, StudyError
from evomerge.study import schema
from evomerge.study.commits import UNFENCED
from evomerge.study.database import shown
from evomerge.study.holder import Process, this_process, user
from evomerge.study.store import Store

# Seconds without a sign of life after which a process counts as dead.
TERM = 60.0
_VARIABLE = "EVOMERGE_LEASE_SECONDS"


class LeaseLost(EvoMergeError):
    """Another process has taken the study over; nothing was written since."""


@dataclass(frozen=True)
class Driver:
    """Who drives a study.

    Attributes:
        token: Of its lease; another one for each process and run.
        since: When it began, in seconds since 1970 by the database's clock.
        left: Seconds until its lease runs out; negative: it has.
        offer: What joiners must know of it.
    """

    token: str
    process: Process
    user: str
    since: float
    left: float
    offer: Mapping[str, Any]

    @property
    def gone(self) -> bool:
        """Whether it is dead, or silent for too long."""
        return self.left <= 0 or self.process.dead

    def __str__(self) -> str:
        when = datetime.datetime.fromtimestamp(self.since).strftime("%Y-%m-%d %H:%M")
        return f"process {self.process.pid} on {self.process.host}, user {self.user}, since {when}"


def term() -> float:
    """Seconds of a lease, by the environment's EVOMERGE_LEASE_SECONDS.

    Raises:
        InputError: that is no number from 1 to 86400.
    """
    given = os.environ.get(_VARIABLE)
    if given is None:
        return TERM
    try:
        seconds = float(given)
    except ValueError:
        seconds = 0.0
    if not 1.0 <= seconds <= 86400.0:
        raise InputError(f'{_VARIABLE}="{given}": expected seconds from 1 to 86400')
    return seconds


def root(name: str) -> str:
    """The study whose lease covers a search: that of NAME/control is NAME's."""
    return name.partition("/")[0]


def driver_of(store: Store, name: str) -> Driver | None:
    """Who drives a study, or died driving it; None where nobody does."""
    with unfenced(store.engine).connect() as connection:
        if not sa.inspect(connection).has_table(schema.leases.name):
            return None  # an older version's database
        return _driver(connection, root(name))


def _driver(connection: sa.Connection, study: str) -> Driver | None:
    table = schema.leases
    query = sa.select(table, (table.c.expires - schema.clock()).label("left")).where(table.c.study == study)
    row = connection.execute(query).mappings().first()
    if row is None:
        return None
    process = Process(row["host"], row["machine"], row["pid"], row["process"])
    offer = json.loads(row["offer"]) if row["offer"] else {}
    return Driver(row["token"], process, row["user"], row["since"], row["left"], offer)


def unfenced(engine: sa.Engine) -> sa.Engine:
    """The same engine for what is written with no lease on the study: the leases themselves, and joiners' answers."""
    return engine.execution_options(**{UNFENCED: True})


def held(store: Store, name: str, driver: Driver) -> StudyError:
    """What is said to a second driver."""
    silent = "" if driver.process.machine == this_process().machine else f" (or {term():g} s, if it has died)"
    return StudyError(
        f'study "{root(name)}" in {shown(store.url)} is driven by another process ({driver}); to add this one\'s '
        f"workers to it give the same command with --join, else wait for it to end{silent}"
    )


def _clear(connection: sa.Connection, session: str) -> None:
    """Nobody waits any more for what a driver asked joiners for."""
    connection.execute(sa.delete(schema.jobs).where(schema.jobs.c.session == session))
    connection.execute(sa.delete(schema.joiners).where(schema.joiners.c.session == session))


class Lease:
    """The lease on one study. Renewed by a thread of its own until it is let go.

    Args:
        name: The study's, or that of one that belongs to it (NAME/control).
        seconds: How long it lasts without renewal; default `term()`.
    """

    def __init__(self, store: Store, name: str, seconds: float | None = None) -> None:
        self._store = store
        self._name = name
        self.study = root(name)
        self.token = uuid.uuid4().hex
        self.seconds = term() if seconds is None else seconds
        self._engine = unfenced(store.engine)
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._keep, name=f"lease on {self.study}", daemon=True)

    def take(self) -> None:
        """Take it, from a holder that is dead too.

        Raises:
            StudyError: another process holds it.
        """
        driver = self._store.patience(self._take)
        if driver is not None:
            raise held(self._store, self._name, driver)
        self._store.commits.fence(self._check)
        self._thread.start()

    def _take(self) -> Driver | None:
        """Returns who holds it instead."""
        table, mine = schema.leases, asdict(this_process()) | {"user": user(), "token": self.token, "offer": None}
        mine |= {"since": schema.clock(), "expires": schema.clock() + self.seconds}
        while True:
            with self._engine.begin() as connection:
                found = _driver(connection, self.study)
                if found is None:
                    schema.insert_new(connection, table, [mine | {"study": self.study}])
                elif found.token != self.token and found.gone:
                    taken = sa.update(table).where(table.c.study == self.study, table.c.token == found.token)
                    if not found.process.dead:  # asked again inside the statement: it may have been renewed meanwhile
                        taken = taken.where(table.c.expires <= schema.clock())
                    if connection.execute(taken.values(**mine)).rowcount == 1:
                        _clear(connection, found.token)
            with self._engine.connect() as connection:
                found = _driver(connection, self.study)
            if found is not None:  # None: whoever had it let it go at this moment
                return None if found.token == self.token else found

    def offer(self, offer: Mapping[str, Any]) -> None:
        """Tell joiners what they must know."""
        self._store.patience(self._offer, json.dumps(offer))

    def _offer(self, text: str) -> None:
        with self._engine.begin() as connection:
            connection.execute(self._mine(sa.update(schema.leases)).values(offer=text))

    def release(self, patient: bool = True) -> None:
        """Let it go. What is written to the study from now on is not fenced any more.

        Args:
            patient: Wait for a database that is gone; else it is left to run out.
        """
        self._stop.set()
        self._thread.join()
        self._store.commits.fence(None)
        if patient:
            self._store.patience(self._release)
        else:
            with contextlib.suppress(sa.exc.SQLAlchemyError):
                self._release()

    def _release(self) -> None:
        with self._engine.begin() as connection:
            connection.execute(self._mine(sa.delete(schema.leases)))
            _clear(connection, self.token)

    def _mine(self, statement: Any) -> Any:
        return statement.where(schema.leases.c.study == self.study, schema.leases.c.token == self.token)

    def _keep(self) -> None:
        """Renew it, at a third of its term; where the database is gone, as soon as it is back."""
        wait = self.seconds / 3
        while not self._stop.wait(wait):
            try:
                with self._engine.begin() as connection:
                    renewed = self._mine(sa.update(schema.leases)).values(expires=schema.clock() + self.seconds)
                    if connection.execute(renewed).rowcount != 1:
                        return  # lost: the next write says so
                wait = self.seconds / 3
            except sa.exc.SQLAlchemyError:
                wait = min(1.0, self.seconds / 3)

    def _check(self, connection: sa.Connection) -> None:
        """The fence: raises, inside a transaction that has written, where the lease is another's by now."""
        query = self._mine(sa.select(schema.leases.c.token))
        # Shared: whoever would take the lease over waits until this transaction has ended.
        if connection.execute(query.with_for_update(read=True)).first() is not None:
            return
        other = _driver(connection, self.study)
        taken = f"another process has taken it over ({other})" if other is not None else "its lease was taken away"
        raise LeaseLost(
            f'study "{self.study}": this process was silent for more than {self.seconds:g} s (suspended, or cut off '
            f"from the database), and {taken}. Nothing was written since; the same command with --join adds workers"
        )


@contextmanager
def leased(store: Store, name: str) -> Iterator[Lease]:
    """Hold the lease on a study.

    Raises:
        StudyError: another process holds it.
    """
    lease = Lease(store, name)
    lease.take()
    try:
        yield lease
    except BaseException:
        lease.release(patient=False)
        raise
    lease.release()
