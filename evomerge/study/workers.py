"""Ray actors that hold a Builder each. The only importer of Ray."""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Hashable, Mapping
from dataclasses import dataclass
from typing import Any, Protocol

from evomerge.errors import EvoMergeError, InputError
from evomerge.evaluation import EvaluatorFile
from evomerge.sources import Source
from evomerge.study.job import Answer, Job

# A candidate whose worker died is run elsewhere; one that kills a second worker is recorded as failed.
TRIES = 2


class Pool(Protocol):
    """Runs jobs; `submit` returns at once, `wait` gives the next answer in order of completion."""

    size: int

    def submit(self, key: Hashable, job: Job) -> None:
        """Hand in a job; it waits for a free worker."""

    def wait(self) -> tuple[Hashable, Answer]:
        """The next answer; raises RuntimeError where nothing was submitted."""

    def close(self) -> None:
        """Stop the workers."""


@dataclass(frozen=True)
class Cluster:
    """Where the workers run.

    Attributes:
        address: Ray's address ("auto", "ray://HOST:PORT"); None starts Ray on this machine.
        workers: How many; None: one per GPU, or per CPU where there is none.
        gpus_per_worker: GPU share of each worker; None: 1 where the cluster has GPUs, else 0.
    """

    address: str | None = None
    workers: int | None = None
    gpus_per_worker: float | None = None


class RayPool:
    """Workers as Ray actors, one job at a time each; a worker that dies is replaced."""

    def __init__(self, cluster: Cluster, sources: Mapping[str, Source], base: str, evaluator: EvaluatorFile) -> None:
        os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
        os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
        import ray

        self._ray = ray
        self._started = not ray.is_initialized()
        if self._started:
            _connect(ray, cluster)
        gpus = ray.cluster_resources().get("GPU", 0.0)
        share = cluster.gpus_per_worker if cluster.gpus_per_worker is not None else (1.0 if gpus else 0.0)
        if share > gpus:
            raise InputError(f"--gpus-per-worker {share:g}: the cluster has {gpus:g} GPUs")
        cpus = ray.cluster_resources().get("CPU", 1.0)
        self.size = cluster.workers or max(1, int(gpus // share if share else cpus))
        options: dict[str, Any] = {"num_cpus": 0 if share else min(1.0, cpus / self.size), "num_gpus": share}
        self._actor = ray.remote(**options)(_Worker)
        self._arguments = (dict(sources), base, evaluator, None if share else "cpu")
        self._idle = deque(self._make() for _ in range(self.size))
        self._queue: deque[tuple[Hashable, Job, int]] = deque()
        self._running: dict[Any, tuple[Any, Hashable, Job, int]] = {}

    def submit(self, key: Hashable, job: Job) -> None:
        """Hand in a job; see `Pool`."""
        self._queue.append((key, job, 1))
        self._dispatch()

    def wait(self) -> tuple[Hashable, Answer]:
        """The next answer; see `Pool`."""
        from ray.exceptions import RayActorError, RayTaskError

        while self._running:
            done, _ = self._ray.wait(list(self._running), num_returns=1)
            worker, key, job, tries = self._running.pop(done[0])
            try:
                answer = self._ray.get(done[0])
            except RayActorError as e:
                self._idle.append(self._make())
                if tries < TRIES:
                    self._queue.appendleft((key, job, tries + 1))
                    self._dispatch()
                    continue
                answer = Answer(None, f"its worker died {TRIES} times: {str(e).strip().splitlines()[0]}")
            except RayTaskError as e:
                cause = e.cause if isinstance(e.cause, EvoMergeError) else None
                raise (cause or EvoMergeError(f"a worker could not go on: {e}")) from e
            else:
                self._idle.append(worker)
            self._dispatch()
            return key, answer
        raise RuntimeError("nothing was submitted")

    def close(self) -> None:
        """Stop the workers, and Ray where this pool started it."""
        for worker in [*self._idle, *(w for w, *_ in self._running.values())]:
            self._ray.kill(worker)
        if self._started:
            self._ray.shutdown()

    def _make(self) -> Any:
        return self._actor.remote(*self._arguments)

    def _dispatch(self) -> None:
        while self._queue and self._idle:
            key, job, tries = self._queue.popleft()
            worker = self._idle.popleft()
            self._running[worker.run.remote(job)] = (worker, key, job, tries)


class _Worker:
    """The actor's class: makes its Builder when it starts."""

    def __init__(self, sources: Mapping[str, Source], base: str, evaluator: EvaluatorFile, device: str | None) -> None:
        from evomerge.study.builder import Builder

        # Raised from __init__, an error would reach the driver as a dead actor without its words.
        self._wrong: EvoMergeError | None = None
        try:
            self._builder = Builder(sources, base, evaluator, device)
        except EvoMergeError as e:
            self._wrong = e
        except Exception as e:
            self._wrong = EvoMergeError(f"a worker cannot start: {type(e).__name__}: {e}")

    def run(self, job: Job) -> Answer:
        if self._wrong is not None:
            raise self._wrong
        return self._builder.run(job)


class LocalPool:
    """One Builder in this process: for `--workers 0`, tests and debugging. Answers come in order of submission."""

    size = 1

    def __init__(
        self, sources: Mapping[str, Source], base: str, evaluator: EvaluatorFile, device: str | None = None
    ) -> None:
        from evomerge.study.builder import Builder

        self._builder = Builder(sources, base, evaluator, device)
        self._queue: deque[tuple[Hashable, Job]] = deque()

    def submit(self, key: Hashable, job: Job) -> None:
        """Hand in a job; see `Pool`."""
        self._queue.append((key, job))

    def wait(self) -> tuple[Hashable, Answer]:
        """Run the next job; see `Pool`."""
        if not self._queue:
            raise RuntimeError("nothing was submitted")
        key, job = self._queue.popleft()
        return key, self._builder.run(job)

    def close(self) -> None:
        """Nothing to stop."""
        self._queue.clear()


def _connect(ray: Any, cluster: Cluster) -> None:
    """Join the cluster that was named, or the job's own; else start Ray on loopback."""
    import logging

    quiet = {"logging_level": logging.ERROR, "log_to_driver": False}
    address = cluster.address or os.environ.get("RAY_ADDRESS")
    try:
        if address:
            ray.init(address=address, **quiet)
        else:
            cpus = max(cluster.workers or 0, os.cpu_count() or 1)
            ray.init(num_cpus=cpus, include_dashboard=False, **quiet)
    except (ConnectionError, ValueError, TimeoutError) as e:
        raise InputError(f"--address {address}: no Ray cluster answers there ({str(e).splitlines()[0]})") from None
