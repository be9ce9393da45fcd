"""Workers for what is no candidate: the passes, alignments and trainings of a fusion. See `evomerge.fusion.workers`."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from evomerge.errors import EvoMergeError
from evomerge.merging.allocation import release
from evomerge.study.workers.actors import Actors, Lost
from evomerge.study.workers.cluster import Cluster
from evomerge.study.workers.connection import Connection

Make = Callable[[str], Callable[[Any], Any]]


class RayTasks:
    """Works off items on Ray actors. They stay from one `run` to the next: to start one takes seconds, most of them the
    imports.

    Args:
        say: Is told when workers are long in coming.
    """

    local = False

    def __init__(self, cluster: Cluster, say: Callable[[str], None] | None = None) -> None:
        self._say = say
        self._connection = Connection(cluster)
        self._actors: Actors | None = None
        self._runs = 0
        self.size = self._connection.shares.workers
        self.device = "cuda" if self._connection.shares.gpus else "cpu"
        self.gpus = self._connection.shares.gpus

    def run(
        self, make: Make, items: Sequence[Any], poll: Callable[[], None] | None = None
    ) -> Iterator[tuple[int, Any]]:
        """The number of each item and what became of it, in the order in which they are done.

        Args:
            poll: Called every few seconds meanwhile.

        Raises:
            EvoMergeError: what a worker raised; the workers of an item died.
        """
        if not items:
            return
        self._runs += 1
        actors = self._actors = self._actors or Actors(self._connection, _AnyTask, self._say)
        shared = self._connection.ray.put(make)  # once for all items: it may hold whole vocabulary maps
        left = len(items)
        try:
            for number, item in enumerate(items):
                actors.submit(number, _Item(self._runs, [shared], item))
            while left:
                key, result = actors.wait(poll)
                assert isinstance(key, int)
                if isinstance(result, Lost):
                    raise EvoMergeError(f"{_words(items[key], key, len(items))}: {result.reason}")
                left -= 1
                yield key, result
        finally:
            if left:  # what is still running is for nobody any more
                actors.close()
                self._actors = None

    def close(self) -> None:
        """Stop the workers, and Ray where it was started here."""
        if self._actors is not None:
            self._actors.close()
        self._connection.close()


def _words(item: Any, number: int, count: int) -> str:
    """What an item is about, for messages: names and numbers of it, where it is a tuple of such."""
    parts = item if isinstance(item, tuple) else ()
    found = ", ".join(str(p) for p in parts if isinstance(p, str | int))
    return found or f"item {number + 1} of {count}"


@dataclass(frozen=True)
class _Item:
    """One item of one run.

    Attributes:
        make: Ray's reference to what makes the run's work, in a list, so that it crosses as it is.
    """

    run: int
    make: list[Any]
    item: Any


class _AnyTask:
    """In a worker: works off items of one run after another, and lets go of what it held for the run before."""

    def __init__(self, device: str) -> None:
        self._device = device
        self._run = 0
        self._work: Callable[[Any], Any] | None = None

    def __call__(self, asked: _Item) -> Any:
        import ray

        if asked.run != self._run or self._work is None:
            self._work = None
            release()
            self._work = ray.get(asked.make[0])(self._device)
            self._run = asked.run
        return self._work(asked.item)


class LocalTasks:
    """The same in this process, one after the other."""

    local = True
    size = 1

    def __init__(self, device: str) -> None:
        self.device = device

    def run(
        self, make: Make, items: Sequence[Any], poll: Callable[[], None] | None = None
    ) -> Iterator[tuple[int, Any]]:
        """See `RayTasks.run`."""
        if not items:
            return
        work: Callable[[Any], Any] | None = make(self.device)
        try:
            for number, item in enumerate(items):
                assert work is not None
                yield number, work(item)
        finally:
            work = None
            release()

    def close(self) -> None:
        """Nothing to stop."""
