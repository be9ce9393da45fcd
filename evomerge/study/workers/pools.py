"""Workers that hold a Builder each and score candidates."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Hashable, Mapping
from dataclasses import dataclass
from typing import Protocol

from evomerge.evaluation import EvaluatorFile
from evomerge.sources import Source
from evomerge.study.job import Answer, Job, Told
from evomerge.study.workers.actors import Actors, Lost
from evomerge.study.workers.cluster import Cluster, Connection


class Pool(Protocol):
    """Runs jobs; `submit` returns at once, `wait` gives the next answer in order of completion.

    Attributes:
        size: Number of workers.
        device: Kind of device that they run on ("cpu", "cuda").
    """

    size: int
    device: str

    def submit(self, key: Hashable, job: Job) -> None:
        """Hand in a job; it waits for a free worker."""

    def wait(self) -> tuple[Hashable, Answer]:
        """The next answer; raises RuntimeError where nothing was submitted."""

    def close(self) -> None:
        """Stop the workers."""


@dataclass(frozen=True)
class _Making:
    """Makes a Builder on a worker."""

    sources: Mapping[str, Source]
    base: str
    evaluator: EvaluatorFile
    prefix_bytes: int

    def __call__(self, device: str) -> Callable[[Job], Answer]:
        from evomerge.study.builder import Builder

        # With a GPU the evaluator may say which.
        own = None if device == "cuda" else device
        return Builder(self.sources, self.base, self.evaluator, own, self.prefix_bytes).run


class RayPool:
    """A Builder in each of some Ray actors; see `Actors`.

    Args:
        prefix_bytes: Memory of each worker for the hidden states of paths' common beginnings.
        say: Is told when workers are long in coming, and what they note.
    """

    def __init__(
        self,
        cluster: Cluster,
        sources: Mapping[str, Source],
        base: str,
        evaluator: EvaluatorFile,
        prefix_bytes: int = 0,
        say: Callable[[str], None] | None = None,
    ) -> None:
        self._connection = Connection(cluster)
        making = _Making(dict(sources), base, evaluator, prefix_bytes)
        self._actors = Actors(self._connection, making, say, timeout=evaluator.config.killed_after)
        self._told = Told(say)
        self.size = self._actors.size
        self.device = "cuda" if self._connection.shares.gpus else "cpu"

    def submit(self, key: Hashable, job: Job) -> None:
        """Hand in a job; see `Pool`."""
        self._actors.submit(key, job)

    def wait(self) -> tuple[Hashable, Answer]:
        """The next answer; see `Pool`. A candidate whose workers died has failed."""
        key, answer = self._actors.wait()
        if isinstance(answer, Lost):
            return key, Answer(None, answer.reason)
        self._told.of(answer)
        return key, answer

    def close(self) -> None:
        """Stop the workers, and Ray where this pool started it."""
        self._actors.close()
        self._connection.close()


class LocalPool:
    """One Builder in this process: for `--workers 0`, tests and debugging. Answers come in order of submission.

    What hangs in this process cannot be stopped: an evaluator's `timeout` is not kept, but by one that runs a command.
    """

    size = 1

    def __init__(
        self,
        sources: Mapping[str, Source],
        base: str,
        evaluator: EvaluatorFile,
        prefix_bytes: int = 0,
        device: str | None = None,
        say: Callable[[str], None] | None = None,
    ) -> None:
        from evomerge.study.builder import Builder

        self._builder = Builder(sources, base, evaluator, device, prefix_bytes)
        self.device = self._builder.device
        self._told = Told(say)
        self._queue: deque[tuple[Hashable, Job]] = deque()

    def submit(self, key: Hashable, job: Job) -> None:
        """Hand in a job; see `Pool`."""
        self._queue.append((key, job))

    def wait(self) -> tuple[Hashable, Answer]:
        """Run the next job; see `Pool`."""
        if not self._queue:
            raise RuntimeError("nothing was submitted")
        key, job = self._queue.popleft()
        answer = self._builder.run(job)
        self._told.of(answer)
        return key, answer

    def close(self) -> None:
        """Nothing to stop."""
        self._queue.clear()
