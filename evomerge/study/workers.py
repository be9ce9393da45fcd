"""Ray actors that hold a Builder each. The only importer of Ray."""

from __future__ import annotations

import contextlib
import math
import os
from collections import deque
from collections.abc import Callable, Hashable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Protocol

from evomerge.errors import EvoMergeError, InputError
from evomerge.evaluation import EvaluatorFile
from evomerge.sources import Source
from evomerge.study.job import Answer, Job

# A candidate whose worker died is run elsewhere; one that kills a second worker is recorded as failed.
TRIES = 2
# How long nothing may run before it is said that the workers are still to come.
SILENCE_SECONDS = 60.0


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


@dataclass(frozen=True)
class Shares:
    """How many workers, and what each of them asks Ray for."""

    workers: int
    cpus: float
    gpus: float


def shares(cluster: Cluster, cpus: float, gpus: float, *, grows: bool) -> Shares:
    """Divide what a cluster has.

    Args:
        cpus: CPUs that the cluster has now.
        gpus: GPUs that it has now.
        grows: Whether machines may join (a cluster that was named: an autoscaler starts them when they are asked for);
            False for Ray on this machine alone.

    Raises:
        InputError: the share of a GPU is none that Ray gives, or more than will ever be there; or the number of
            workers was left to a cluster that has nothing yet.
    """
    share = cluster.gpus_per_worker if cluster.gpus_per_worker is not None else (1.0 if gpus else 0.0)
    if not math.isfinite(share) or share < 0 or (share > 1 and share != int(share)):
        raise InputError(f"--gpus-per-worker {share:g}: expected 0, a share up to 1, or a whole number of GPUs")
    if share > gpus and not grows:
        raise InputError(f"--gpus-per-worker {share:g}: this machine has {gpus:g} GPUs")
    room = int(gpus // share) if share else int(cpus)
    if cluster.workers is None and grows and room < 1:
        missing = "no GPU" if share else "neither CPU nor GPU"
        raise InputError(
            f"--address {cluster.address or 'of this job'}: the cluster has {missing} yet, so the number of workers "
            "cannot be read from it; say what to ask for: --workers N, with --gpus-per-worker 1 where each needs a GPU"
        )
    workers = cluster.workers or max(1, room)
    if share:
        return Shares(workers, 0.0, share)
    # More workers than CPUs share what this machine has; from a cluster each asks for a whole one, so that it grows.
    return Shares(workers, 1.0 if grows else min(1.0, cpus / workers), 0.0)


class RayPool:
    """Workers as Ray actors, one job at a time each; a worker that dies is replaced.

    A worker gets its first job when it is up: on a cluster that still starts machines, or never has room for all the
    workers asked for, the others do the work.

    Args:
        prefix_bytes: Memory of each worker for the hidden states of paths' common beginnings.
        say: Is told when workers are long in coming.
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
        address = cluster.address or os.environ.get("RAY_ADDRESS")
        os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
        os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
        if not address:
            # Ray listens on every network interface, except where it is told that machines cannot join.
            os.environ.setdefault("RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER", "0")
        import ray

        self._ray = ray
        self._started = not ray.is_initialized()
        if self._started:
            _connect(ray, cluster, address)
        resources = ray.cluster_resources()
        grows = bool(address) or not self._started
        try:
            found = shares(cluster, resources.get("CPU", 0.0), resources.get("GPU", 0.0), grows=grows)
        except InputError:
            if self._started:
                ray.shutdown()
            raise
        self.size = found.workers
        self._say = say or (lambda text: None)
        self._asked = f"{self.size} workers with {found.gpus or found.cpus:g} {'GPU' if found.gpus else 'CPU'} each"
        self._actor: Any = ray.remote(num_cpus=found.cpus, num_gpus=found.gpus)(_Worker)
        self._arguments = (dict(sources), base, evaluator, None if found.gpus else "cpu", prefix_bytes)
        self._queue: deque[tuple[Hashable, Job, int]] = deque()
        self._starting: dict[Any, Any] = {}
        self._idle: deque[Any] = deque()
        self._running: dict[Any, tuple[Any, Hashable, Job, int]] = {}
        self._died_starting = 0
        for _ in range(self.size):
            self._make()

    def submit(self, key: Hashable, job: Job) -> None:
        """Hand in a job; see `Pool`."""
        self._queue.append((key, job, 1))
        self._dispatch()

    def wait(self) -> tuple[Hashable, Answer]:
        """The next answer; see `Pool`."""
        from ray.exceptions import RayError, RayTaskError

        while self._running or self._queue:
            # Workers that come up stand first: they are given work before an answer is handed back.
            waiting = [*self._starting, *self._running]
            done, _ = self._ray.wait(waiting, num_returns=1, timeout=None if self._running else SILENCE_SECONDS)
            if not done:
                self._say(f"no worker is up yet (asked for {self._asked}; `ray status` says what the cluster lacks)")
                continue
            if done[0] in self._starting:
                self._started_one(done[0])
                continue
            worker, key, job, tries = self._running.pop(done[0])
            try:
                answer = self._ray.get(done[0])
            except RayTaskError as e:
                self._idle.append(worker)
                cause = e.cause if isinstance(e.cause, EvoMergeError) else None
                raise (cause or EvoMergeError(f"a worker could not go on: {e}")) from e
            except RayError as e:  # it died, with its machine or alone, or cannot be reached
                self._replace(worker)
                if tries < TRIES:
                    self._queue.appendleft((key, job, tries + 1))
                    self._dispatch()
                    continue
                answer = Answer(None, f"its worker died {TRIES} times: {_first_line(e)}")
            else:
                self._idle.append(worker)
            self._dispatch()
            return key, answer
        raise RuntimeError("nothing was submitted")

    def close(self) -> None:
        """Stop the workers, and Ray where this pool started it."""
        for worker in [*self._starting.values(), *self._idle, *(w for w, *_ in self._running.values())]:
            self._ray.kill(worker)
        if self._started:
            self._ray.shutdown()

    def _make(self) -> None:
        worker = self._actor.remote(*self._arguments)
        self._starting[worker.up.remote()] = worker

    def _started_one(self, reference: Any) -> None:
        """A worker is up, or died on the way: another one then, until it is clear that none will come up."""
        from ray.exceptions import RayError

        worker = self._starting.pop(reference)
        try:
            self._ray.get(reference)
        except RayError as e:
            self._died_starting += 1
            if self._died_starting > TRIES * self.size:
                raise EvoMergeError(f"workers die as they start: {_first_line(e)}") from e
            self._replace(worker)
        else:
            self._died_starting = 0
            self._idle.append(worker)
            self._dispatch()

    def _replace(self, worker: Any) -> None:
        # One that only cannot be reached would keep its GPU.
        with contextlib.suppress(Exception):
            self._ray.kill(worker)
        self._make()

    def _dispatch(self) -> None:
        while self._queue and self._idle:
            key, job, tries = self._queue.popleft()
            worker = self._idle.popleft()
            self._running[worker.run.remote(job)] = (worker, key, job, tries)


class _Worker:
    """The actor's class: makes its Builder when it starts."""

    def __init__(
        self,
        sources: Mapping[str, Source],
        base: str,
        evaluator: EvaluatorFile,
        device: str | None,
        prefix_bytes: int,
    ) -> None:
        from evomerge.study.builder import Builder

        # Raised from __init__, an error would reach the driver as a dead actor without its words.
        self._wrong: EvoMergeError | None = None
        try:
            self._builder = Builder(sources, base, evaluator, device, prefix_bytes)
        except EvoMergeError as e:
            self._wrong = e
        except Exception as e:
            self._wrong = EvoMergeError(f"a worker cannot start: {type(e).__name__}: {e}")

    def up(self) -> None:
        """Answers when the Builder is made."""

    def run(self, job: Job) -> Answer:
        if self._wrong is not None:
            raise self._wrong
        return self._builder.run(job)


class LocalPool:
    """One Builder in this process: for `--workers 0`, tests and debugging. Answers come in order of submission."""

    size = 1

    def __init__(
        self,
        sources: Mapping[str, Source],
        base: str,
        evaluator: EvaluatorFile,
        prefix_bytes: int = 0,
        device: str | None = None,
    ) -> None:
        from evomerge.study.builder import Builder

        self._builder = Builder(sources, base, evaluator, device, prefix_bytes)
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


def _connect(ray: Any, cluster: Cluster, address: str | None) -> None:
    """Join the cluster that was named, or the job's own; else start Ray on loopback.

    Raises:
        InputError: none answers there, or it does not take us.
    """
    import logging

    from ray.exceptions import RayError

    quiet = {"logging_level": logging.ERROR, "log_to_driver": False}
    if not address:
        cpus = max(cluster.workers or 0, os.cpu_count() or 1)
        # "local": without it Ray would join one that somebody started on this machine.
        ray.init(address="local", num_cpus=cpus, include_dashboard=False, **quiet)
        return
    _check_answers(address)
    try:
        # One attempt: by itself Ray tries twenty times, which takes up to a quarter of an hour.
        with _environment("RAY_gcs_server_port_wait_time_s", "1"):
            ray.init(address=address, **quiet)
    except (OSError, ValueError, RuntimeError, RayError) as e:
        raise InputError(
            f"--address {address}: no Ray cluster answers there that takes us ({_first_line(e)}); is it the right "
            "address, is Ray of the same version, is the token the cluster's (RAY_AUTH_TOKEN_PATH, ~/.ray/auth_token)?"
        ) from None


@contextlib.contextmanager
def _environment(name: str, default: str) -> Iterator[None]:
    """Set a variable for a while, unless the user has."""
    before = os.environ.get(name)
    os.environ.setdefault(name, default)
    try:
        yield
    finally:
        if before is None:
            del os.environ[name]


def _check_answers(address: str) -> None:
    """Raise InputError where nobody listens at HOST:PORT; "auto" and what cannot be read is left to Ray."""
    import socket

    host, _, port = address.removeprefix("ray://").split("/")[0].rpartition(":")
    if not host or not port.isdigit():
        return
    try:
        socket.create_connection((host.strip("[]"), int(port)), timeout=15).close()
    except (OSError, OverflowError) as e:
        reason = getattr(e, "strerror", None) or str(e)
        raise InputError(f"--address {address}: no Ray cluster answers there ({reason})") from None


def _first_line(error: Exception) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0]
