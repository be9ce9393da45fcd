"""Where workers on other machines get files from: an actor on the driver's machine, through Ray's object store.

Files go in pieces, a few at a time, so that neither the object store nor a worker ever holds a whole one. Nothing is
read or hashed before a worker on another machine asks. Where the driver is outside of the cluster (ray://), the
cluster's head receives the files from it first.
"""

from __future__ import annotations

import queue
import threading
from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from evomerge.errors import EvoMergeError, SourceError
from evomerge.evaluation import EvaluatorFile
from evomerge.sources import Source
from evomerge.study.staging import Folder, Listed, listed, manifest, placed, stage
from evomerge.study.workers.connection import Connection

PIECE = 16 << 20
# Pieces of a file that are under way at a time.
AHEAD = 2
# Workers that are answered at a time.
THREADS = 8
_HEAD = "node:__internal_head__"


class Origin:
    """What a worker needs to have sources and evaluator where it runs. It is sent to each of them.

    Args:
        connection: To Ray. Where no worker can be on another machine there is no actor.
    """

    def __init__(self, connection: Connection, sources: Mapping[str, Source], evaluator: EvaluatorFile) -> None:
        ray = connection.ray
        self._listed = listed(sources, evaluator)
        self._node: str | None = None
        self._actor: Any = None
        if not connection.several:
            return
        make = ray.remote(num_cpus=0, num_gpus=0, max_restarts=-1, max_task_retries=-1, max_concurrency=THREADS)(_Files)
        if connection.client:
            folders = manifest(self._listed, sources)
            self._actor = make.options(resources={_HEAD: 0.001}, max_restarts=0, max_task_retries=0).remote(folders)
            _hand_over(ray, self._actor, folders)
        else:
            from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

            self._node = ray.get_runtime_context().get_node_id()
            here = NodeAffinitySchedulingStrategy(self._node, soft=False)
            for source in sources.values():
                source.content_hash()  # known by now; it goes with the source
            # The actor has another current folder.
            absolute, _ = placed(self._listed, [f.home for f in self._listed], sources, evaluator)
            self._actor = make.options(scheduling_strategy=here).remote(None, self._listed, absolute)

    def placed(
        self, sources: Mapping[str, Source], evaluator: EvaluatorFile
    ) -> tuple[dict[str, Source], EvaluatorFile]:
        """On a worker: sources and evaluator as they lie on its machine, once they do.

        Raises:
            EvoMergeError: they cannot be had, or are not what they should be.
        """
        import ray

        context = ray.get_runtime_context()
        if self._actor is None or context.get_node_id() == self._node:
            return placed(self._listed, [f.home for f in self._listed], sources, evaluator)
        folders: tuple[Folder, ...] = _answer(ray, self._actor.folders.remote())
        machine = f"machine {ray.util.get_node_ip_address()}"
        places = stage(folders, lambda f, n: _pull(ray, self._actor, f, n, folders[f].files[n].bytes), machine)
        return placed(self._listed, places, sources, evaluator)


class _Files:
    """The actor: reads the files that it was made for, and no others.

    Args:
        folders: With their hashes; None: worked out when they are asked for.
        listed: What they are worked out from.
        sources: Whose content must still be what it was.
    """

    def __init__(
        self,
        folders: tuple[Folder, ...] | None,
        listed: Sequence[Listed] = (),
        sources: Mapping[str, Source] | None = None,
    ) -> None:
        self._folders = folders
        self._listed, self._sources = listed, sources or {}
        self._places: list[Path] | None = None
        self._lock = threading.Lock()
        self._asked: queue.Queue[tuple[int, int, int]] = queue.Queue()
        self._given: queue.Queue[Any] = queue.Queue()

    def folders(self) -> tuple[Folder, ...]:
        """Every folder, with the hash of each file."""
        with self._lock:
            if self._folders is None:
                self._folders = manifest(self._listed, self._sources)
        return self._folders

    def read(self, folder: int, file: int, start: int) -> Any:
        """A piece of a file, by the numbers of both: `PIECE` bytes, or what is left."""
        found = self.folders()[folder]
        return _read(found, self._places[folder] if self._places is not None else found.listed.home, file, start)

    def receive(self) -> None:
        """For a driver outside of the cluster: find the folders on this machine, or take their files from it."""
        self._places = stage(self.folders(), self._asking, "the cluster's head")

    def _asking(self, folder: int, file: int) -> Iterator[Any]:
        for start in range(0, self.folders()[folder].files[file].bytes, PIECE):
            self._asked.put((folder, file, start))
            yield memoryview(self._given.get())

    def wanted(self) -> tuple[int, int, int] | None:
        """Folder, file and start of the piece that `receive` waits for; None where after a moment there is none."""
        try:
            return self._asked.get(timeout=1.0)
        except queue.Empty:
            return None

    def give(self, piece: Any) -> None:
        """Hand over the piece that was wanted."""
        self._given.put(piece)


def _hand_over(ray: Any, actor: Any, folders: Sequence[Folder]) -> None:
    """From a driver outside of the cluster: give the head what it does not find on its machine."""
    received = actor.receive.remote()
    while not ray.wait([received], timeout=0)[0]:
        wanted = _answer(ray, actor.wanted.remote())
        if wanted is not None:
            folder, file, start = wanted
            _answer(ray, actor.give.remote(_read(folders[folder], folders[folder].listed.home, file, start)))
    _answer(ray, received)


def _read(folder: Folder, home: Path, file: int, start: int) -> Any:
    """A piece of a file as an array of bytes, which Ray's object store takes and gives without a copy."""
    path, size = home / folder.files[file].name, folder.files[file].bytes
    try:
        return np.fromfile(path, np.uint8, min(PIECE, size - start), offset=start)
    except OSError as e:
        raise SourceError(f"{path}: cannot be read ({e.strerror or e})") from None


def _pull(ray: Any, actor: Any, folder: int, file: int, size: int) -> Iterator[Any]:
    """The pieces of a file, in order; the next ones are on their way meanwhile."""
    starts = iter(range(0, size, PIECE))
    coming: deque[Any] = deque()
    while True:
        while len(coming) < AHEAD and (start := next(starts, None)) is not None:
            coming.append(actor.read.remote(folder, file, start))
        if not coming:
            return
        yield memoryview(_answer(ray, coming.popleft()))


def _answer(ray: Any, reference: Any) -> Any:
    """What an actor answers, or the error of ours that it raised."""
    from ray.exceptions import RayError, RayTaskError

    try:
        return ray.get(reference)
    except RayTaskError as e:
        if isinstance(e.cause, EvoMergeError):
            raise e.cause from None
        raise EvoMergeError(f"the driver's machine could not send a file: {e}") from e
    except RayError as e:
        raise EvoMergeError(f"the driver's machine could not send a file: {type(e).__name__}") from e
