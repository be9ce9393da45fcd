"""The board of a search: jobs that its driver puts up for those that joined, and their answers.

Rows of a table in the study's database. A joiner holds a job by a lease of its own; of one that falls silent it goes to
another, and an answer that comes after that is dropped. Every step may be done twice, for the database may be gone
between its doing and the word of it.
"""

from __future__ import annotations

import uuid
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass

import sqlalchemy as sa

from evomerge.study.holder import Process, this_process
from evomerge.study.leases import unfenced
from evomerge.study.schema import clock, insert_new, jobs, joiners
from evomerge.study.store import Store

# So many joiners may fall silent over one job; then the driver runs it itself.
TRIES = 2
# So many jobs are looked at to find one that nobody was quicker with.
_LOOKS = 8


@dataclass(frozen=True)
class Joiner:
    """A process that joined.

    Attributes:
        workers: How many jobs it works on at once.
    """

    token: str
    process: Process
    workers: int

    def __str__(self) -> str:
        return f"process {self.process.pid} on {self.process.host}"


@dataclass(frozen=True)
class Posted:
    """A job on the board.

    Attributes:
        free: Nobody works on it: it was not taken, or whoever took it fell silent.
        tries: How often it was taken.
        done: Whether its answer is there.
    """

    key: str
    free: bool
    tries: int
    done: bool


class Board:
    """The driver's side. What it writes is fenced by its lease.

    Args:
        session: The token of the driver's lease.
    """

    def __init__(self, store: Store, session: str) -> None:
        self._engine = store.engine
        self._patience = store.patience
        self.session = session

    def put(self, text: str) -> str:
        """Put a job up. Returns its key."""
        key = uuid.uuid4().hex
        self._patience(self._put, key, text)
        return key

    def _put(self, key: str, text: str) -> None:
        with self._engine.begin() as connection:
            insert_new(connection, jobs, [{"session": self.session, "key": key, "job": text, "tries": 0}])

    def joined(self) -> list[Joiner]:
        """Who is there now. Of those that are dead, jobs are free again."""
        return self._patience(self._joined)

    def _joined(self) -> list[Joiner]:
        query = sa.select(joiners).where(joiners.c.session == self.session, joiners.c.expires > clock())
        with self._engine.connect() as connection:
            rows = connection.execute(query.order_by(joiners.c.token)).mappings().all()
        processes = [Process(r["host"], r["machine"], r["pid"], r["process"]) for r in rows]
        found = [Joiner(r["token"], p, r["workers"]) for r, p in zip(rows, processes, strict=True)]
        dead = [j.token for j in found if j.process.dead]
        if dead:
            with self._engine.begin() as connection:
                _free(connection, dead)
        return [j for j in found if j.token not in dead]

    def posted(self) -> list[Posted]:
        """The jobs on the board, in the order in which they were put up."""
        return self._patience(self._posted)

    def _posted(self) -> list[Posted]:
        free = sa.or_(jobs.c.joiner.is_(None), jobs.c.expires <= clock())
        columns = (jobs.c.key, free.label("free"), jobs.c.tries, jobs.c.answer.is_not(None).label("done"))
        query = sa.select(*columns).where(jobs.c.session == self.session).order_by(jobs.c.id)
        with self._engine.connect() as connection:
            rows = connection.execute(query).all()
        return [Posted(r.key, bool(r.free) and not r.done, r.tries, bool(r.done)) for r in rows]

    def answers(self, keys: Sequence[str]) -> dict[str, str]:
        """The answers of some jobs; they stay until `remove`."""
        return self._patience(self._answers, keys)

    def _answers(self, keys: Sequence[str]) -> dict[str, str]:
        query = sa.select(jobs.c.key, jobs.c.answer).where(jobs.c.key.in_(keys), jobs.c.answer.is_not(None))
        with self._engine.connect() as connection:
            return {row.key: row.answer for row in connection.execute(query)}

    def remove(self, keys: Iterable[str]) -> None:
        """Take jobs down that are done."""
        self._patience(self._remove, list(keys))

    def _remove(self, keys: list[str]) -> None:
        with self._engine.begin() as connection:
            connection.execute(sa.delete(jobs).where(jobs.c.key.in_(keys)))

    def withdraw(self, key: str) -> bool:
        """Take a job down that nobody works on; False where somebody does, or has done it."""
        return self._patience(self._withdraw, key)

    def _withdraw(self, key: str) -> bool:
        free = sa.or_(jobs.c.joiner.is_(None), jobs.c.expires <= clock())
        with self._engine.begin() as connection:
            connection.execute(sa.delete(jobs).where(jobs.c.key == key, jobs.c.answer.is_(None), free))
        # Not by the number of rows: nobody but the driver takes any down, now or in a first try of this.
        with self._engine.connect() as connection:
            return connection.execute(sa.select(jobs.c.id).where(jobs.c.key == key)).first() is None


class Place:
    """A joiner's side.

    Args:
        session: The token of the driver's lease.
        workers: How many jobs it works on at once.
        seconds: How long it may be silent.
    """

    def __init__(self, store: Store, session: str, workers: int, seconds: float) -> None:
        self._engine = unfenced(store.engine)
        self._patience = store.patience
        self._session = session
        self._workers = workers
        self._seconds = seconds
        self.token = uuid.uuid4().hex
        self._held: set[str] = set()

    def renew(self) -> None:
        """Say that it is there, and still works on what it holds. Tried once."""
        mine = asdict(this_process()) | {"session": self._session, "workers": self._workers}
        until = clock() + self._seconds
        with self._engine.begin() as connection:
            insert_new(connection, joiners, [mine | {"token": self.token, "expires": until}])
            connection.execute(sa.update(joiners).where(joiners.c.token == self.token).values(expires=until))
            held = sa.update(jobs).where(jobs.c.joiner == self.token, jobs.c.key.in_(list(self._held)))
            connection.execute(held.values(expires=until))

    def take(self) -> tuple[str, str] | None:
        """Take a job: its key and text; None where there is none to do."""
        found = self._patience(self._take)
        if found is not None:
            self._held.add(found[0])
        return found

    def _take(self) -> tuple[str, str] | None:
        with self._engine.begin() as connection:
            mine = sa.select(jobs.c.key, jobs.c.job).where(jobs.c.joiner == self.token, jobs.c.answer.is_(None))
            for row in connection.execute(mine):
                if row.key not in self._held:  # taken by a first try, whose acknowledgement was lost
                    return row.key, row.job
        free = sa.and_(
            jobs.c.session == self._session, jobs.c.answer.is_(None), jobs.c.tries < TRIES,
            sa.or_(jobs.c.joiner.is_(None), jobs.c.expires <= clock()),
        )  # fmt: skip
        with self._engine.connect() as connection:
            rows = connection.execute(sa.select(jobs.c.key, jobs.c.job).where(free).order_by(jobs.c.id).limit(_LOOKS))
            found = rows.all()
        for row in found:
            values = {"joiner": self.token, "expires": clock() + self._seconds, "tries": jobs.c.tries + 1}
            taking = sa.update(jobs).where(free, jobs.c.key == row.key).values(**values)
            with self._engine.begin() as connection:
                if connection.execute(taking).rowcount == 1:
                    return row.key, row.job
        return None

    def answer(self, key: str, text: str) -> bool:
        """Answer a job. False: it is somebody else's by now, and the answer was dropped."""
        tries = 0

        def write() -> bool:
            nonlocal tries
            tries += 1
            mine = sa.update(jobs).where(jobs.c.key == key, jobs.c.joiner == self.token)
            with self._engine.begin() as connection:
                return connection.execute(mine.values(answer=text)).rowcount == 1 or tries > 1

        kept = self._patience(write)
        self._held.discard(key)
        return kept

    def leave(self) -> None:
        """What it holds is free again. Tried once: it runs out by itself."""
        with self._engine.begin() as connection:
            _free(connection, [self.token])


def _free(connection: sa.Connection, tokens: list[str]) -> None:
    """Jobs of joiners that are gone are free again."""
    connection.execute(
        sa.update(jobs).where(jobs.c.joiner.in_(tokens), jobs.c.answer.is_(None)).values(joiner=None, expires=None)
    )
    connection.execute(sa.delete(joiners).where(joiners.c.token.in_(tokens)))
