"""Ray, started here on loopback or joined; what does not answer is told at once, in one line."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import socket
import threading
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

from evomerge.errors import EvoMergeError, InputError
from evomerge.study.workers.cluster import Cluster, Growth, Node, crowded, shares

# Seconds that a cluster has to answer.
ANSWER_SECONDS = 10.0
CLIENT = "ray://"
# Any call that Ray's head (its GCS), or its client server, answers at once, with an empty request.
_GCS_CALL = "/ray.rpc.NodeInfoGcsService/GetClusterId"
_CLIENT_CALL = "/ray.rpc.RayletDriver/ClusterInfo"
# Names that Ray's monitor gives machines which no autoscaler started.
_UNMANAGED = "node_"
_STATUS = "__autoscaling_status"
_GROUP = "ray.io/node-group"
# Ray listens on every network interface, except where it is told that machines cannot join.
_CLUSTERS = "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER"


class Connection:
    """Ray, started here or joined.

    Attributes:
        ray: The library.
        shares: How many workers there are to be, and what each asks for.
        joined: Whether it is a cluster that somebody else started.
        several: Whether workers may come to run on other machines than this process.
        client: Whether this process is outside of the cluster (ray://).
    """

    def __init__(self, cluster: Cluster) -> None:
        """Start Ray on this machine, or join the cluster that is named.

        Raises:
            InputError: none answers there, it does not take us, or the shares asked for are none that it can give.
        """
        address = cluster.address or os.environ.get("RAY_ADDRESS")
        os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
        os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
        if not address:
            os.environ.setdefault(_CLUSTERS, "0")
        import ray

        self.ray: Any = ray
        self._started = not ray.is_initialized()
        self._open_to_all: bool | None = None
        if self._started:
            if not address:
                self._keep_here()
            _forget_token()
            with _own_handler():
                _connect(ray, cluster, address)
        try:
            self.client = bool(ray.util.client.ray.is_connected())
            nodes = [n for n in ray.nodes() if n["Alive"]]
            self.joined = bool(address) or not self._started
            growth = _growth(nodes) if self.joined else Growth.NONE
            self.several = self.joined and (
                self.client or len(nodes) > 1 or growth is Growth.AUTOSCALER
            )
            sizes = [Node(n["Resources"].get("CPU", 0.0), n["Resources"].get("GPU", 0.0)) for n in nodes]
            self.shares = shares(cluster, sizes, growth)
            if not self.joined and not self.shares.gpus:
                # Ray that was started here was told of as many CPUs as there are to be workers.
                self.shares = replace(self.shares, told=crowded(self.shares.workers, os.cpu_count() or 1))
        except BaseException:
            self.close()
            raise

    def close(self) -> None:
        """Stop Ray where it was started here."""
        if self._started:
            self.ray.shutdown()
        if self._open_to_all is not None:
            self._constants().ENABLE_RAY_CLUSTER, self._open_to_all = self._open_to_all, None

    def _keep_here(self) -> None:
        """Have Ray listen on loopback in a process that had imported it before: it reads the variable on import."""
        constants = self._constants()
        self._open_to_all = bool(constants.ENABLE_RAY_CLUSTER)
        constants.ENABLE_RAY_CLUSTER = os.environ[_CLUSTERS].lower() in ("1", "true")

    @staticmethod
    def _constants() -> Any:
        from ray._private import ray_constants

        return ray_constants


def _forget_token() -> None:
    """Have Ray read the token again: it keeps what this process had for another cluster, or before it was put right."""
    try:
        from ray._raylet import AuthenticationTokenLoader  # type: ignore[attr-defined]  # its stubs lack it
    except ImportError:  # another version of Ray has it elsewhere
        return
    AuthenticationTokenLoader.instance().reset_cache()


def _growth(nodes: list[dict[str, Any]]) -> Growth:
    """Whether an autoscaler starts machines here; Ray does not say so itself.

    Machines of an autoscaler have a type: as a label (KubeRay, and Ray's second autoscaler), or in the report of the
    first one. Where nobody starts machines, that report calls each by its number.
    """
    from ray.experimental.internal_kv import _internal_kv_get

    if any(n.get("Labels", {}).get(_GROUP) for n in nodes):
        return Growth.AUTOSCALER
    with contextlib.suppress(ValueError, TypeError, AttributeError, KeyError):
        active = json.loads(_internal_kv_get(_STATUS))["autoscaler_report"]["active_nodes"]
        if not any(f"{_UNMANAGED}{n['NodeID']}" in active for n in nodes):
            return Growth.AUTOSCALER
    return Growth.UNKNOWN


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
        try:
            ray.init(address="local", num_cpus=cpus, include_dashboard=False, **quiet)
        except Exception as e:  # Ray raises Exception itself where the machine is too busy
            raise EvoMergeError(
                f"Ray did not start on this machine ({_one_line(e)[:400]}); where it is busy give the same command "
                "again, or do without Ray: --workers 0"
            ) from e
        return
    try:
        _check_answers(address)
        # One attempt: by itself Ray tries twenty times, which takes up to a quarter of an hour.
        with _environment("RAY_gcs_server_port_wait_time_s", "1"):
            ray.init(address=address, **quiet)
    except InputError:
        raise
    except (OSError, ValueError, RuntimeError, RayError) as e:
        raise InputError(f"--address {address}: {_reason(e)}") from None


@contextlib.contextmanager
def _own_handler() -> Iterator[None]:
    """Keep who asked to be told of SIGTERM: Ray puts in its place what ends the process, whatever is under way."""
    before = signal.getsignal(signal.SIGTERM)
    try:
        yield
    finally:
        if callable(before) and threading.current_thread() is threading.main_thread():
            signal.signal(signal.SIGTERM, before)


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
    """Ask whether Ray is at HOST:PORT and takes our token; "auto" and what cannot be read is left to Ray.

    Ray itself takes half a minute and more to give up, and does not say why.

    Raises:
        InputError: nobody listens there, it is no Ray, or it does not take us.
    """
    host, _, port = address.removeprefix(CLIENT).split("/")[0].rpartition(":")
    if not host or not port.isdigit():
        if "://" not in address and address not in ("auto", "local"):
            raise InputError(
                f"--address {address}: expected HOST:PORT of Ray's head (its port is 6379 by default), "
                "ray://HOST:10001, or auto"
            )
        return
    try:
        socket.create_connection((host.strip("[]"), int(port)), timeout=ANSWER_SECONDS).close()
    except (OSError, OverflowError) as e:
        reason = getattr(e, "strerror", None) or str(e)
        raise InputError(f"--address {address}: no Ray cluster answers there ({reason})") from None
    try:
        import grpc
        from ray._private.grpc_utils import init_grpc_channel
    except ImportError:  # another version of Ray has them elsewhere, and says itself what is wrong
        return
    is_client = address.startswith(CLIENT)
    channel = init_grpc_channel(f"{host}:{port}")
    try:
        channel.unary_unary(_CLIENT_CALL if is_client else _GCS_CALL)(b"", timeout=ANSWER_SECONDS)
    except grpc.RpcError as e:
        found = _refusal(e.code().name, is_client)
        if found is not None:
            raise InputError(f"--address {address}: {found}") from None
    finally:
        channel.close()


def _refusal(code: str, is_client: bool) -> str | None:
    """What it means that a call to Ray ended with a code of gRPC's; None: Ray is there, whatever it says."""
    if code == "UNAUTHENTICATED":
        if os.environ.get("RAY_AUTH_MODE") != "token":
            return f"the Ray cluster there wants a token, and none is sent without RAY_AUTH_MODE=token; {_TOKEN}"
        return f"the Ray cluster there does not take this token; {_TOKEN}"
    if code == "UNIMPLEMENTED":
        other = (
            "its client server's port (10001), or HOST:PORT of its head (6379) without ray://"
            if is_client
            else "the port of its head (6379), or ray://HOST:PORT where this is its client server's"
        )
        return f"Ray answers there, but not on this kind of port; expected {other}"
    if code in ("UNAVAILABLE", "DEADLINE_EXCEEDED", "INTERNAL", "UNKNOWN"):
        return (
            "what listens there is no Ray cluster; expected the port of Ray's head (6379), or ray://HOST:10001, its "
            "client server (8265 is the dashboard's, for `ray job submit`)"
        )
    return None


_TOKEN = (
    "the cluster's own is needed: in the file that RAY_AUTH_TOKEN_PATH names, in ~/.ray/auth_token, or as "
    "RAY_AUTH_TOKEN, with RAY_AUTH_MODE=token"
)


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split()) or type(error).__name__


def _reason(error: Exception) -> str:
    """Why Ray does not take us, in one line."""
    text = _one_line(error)
    if "mismatch" in text.lower() or "versions differ" in text or "incompatible" in text:
        return f"the cluster runs another version of Ray or Python than this process; install the same: {text[:400]}"
    if "Starting Ray client server failed" in text:
        return (
            "its client server could not start a process for this search (ray-project/ray#63202); "
            "start the head with GRPC_ENABLE_FORK_SUPPORT=0 in its environment, or run the search as a job"
        )
    if "token" in text.lower():
        return f"no Ray cluster answers there that takes us ({text[:200]}); {_TOKEN}"
    return f"no Ray cluster answers there that takes us ({text[:200]}); is it the right address, is the cluster up?"
