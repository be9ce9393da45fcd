"""Ray actors that hold something each and work off one item at a time; one that dies is replaced."""

from __future__ import annotations

import contextlib
import math
import time
from collections import deque
from collections.abc import Callable, Hashable, Iterator
from dataclasses import dataclass
from typing import Any

from evomerge.errors import EvoMergeError, first_line
from evomerge.study.workers.connection import Connection

# An item whose worker died is worked off elsewhere; one that kills a second worker is given up.
TRIES = 2
# One that is given to workers that die before they say that they have begun it is given up after so many.
GIVEN = 4
# How long nothing may run before it is said that the workers are still to come.
SILENCE_SECONDS = 60.0
POLL_SECONDS = 2.0
# A worker that has had nothing to do for so long is asked whether it is there before it gets an item.
IDLE_SECONDS = 1.0
# Ray's name for the thread of a worker that prepares items.
_PREPARING = "preparing"


@dataclass(frozen=True)
class Lost:
    """In the place of a result: the item's workers died, or took too long."""

    reason: str


@dataclass(eq=False)
class _Item:
    """An item until its result is there.

    Attributes:
        like: What is the same for items that share work.
        at: The worker that prepares it, while none has begun it.
        given: How many workers it was given to.
        killed: How many of them died when they had begun it.
    """

    key: Hashable
    content: Any
    like: Hashable
    at: Any = None
    given: int = 0
    killed: int = 0


@dataclass(frozen=True)
class _Run:
    """An item on a worker.

    Attributes:
        begun: Answered when the worker begins. It may have been dead when it was given the item, which nobody had
            noticed.
        ends: When its time is up, by this machine's clock; None: never.
    """

    worker: Any
    item: _Item
    begun: Any
    ends: float | None

    def is_over(self) -> bool:
        """Whether its time is up."""
        return self.ends is not None and time.monotonic() >= self.ends


class Actors:
    """Workers as Ray actors, one item at a time each; a worker that dies is replaced.

    A worker gets its first item when it is up: on a cluster that still starts machines, or never has room for all the
    workers asked for, the others do the work.

    Where they prepare items, each works off one and prepares the one that it is to have next. A worker that is free
    then gets an item only when its result has been handed back, and what follows from it handed in; but for one that it
    has prepared.

    Args:
        connection: To Ray; whoever made it closes it.
        make: Called in each worker when it starts, with its device ("cpu", "cuda"); gives what works off an item.
        say: Is told when workers are long in coming.
        timeout: Seconds that a worker may take for an item, once it has it; then it is killed and replaced, for what
            hangs in it cannot be stopped.
        prepares: Whether what `make` gives has a method `prepare`, which does beforehand what an item needs, in a
            thread of its own.
        like: What is the same for items that share work: a worker had better get one that is like its last.
    """

    def __init__(
        self,
        connection: Connection,
        make: Callable[[str], Callable[[Any], Any]],
        say: Callable[[str], None] | None = None,
        timeout: float | None = None,
        prepares: bool = False,
        like: Callable[[Any], Hashable] | None = None,
    ) -> None:
        self._ray, self._joined = connection.ray, connection.joined
        found = connection.shares
        self.size = found.workers
        self._say = say or (lambda text: None)
        if found.told:
            self._say(found.told)
        self._asked = f"{self.size} workers with {found.gpus or found.cpus:g} {'GPU' if found.gpus else 'CPU'} each"
        threads: dict[str, Any] = {"concurrency_groups": {_PREPARING: 1}} if prepares else {}
        self._actor: Any = self._ray.remote(num_cpus=found.cpus, num_gpus=found.gpus, **threads)(_Worker)
        self._arguments = (make, "cuda" if found.gpus else "cpu")
        self._prepares = prepares
        self._like = like or (lambda item: None)
        self._queue: deque[_Item] = deque()
        self._starting: dict[Any, Any] = {}
        self._called: set[Any] = set()
        self._idle: deque[Any] = deque()
        self._free: dict[Any, float] = {}
        self._running: dict[Any, _Run] = {}
        self._prepared: dict[Any, _Item] = {}
        self._last: dict[Any, Hashable] = {}
        self._timeout = timeout
        self._died_starting = 0
        for _ in range(self.size):
            self._make()

    def submit(self, key: Hashable, item: Any) -> None:
        """Hand in an item; it waits for a free worker."""
        self._queue.append(_Item(key, item, self._like(item)))
        if not self._prepares:  # else it is seen first what else is handed in
            self._dispatch()

    def wait(self, poll: Callable[[], None] | None = None, every: float = POLL_SECONDS) -> tuple[Hashable, Any]:
        """The next result, or `Lost`, with its item's key, in order of completion.

        Args:
            poll: Called every few seconds meanwhile. What it raises ends the wait; nothing is lost by that.
            every: How many.

        Raises:
            EvoMergeError: what the worker raised; no worker comes up.
            RuntimeError: nothing was submitted.
        """
        from ray.exceptions import RayError, RayTaskError

        silent = 0.0
        self._dispatch()
        while self._running or self._queue:
            if (late := self._late()) is not None:
                return late
            # Workers that come up stand first: they are given work before a result is handed back.
            waiting = [*self._starting, *self._running]
            patience = None if self._running else SILENCE_SECONDS
            timeout = self._until_late(patience if poll is None else every)
            done, _ = self._ray.wait(waiting, num_returns=1, timeout=timeout)
            if poll is not None:
                poll()
            if not done:
                silent += timeout or 0.0
                if patience is not None and silent >= patience:
                    lacks = "`ray status` says what the cluster lacks" if self._joined else "fewer are up sooner"
                    self._say(f"no worker is up yet (asked for {self._asked}; {lacks})")
                    silent = 0.0
                continue
            if done[0] in self._starting:
                self._started_one(done[0])
                continue
            run = self._running.pop(done[0])
            worker, item = run.worker, run.item
            try:
                with _room():
                    result = self._ray.get(done[0])
            except RayTaskError as e:
                self._rest(worker)
                cause = e.cause if isinstance(e.cause, EvoMergeError) else None
                raise (cause or EvoMergeError(f"a worker could not go on: {e}")) from e
            except RayError as e:  # it died, with its machine or alone, or cannot be reached
                self._replace(worker)
                begun = self._was_begun(run)
                item.killed += begun
                if item.killed < TRIES and self._again(item, begun):
                    self._say("a worker died; another one runs what it had")
                    continue
                result = Lost(f"its worker died {item.given} times: {first_line(e)}")
            else:
                self._rest(worker)
            if not self._prepares or worker in self._prepared:
                self._dispatch()
            return item.key, result
        raise RuntimeError("nothing was submitted")

    def recall(self) -> list[Hashable]:
        """Take back the items that no worker has begun, for good. Returns their keys."""
        found = [waiting.key for waiting in self._queue]
        self._queue.clear()
        self._prepared.clear()
        return found

    def _late(self) -> tuple[Hashable, Lost] | None:
        """An item whose time is up; its worker is replaced."""
        late = [reference for reference, run in self._running.items() if run.is_over()]
        if not late:
            return None
        # One that has ended, and only was not looked at yet, was in time.
        ended, _ = self._ray.wait(late, num_returns=len(late), timeout=0)
        for reference in late:
            if reference not in ended:
                run = self._running.pop(reference)
                begun = self._was_begun(run)  # else its machine may be gone, which Ray has not seen
                self._replace(run.worker)
                if not begun and self._again(run.item, begun):
                    continue
                self._dispatch()
                return run.item.key, Lost(f"took longer than its timeout of {self._timeout:g} s")
        return None

    def _until_late(self, timeout: float | None) -> float | None:
        """Seconds to wait: no longer than until the next item's time is up."""
        ends = [run.ends for run in self._running.values() if run.ends is not None]
        left = [max(0.0, min(ends) - time.monotonic())] if ends else []
        return min([*left, *([timeout] if timeout is not None else [])], default=None)

    def close(self) -> None:
        """Stop the workers."""
        for worker in [*self._starting.values(), *self._idle, *(r.worker for r in self._running.values())]:
            self._ray.kill(worker)

    def _make(self) -> None:
        with _room():
            worker = self._actor.remote(*self._arguments)
            self._starting[worker.up.remote()] = worker

    def _started_one(self, reference: Any) -> None:
        """A worker is up, or died on the way: another one then, until it is clear that none will come up."""
        from ray.exceptions import RayError

        worker = self._starting.pop(reference)
        was_up = worker in self._called
        self._called.discard(worker)
        try:
            self._ray.get(reference)
        except RayError as e:
            self._died_starting += not was_up
            if self._died_starting > TRIES * self.size:
                raise EvoMergeError(f"workers die as they start: {first_line(e)}") from e
            self._replace(worker)
        else:
            self._died_starting = 0
            self._rest(worker)
        self._dispatch()

    def _was_begun(self, run: _Run) -> bool:
        """Whether a worker that has died, or does not answer, had begun what it was given."""
        from ray.exceptions import RayError

        try:
            self._ray.get(run.begun, timeout=0.0)
        except RayError:  # a timeout is one too
            return False
        return True

    def _again(self, item: _Item, begun: bool) -> bool:
        """The item goes to another worker, before all others; unless it was given to too many."""
        if not begun:  # others are gone too, perhaps: whoever has nothing to do is asked before it gets something
            self._free.update(dict.fromkeys(self._idle, -math.inf))
        if item.given >= GIVEN:
            return False
        self._queue.appendleft(item)
        self._dispatch()
        return True

    def _rest(self, worker: Any) -> None:
        """It has nothing to do."""
        self._idle.append(worker)
        self._free[worker] = time.monotonic()

    def _replace(self, worker: Any) -> None:
        self._last.pop(worker, None)
        self._free.pop(worker, None)
        if (waiting := self._prepared.pop(worker, None)) is not None:
            waiting.at = None
        # One that only cannot be reached would keep its GPU.
        with contextlib.suppress(Exception):
            self._ray.kill(worker)
        self._make()

    def _dispatch(self) -> None:
        ready = self._ready()
        while self._queue and ready:
            worker, waiting = self._pair(ready)
            ready.remove(worker)
            self._idle.remove(worker)
            self._queue.remove(waiting)
            self._prepared.pop(waiting.at, None)
            self._last[worker] = waiting.like
            waiting.at = None
            waiting.given += 1
            with _room():
                begun = worker.up.remote()  # one call is worked off after the other
                reference = worker.run.remote(waiting.content)
            ends = None if self._timeout is None else time.monotonic() + self._timeout
            self._running[reference] = _Run(worker, waiting, begun, ends)
        if self._prepares:
            self._prepare()

    def _ready(self) -> list[Any]:
        """Those of the idle that may get an item: who had something to do a moment ago.

        Others may be gone, which nobody has noticed, and an item that is handed to one is lost until somebody does. As
        many of them as there are items for are asked, and ready when they answer; first those that had an item like one
        that waits.
        """
        now = time.monotonic()
        stale = [w for w in self._idle if now - self._free[w] > IDLE_SECONDS]
        ready = [w for w in self._idle if now - self._free[w] <= IDLE_SECONDS]
        wanted = {waiting.like for waiting in self._queue} - {None}
        holding = {waiting.at for waiting in self._queue}
        stale.sort(key=lambda w: w not in holding and self._last.get(w) not in wanted)
        for worker in stale[: max(0, len(self._queue) - len(ready) - len(self._called))]:
            self._idle.remove(worker)
            self._called.add(worker)
            with _room():
                self._starting[worker.up.remote()] = worker
        return ready

    def _pair(self, ready: list[Any]) -> tuple[Any, _Item]:
        """Which worker gets which item: one that has it prepared, or had one like it, before the others.

        What a busy worker has prepared is left to it, unless there is nothing else.
        """
        by_like = {like: worker for worker in ready if (like := self._last.get(worker)) is not None}
        for waiting in self._queue:
            if waiting.at in ready:
                return waiting.at, waiting
            if waiting.at is None and waiting.like in by_like:
                return by_like[waiting.like], waiting
        return ready[0], next((w for w in self._queue if w.at is None), self._queue[0])

    def _prepare(self) -> None:
        """Each worker that is busy prepares an item that nobody prepares.

        Not beside one that a worker died of: the one that is prepared may have been what it died of.
        """
        left = iter([w for w in self._queue if w.at is None])
        for run in self._running.values():
            if run.worker in self._prepared or run.item.killed:
                continue
            waiting = next(left, None)
            if waiting is None:
                return
            waiting.at = run.worker
            self._prepared[run.worker] = waiting
            with _room():
                run.worker.prepare.options(concurrency_group=_PREPARING).remote(waiting.content)


@contextlib.contextmanager
def _room() -> Iterator[None]:
    """Inside the block, Ray's errors about a full object store or a full disk behind it become one message."""
    from ray.exceptions import ObjectStoreFullError, OutOfDiskError

    try:
        yield
    except Exception as e:
        for full in (getattr(e, "cause", None), e):  # the cause of what a worker met
            if isinstance(full, ObjectStoreFullError | OutOfDiskError):
                raise EvoMergeError(
                    f"Ray's object store is full ({first_line(full)}): it lies in /dev/shm, and what has no room there "
                    "in Ray's temporary folder; free some of either, and give the same command again"
                ) from e
        raise


class _Worker:
    """The actor's class: makes what it holds when it starts."""

    def __init__(self, make: Callable[[str], Callable[[Any], Any]], device: str) -> None:
        # Raised from __init__, an error would reach the driver as a dead actor without its words.
        self._wrong: EvoMergeError | None = None
        try:
            self._work = make(device)
        except EvoMergeError as e:
            self._wrong = e
        except Exception as e:
            self._wrong = EvoMergeError(f"a worker cannot start: {type(e).__name__}: {e}")

    def up(self) -> None:
        """Answers when it is made."""

    def run(self, item: Any) -> Any:
        if self._wrong is not None:
            raise self._wrong
        return self._work(item)

    def prepare(self, item: Any) -> None:
        if self._wrong is None:
            self._work.prepare(item)  # type: ignore[attr-defined]
