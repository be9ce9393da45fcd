"""A Ray head of a test's own on loopback, with further nodes where it needs some.

It has ports, a temporary folder and a token of its own, and is ended by its process group: `ray stop` would end every
other Ray on the machine.
"""

import contextlib
import functools
import json
import os
import random
import secrets
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass, field
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
BIN = Path(sys.executable).parent
RAY = BIN / "ray"
SERVICES = (
    "port", "ray-client-server-port", "object-manager-port", "node-manager-port", "dashboard-port",
    "dashboard-agent-listen-port", "dashboard-agent-grpc-port", "runtime-env-agent-port", "metrics-export-port",
)  # fmt: skip
# Of these every node has its own.
OF_NODES = tuple(name for name in SERVICES if name not in ("port", "ray-client-server-port", "dashboard-port"))
WORKER_PORTS = 60
# Ray's client server puts its own servers, one for each client, at its port + 13000 or so: 23000 to 23999 by default.
CLIENT_PORTS = range(23000, 24000)


def free_ports(count):
    """The first of so many free ports in a row: above 20000, outside the system's ephemeral range (from 32768) and
    outside those of Ray's clients."""
    for _ in range(100):
        first = random.randrange(CLIENT_PORTS.stop, 32000 - count)
        with contextlib.ExitStack() as stack, contextlib.suppress(OSError):
            for port in range(first, first + count):
                stack.enter_context(socket.socket()).bind(("", port))
            return first
    raise AssertionError("no free ports")


def answers(port, ip="127.0.0.1"):
    """Whether somebody listens there."""
    with contextlib.suppress(OSError), socket.create_connection((ip, port), timeout=1):
        return True
    return False


def wait_for(what, seconds=120, told=lambda: ""):
    """Wait until something holds; returns it."""
    deadline = time.monotonic() + seconds
    while not (found := what()):
        assert time.monotonic() < deadline, told()
        time.sleep(0.2)
    return found


def without(hidden):
    """What stands before a command that is not to see some folders: they are covered in mounts of its own."""
    if not hidden:
        return []
    script = 'while [ "$1" != -- ]; do mount -t tmpfs tmpfs "$1" || exit 1; shift; done; shift; exec "$@"'
    return [*hiding(), "sh", "-c", script, "sh", *map(str, hidden), "--"]


@functools.cache
def hiding():
    """The command that makes a mount namespace here; None where the system lets nobody."""
    for command in (["unshare", "-m"], ["unshare", "-rm"]):
        with contextlib.suppress(OSError):
            done = subprocess.run([*command, "sh", "-c", "mount -t tmpfs tmpfs /mnt"], capture_output=True)
            if done.returncode == 0:
                return command
    return None


@dataclass
class Head:
    """A running head; `.environment` is what a command line needs that is to know of it."""

    folder: Path
    environment: dict
    ports: dict
    processes: list = field(default_factory=list)

    ip: str = "127.0.0.1"

    @property
    def address(self):
        return f"{self.ip}:{self.ports['port']}"

    @property
    def client_address(self):
        return f"ray://{self.ip}:{self.ports['ray-client-server-port']}"

    def run(self, *args, cwd=None, timeout=240):
        """Ray's command line."""
        return subprocess.run(
            [RAY, *map(str, args)], cwd=cwd, env=self.environment, capture_output=True, text=True, timeout=timeout,
            stdin=subprocess.DEVNULL,
        )  # fmt: skip

    def add(self, *size, hidden=(), **environment):
        """Start another node, with what `ray start` is told of its size; returns its process when it is up.

        Args:
            hidden: Folders that it does not see, as if it were another machine.
        """
        for last in (False, False, True):
            # Loopback addresses of their own, by which Ray tells machines apart.
            ip = f"127.0.0.{len(self.processes) + 2}"
            first = free_ports(len(OF_NODES) + WORKER_PORTS)
            services = [f"--{name}={first + i}" for i, name in enumerate(OF_NODES)]
            options = [f"--address={self.address}", f"--node-ip-address={ip}", *services, *size]
            process = self._start(options, first + len(OF_NODES), environment, hidden)
            # One after the other: nodes that start together on a busy machine run out of the time that Ray gives them,
            # and a node alone does so now and then. Its process ends by itself then, or waits for minutes.
            if ready(process, 60):
                return process
            end(process)
            assert not last, "\n".join(p.log.read_text()[-2000:] for p in (process, self.processes[0]))

    def close(self):
        """End all nodes."""
        for process in reversed(self.processes):
            end(process)
        shutil.rmtree(self.folder, ignore_errors=True)

    def _start(self, options, first_worker_port, environment, hidden=()):
        log = self.folder / f"node-{len(self.processes)}.log"
        workers = [f"--min-worker-port={first_worker_port}", f"--max-worker-port={first_worker_port + WORKER_PORTS}"]
        common = ["--object-store-memory=100000000", "--disable-usage-stats"]
        with log.open("w") as file:
            process = subprocess.Popen(
                [*without(hidden), RAY, "start", "--block", *options, *workers, *common],
                env={**self.environment, **environment}, cwd=self.folder, stdin=subprocess.DEVNULL, stdout=file,
                stderr=file, start_new_session=True,
            )  # fmt: skip
        process.log = log
        self.processes.append(process)
        return process


@contextlib.contextmanager
def ray_head(*size, alone=True, hidden=(), autoscaler=None, **environment):
    """A head, until the block ends.

    Args:
        size: What `ray start --head` is told of its size.
        alone: Whether no other node is to join it.
        hidden: Folders that it does not see.
        autoscaler: Configuration of an autoscaler whose machines are processes of this one (fake_multinode).
        environment: Further variables of the head and of all that it starts.
    """
    for last in (False, False, True):
        head = start_head(size, alone, hidden, autoscaler, environment)
        # Its ports answer before it is clear that it stays: on a busy machine Ray gives up after half a minute.
        if ready(head.processes[0], 120):
            break
        log = head.processes[0].log.read_text()
        head.close()
        assert not last, log[-3000:]
    try:
        needed = ("port", "dashboard-agent-listen-port", "ray-client-server-port")

        def up():
            return answers(head.ports["dashboard-port"]) and all(answers(head.ports[p], head.ip) for p in needed)

        wait_for(up, told=lambda: head.processes[0].log.read_text()[-3000:])
        yield head
    finally:
        head.close()


def start_head(size, alone, hidden, autoscaler, environment):
    """Start a head; see `ray_head`."""
    # Not tmp_path: Ray's sockets lie below it, and a socket's path has at most 107 bytes.
    folder = Path(tempfile.mkdtemp(prefix="evo", dir="/tmp"))
    token = folder / "token"
    token.touch(mode=0o600)
    token.write_text(secrets.token_hex(32))
    first = free_ports(len(SERVICES) + WORKER_PORTS)
    ports = {name: first + i for i, name in enumerate(SERVICES)}
    kept = {k: v for k, v in os.environ.items() if not k.startswith("RAY_")}
    head = Head(folder, ports=ports, environment={
        **kept,
        # A job's command is looked up, and run, with what the head was started with.
        "PATH": f"{BIN}{os.pathsep}{os.environ['PATH']}",
        "PYTHONPATH": str(ROOT),
        "OMP_NUM_THREADS": "1",
        "RAY_TMPDIR": str(folder),
        "RAY_AUTH_MODE": "token",
        "RAY_AUTH_TOKEN_PATH": str(token),
        "RAY_API_SERVER_ADDRESS": f"http://127.0.0.1:{ports['dashboard-port']}",
        "RAY_USAGE_STATS_ENABLED": "0",
        # Despite its name: without it Ray takes 127.0.0.1 for the machine's outer address, and listens there.
        # Other nodes cannot join then; loopback's other addresses it takes as they are.
        "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0" if alone else "1",
        # Ray's client server forks beside running gRPC threads, and dies of it now and then (ray-project/ray#63202).
        "GRPC_ENABLE_FORK_SUPPORT": "0",
        **environment,
    }, ip="127.0.0.1" if alone else "127.0.0.2")  # fmt: skip
    services = [f"--{name}={port}" for name, port in ports.items()]
    where = [f"--node-ip-address={head.ip}", "--dashboard-host=127.0.0.1", f"--temp-dir={folder}"]
    if autoscaler is not None:
        provider = {"type": "fake_multinode", "gcs_address": head.address}
        (folder / "cluster.yaml").write_text(json.dumps(autoscaler | {"provider": provider}))
        size = (*size, f"--autoscaling-config={folder / 'cluster.yaml'}")
        head.environment |= {"AUTOSCALER_UPDATE_INTERVAL_S": "1", "RAY_FAKE_CLUSTER": "1"}
    head._start(["--head", *where, *services, *size], first + len(SERVICES), {}, hidden)
    return head


def ready(process, seconds):
    """Whether a node comes up."""
    deadline = time.monotonic() + seconds
    while process.poll() is None and time.monotonic() < deadline:
        if "block forever" in process.log.read_text():
            return True
        time.sleep(0.2)
    return False


def end(process):
    """End a node, with all that it started."""
    for how in (signal.SIGTERM, signal.SIGKILL):
        with contextlib.suppress(ProcessLookupError, subprocess.TimeoutExpired):
            os.killpg(process.pid, how)
            process.wait(timeout=3)
