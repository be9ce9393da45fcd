"""Where workers run: Ray on this machine or a cluster that is named, and how its CPUs and GPUs are shared."""

from __future__ import annotations

import contextlib
import math
import os
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from evomerge.errors import InputError


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


class Connection:
    """Ray, started here or joined.

    Attributes:
        ray: The library.
        shares: How many workers there are to be, and what each asks for.
    """

    def __init__(self, cluster: Cluster) -> None:
        """Start Ray on this machine, or join the cluster that is named.

        Raises:
            InputError: none answers there, or the shares asked for are none that it can give.
        """
        address = cluster.address or os.environ.get("RAY_ADDRESS")
        os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
        os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
        if not address:
            # Ray listens on every network interface, except where it is told that machines cannot join.
            os.environ.setdefault("RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER", "0")
        import ray

        self.ray: Any = ray
        self._started = not ray.is_initialized()
        if self._started:
            _connect(ray, cluster, address)
        resources = ray.cluster_resources()
        grows = bool(address) or not self._started
        try:
            self.shares = shares(cluster, resources.get("CPU", 0.0), resources.get("GPU", 0.0), grows=grows)
        except InputError:
            self.close()
            raise

    def close(self) -> None:
        """Stop Ray where it was started here."""
        if self._started:
            self.ray.shutdown()


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
            f"--address {address}: no Ray cluster answers there that takes us ({first_line(e)}); is it the right "
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


def first_line(error: Exception) -> str:
    """The first line of what an error says."""
    return (str(error).strip() or type(error).__name__).splitlines()[0]
