"""Workers for what is no candidate: the passes, alignments and trainings of a fusion. See `evomerge.fusion.workers`."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any

from evomerge.errors import EvoMergeError
from evomerge.study.workers.actors import Actors, Lost
from evomerge.study.workers.cluster import Cluster, Connection

Make = Callable[[str], Callable[[Any], Any]]


class RayTasks:
    """Works off items on Ray actors, made anew for each `run`.

    Args:
        say: Is told when workers are long in coming.
    """

    local = False

    def __init__(self, cluster: Cluster, say: Callable[[str], None] | None = None) -> None:
        self._say = say
        # Kept for all runs: to start Ray takes seconds.
        self._connection = Connection(cluster)
        self.size = self._connection.shares.workers

    def run(
        self, make: Make, items: Sequence[Any], poll: Callable[[], None] | None = None
    ) -> Iterator[tuple[int, Any]]:
        """The number of each item and what became of it, in the order in which they are done.

        Args:
            poll: Called every few seconds meanwhile.

        Raises:
            EvoMergeError: what a worker raised; the workers of an item died.
        """
        actors = Actors(self._connection, make, self._say)
        try:
            for number, item in enumerate(items):
                actors.submit(number, item)
            for _ in items:
                key, result = actors.wait(poll)
                assert isinstance(key, int)
                number = key
                if isinstance(result, Lost):
                    raise EvoMergeError(f"{items[number]}: {result.reason}")
                yield number, result
        finally:
            actors.close()

    def close(self) -> None:
        """Stop Ray where it was started here."""
        self._connection.close()


class LocalTasks:
    """The same in this process, one after the other."""

    local = True
    size = 1

    def __init__(self, device: str) -> None:
        self._device = device

    def run(
        self, make: Make, items: Sequence[Any], poll: Callable[[], None] | None = None
    ) -> Iterator[tuple[int, Any]]:
        """See `RayTasks.run`."""
        if not items:
            return
        work = make(self._device)
        for number, item in enumerate(items):
            yield number, work(item)

    def close(self) -> None:
        """Nothing to stop."""
