"""Workers that hold a Builder each and score candidates."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Hashable, Mapping
from dataclasses import dataclass
from typing import Protocol

from evomerge.evaluation import EvaluatorFile, saves_models
from evomerge.sources import Source
from evomerge.study.job import Answer, Job, Told
from evomerge.study.stopping import Stop
from evomerge.study.workers.actors import Actors, Lost
from evomerge.study.workers.cluster import Cluster
from evomerge.study.workers.connection import Connection
from evomerge.study.workers.origin import Origin

# Of candidates that take a second, two would be much to wait until it is seen that another process has scored one.
POLL_SECONDS = 0.5


class Pool(Protocol):
    """Runs jobs; `submit` returns at once, `wait` gives the next answer in order of completion.

    Attributes:
        size: Number of workers; more while others have joined.
        device: Kind of device that they run on ("cpu", "cuda").
        ahead: How many jobs beyond that it takes gladly: one, so that no worker waits, or one for each worker, which
            prepares it.
        eager: Whether a worker that is free begins with one of those before its answer is handed back. Else it waits
            for what follows from it, which may go on with the same candidate.
        stop: Whether whoever runs the search wants it to end.
    """

    device: str
    ahead: int
    eager: bool
    stop: Stop

    @property
    def size(self) -> int: ...

    def submit(self, key: Hashable, job: Job) -> None:
        """Hand in a job; it waits for a free worker."""

    def wait(self, poll: Callable[[], None] | None = None) -> tuple[Hashable, Answer]:
        """The next answer; raises RuntimeError where nothing was submitted.

        Args:
            poll: Called now and then meanwhile, where the workers are other processes. What it raises ends the wait.
        """

    def recall(self) -> list[Hashable]:
        """Take back the jobs that no worker has begun, for good. Returns their keys."""

    def close(self) -> None:
        """Stop the workers."""


@dataclass(frozen=True)
class _Making:
    """Makes a Builder on a worker."""

    sources: Mapping[str, Source]
    base: str
    evaluator: EvaluatorFile
    prefix_bytes: int
    gpus: float = 0.0
    origin: Origin | None = None

    def __call__(self, device: str) -> Callable[[Job], Answer]:
        from evomerge.study.builder import Builder

        sources, evaluator = self.sources, self.evaluator
        if self.origin is not None:
            sources, evaluator = self.origin.placed(sources, evaluator)
        # With a GPU the evaluator may say which.
        own = None if device == "cuda" else device
        return Builder(sources, self.base, evaluator, own, self.prefix_bytes, self.gpus)


def _like(job: Job) -> Hashable:
    """Jobs of which this is the same need the same model, unless it is None."""
    return None if job.exported else job.hash


class RayPool:
    """A Builder in each of some Ray actors; see `Actors`.

    Where building and scoring are done by different parts of a machine (on a GPU, or by a command), workers prepare the
    next candidate while they score one.

    Args:
        prefix_bytes: Memory of each worker for the hidden states of paths' common beginnings.
        say: Is told when workers are long in coming, and what they note.
        stop: Whether the search is to end; default: never.
    """

    def __init__(
        self,
        cluster: Cluster,
        sources: Mapping[str, Source],
        base: str,
        evaluator: EvaluatorFile,
        prefix_bytes: int = 0,
        say: Callable[[str], None] | None = None,
        stop: Stop | None = None,
    ) -> None:
        self.stop = stop or Stop()
        connection = self._connection = Connection(cluster)
        try:
            # Ray that was started here has this process's folder, and no other machine.
            origin = Origin(connection, sources, evaluator) if connection.joined else None
            gpus = connection.shares.gpus
            making = _Making(dict(sources), base, evaluator, prefix_bytes, gpus, origin)
            # A model over several GPUs leaves no room for another one beside it.
            overlap = saves_models(evaluator) or 0 < gpus <= 1
            self._actors = Actors(connection, making, say, evaluator.config.killed_after, overlap, _like)
        except BaseException:
            connection.close()
            raise
        self._told = Told(say)
        self.size = self._actors.size
        self.ahead, self.eager = (self.size, False) if overlap else (1, True)
        self.device = "cuda" if self._connection.shares.gpus else "cpu"

    def submit(self, key: Hashable, job: Job) -> None:
        """Hand in a job; see `Pool`."""
        self._actors.submit(key, job)

    def wait(self, poll: Callable[[], None] | None = None) -> tuple[Hashable, Answer]:
        """The next answer; see `Pool`. A candidate whose workers died has failed."""
        key, answer = self._actors.wait(poll, POLL_SECONDS)
        if isinstance(answer, Lost):
            return key, Answer(None, answer.reason)
        self._told.of(answer)
        return key, answer

    def recall(self) -> list[Hashable]:
        """Take back what no worker has begun; see `Pool`."""
        return self._actors.recall()

    def close(self) -> None:
        """Stop the workers, and Ray where this pool started it."""
        self._actors.close()
        self._connection.close()


class LocalPool:
    """One Builder in this process: for `--workers 0`, tests and debugging. Answers come in order of submission.

    What hangs in this process cannot be stopped: an evaluator's `timeout` is not kept, but by one that runs a command.
    """

    size = 1
    ahead = 0
    eager = True

    def __init__(
        self,
        sources: Mapping[str, Source],
        base: str,
        evaluator: EvaluatorFile,
        prefix_bytes: int = 0,
        device: str | None = None,
        say: Callable[[str], None] | None = None,
        stop: Stop | None = None,
    ) -> None:
        from evomerge.study.builder import Builder

        self._builder = Builder(sources, base, evaluator, device, prefix_bytes)
        self.device = self._builder.device
        self._told = Told(say)
        self._queue: deque[tuple[Hashable, Job]] = deque()
        self.stop = stop or Stop()

    def submit(self, key: Hashable, job: Job) -> None:
        """Hand in a job; see `Pool`."""
        self._queue.append((key, job))

    def wait(self, poll: Callable[[], None] | None = None) -> tuple[Hashable, Answer]:
        """Run the next job; see `Pool`."""
        if not self._queue:
            raise RuntimeError("nothing was submitted")
        key, job = self._queue.popleft()
        answer = self._builder.run(job)
        self._told.of(answer)
        return key, answer

    def recall(self) -> list[Hashable]:
        """Take back what was not begun; see `Pool`."""
        found = [key for key, _ in self._queue]
        self._queue.clear()
        return found

    def close(self) -> None:
        """Nothing to stop."""
        self._queue.clear()
