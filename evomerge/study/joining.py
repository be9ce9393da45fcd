"""A process that joined a search: its workers score what the driver puts on the board, until the driver ends."""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Callable, Hashable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass

import sqlalchemy as sa

from evomerge.errors import EvoMergeError
from evomerge.study.board import Place
from evomerge.study.exchange import read_job, write_answer
from evomerge.study.leases import Driver, driver_of, term
from evomerge.study.store import Store
from evomerge.study.workers import Pool

# Seconds between two looks at the board, and at the driver.
BOARD, DRIVER = 0.25, 1.0


@dataclass(frozen=True)
class Joined:
    """What a process that joined did.

    Attributes:
        candidates: How many different ones it scored, or parts of them.
        jobs: How many pieces of work that took; models beside the candidates count too.
        seconds: How long it was there.
    """

    study: str
    candidates: int
    jobs: int
    seconds: float


class _Look(Exception):
    """Ends a wait for one's own workers: a worker is free, or the driver has ended."""


class Joining:
    """Works for the driver of a study.

    Args:
        name: The study's.
        pool: Its workers.
        references: What this process calls the models, by their content hash.
        check: Is given what the driver offers; raises where this process cannot work for it.
        say: Is told how it goes.
    """

    def __init__(
        self,
        store: Store,
        name: str,
        pool: Pool,
        references: Mapping[str, str],
        check: Callable[[Driver], None],
        say: Callable[[str], None],
    ) -> None:
        self._store, self._name, self._pool = store, name, pool
        self._references, self._check, self._say = references, check, say
        self._running: set[Hashable] = set()
        self._hashes: dict[Hashable, str] = {}
        self._scored: set[str] = set()
        self._jobs = 0
        self._looked = 0.0
        self._seen: Driver | None = None

    def run(self) -> Joined:
        """Work until the driver has ended.

        Raises:
            EvoMergeError: the driver was lost, and no other took its place.
            Interrupted: this process was asked to leave, and has answered what it had begun.
        """
        began = time.monotonic()
        driver = self._first()
        while driver is not None:
            if not driver.gone:
                self._work_for(driver)
            driver = self._next(driver)
        return Joined(self._name, len(self._scored), self._jobs, time.monotonic() - began)

    def _look(self, every: float = DRIVER) -> Driver | None:
        """The driver, as it was a moment ago."""
        if time.monotonic() - self._looked >= every:
            self._seen = self._store.patience(driver_of, self._store, self._name)
            self._looked = time.monotonic()
        return self._seen

    def _first(self) -> Driver | None:
        """The driver, once it says what it needs; it may be between two stages. None where none comes."""
        deadline = time.monotonic() + term()
        while True:
            self._pool.stop.check()
            driver = self._look(BOARD)
            if driver is not None and (driver.gone or driver.offer.get("study") == self._name):
                return driver
            if driver is None and time.monotonic() >= deadline:
                return None
            time.sleep(BOARD)

    def _begun(self) -> Driver | None:
        """The driver, once it says what it needs, or is gone; None where it has ended, or does something else."""
        while (driver := self._look(BOARD)) is not None and not driver.gone:
            self._pool.stop.check()
            if driver.offer:
                return driver if driver.offer.get("study") == self._name else None
            time.sleep(BOARD)
        return driver

    def _next(self, before: Driver) -> Driver | None:
        """Who drives the study after that driver; None where it has ended in good order.

        Raises:
            EvoMergeError: it is gone, and nobody takes its place for as long as a lease lasts.
        """
        deadline, said = time.monotonic() + term(), False
        while True:
            self._pool.stop.check()
            driver = self._look(BOARD)
            if driver is None:
                return None
            if not driver.gone:
                found = self._begun()
                if found is None or not found.gone:
                    return found
                continue
            if time.monotonic() >= deadline:
                raise EvoMergeError(
                    f'study "{self._name}": lost its driver ({before}); {self._words()}. What was scored is stored; '
                    "the same command without --join drives it on"
                )
            if not said:
                self._say(f'study "{self._name}": its driver ({before}) is gone; waiting for another')
                said = True
            time.sleep(BOARD)

    def _words(self) -> str:
        return f"{len(self._scored)} candidates were scored here, in {self._jobs} jobs"

    def _work_for(self, driver: Driver) -> None:
        self._check(driver)
        self._say(f'study "{self._name}": working for {driver}')
        place = Place(self._store, driver.token, self._pool.size, term())
        contents: Mapping[str, str] = driver.offer["contents"]
        references = {theirs: self._references[content] for theirs, content in contents.items()}
        with _renewed(place):
            while True:
                now = self._look()
                if now is None or now.token != driver.token or now.gone:
                    return
                if self._pool.stop.asked:
                    self._recall()
                else:
                    self._fill(place, references)
                if not self._running:
                    self._pool.stop.check()
                    time.sleep(BOARD)
                    continue
                try:
                    key, answer = self._pool.wait(lambda: self._poll(driver))
                except _Look:
                    continue
                self._running.discard(key)
                # Of a driver that is gone by now nobody takes it.
                if place.answer(str(key), write_answer(answer)):
                    self._jobs += 1
                    if (hash_ := self._hashes.pop(key, None)) is not None:
                        self._scored.add(hash_)

    def _fill(self, place: Place, references: Mapping[str, str]) -> None:
        while len(self._running) < self._pool.size + self._pool.ahead:
            taken = place.take()
            if taken is None:
                return
            key, text = taken
            job = read_job(text, references)
            if job.recipe is not None and job.split == "search" and not job.exported:
                self._hashes[key] = job.recipe.hash()
            self._running.add(key)
            self._pool.submit(key, job)

    def _recall(self) -> bool:
        """Nothing more is begun. What was not is free for others when this process has left. True: nothing runs."""
        self._running -= set(self._pool.recall())
        return not self._running

    def _poll(self, driver: Driver) -> None:
        if self._pool.stop.asked and self._recall():
            raise _Look
        now = self._look()
        ended = now is None or now.token != driver.token or now.gone
        if ended or len(self._running) < self._pool.size + self._pool.ahead:
            raise _Look


@contextmanager
def _renewed(place: Place) -> Iterator[None]:
    """Say, by a thread, that this process is there, as long as it is."""
    seconds = term()
    stop = threading.Event()

    def renew() -> None:
        wait = seconds / 3
        while not stop.wait(wait):
            wait = seconds / 3
            try:
                place.renew()
            except sa.exc.SQLAlchemyError:  # gone for a while; what this process holds may run out meanwhile
                wait = min(1.0, wait)

    place.renew()
    thread = threading.Thread(target=renew, name="joined", daemon=True)
    thread.start()
    try:
        yield
    finally:
        stop.set()
        thread.join()
        with contextlib.suppress(sa.exc.SQLAlchemyError):
            place.leave()
