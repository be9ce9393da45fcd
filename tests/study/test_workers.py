"""Workers: what is asked of a cluster, clusters that do not answer, and workers that are killed. Real Ray."""

import contextlib
import re
import socket
import subprocess
import sys
import threading
import time
from dataclasses import replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import psutil
import pytest

from evomerge.errors import InputError
from evomerge.score import State
from evomerge.study.workers import Cluster, Growth, Node, Shares, shares
from evomerge.study.workers.cluster import crowded
from evomerge.study.workers.connection import Connection
from tests.study.recorded import recorded, sequence


def machine(cpus=0.0, gpus=0.0):
    return [Node(cpus, gpus)]


@pytest.mark.parametrize(
    ("cluster", "nodes", "expected"),
    [
        (Cluster(), machine(4), Shares(4, 1.0, 0.0)),
        (Cluster(), machine(0.5), Shares(1, 0.5, 0.0)),
        (Cluster(workers=8), machine(4), Shares(8, 0.5, 0.0)),
        (Cluster(), machine(16, 2), Shares(2, 0.0, 1.0)),
        (Cluster(gpus_per_worker=0.5), machine(16, 2), Shares(4, 0.0, 0.5)),
        (Cluster(gpus_per_worker=0), machine(16, 2), Shares(16, 1.0, 0.0)),
    ],
)
def test_this_machine_is_divided(cluster, nodes, expected):
    assert shares(cluster, nodes, Growth.NONE) == expected


@pytest.mark.parametrize(
    ("share", "expected"),
    [
        (None, 8),  # one per GPU
        (0, 14),  # whole CPUs: 4 + 8 + 2, not 14.75
        (1, 8),
        (2, 3),  # 0 + 2 + 1, not 8 / 2
        (3, 2),  # 0 + 1 + 1
        (4, 1),  # 0 + 1 + 0
        (0.5, 16),
        (0.4, 16),  # two per GPU: a share is of one
        (0.1, 80),
        (0.3, 24),
    ],
)
def test_uneven_machines_have_room_each_by_itself(share, expected):
    nodes = [Node(4.5, 1), Node(8, 4), Node(2.25, 3)]
    assert shares(Cluster("auto", gpus_per_worker=share), nodes, Growth.UNKNOWN).workers == expected
    assert shares(Cluster("auto", gpus_per_worker=share), nodes, Growth.AUTOSCALER).workers == expected


@pytest.mark.parametrize(
    ("cluster", "nodes", "expected", "told"),
    [
        (Cluster("auto", 8, 1), machine(), Shares(8, 0.0, 1.0), "8 workers with 1 GPU each.*none to give"),
        (Cluster("auto", 8, 1), machine(8, 1), Shares(8, 0.0, 1.0), "room for 1: 1 machine with 1 GPU and 8 CPUs"),
        (Cluster("auto", 1, 2), [Node(8, 1), Node(8, 1)], Shares(1, 0.0, 2.0), "2 machines with 1 GPU.*others wait"),
        (Cluster("auto", 8), machine(), Shares(8, 1.0, 0.0), "none to give"),
        (Cluster("auto", 8), machine(2), Shares(8, 1.0, 0.0), "room for 2"),
        (Cluster("auto"), machine(24, 3), Shares(3, 0.0, 1.0), None),
        (Cluster("auto"), machine(4), Shares(4, 1.0, 0.0), None),
    ],
)
def test_an_autoscaler_is_asked_for_all_that_was_named(cluster, nodes, expected, told):
    found = shares(cluster, nodes, Growth.AUTOSCALER)
    assert replace(found, told=None) == expected
    assert (found.told is None) == (told is None)
    if told:
        assert re.search(told, found.told)


@pytest.mark.parametrize(
    ("cluster", "nodes", "message"),
    [
        (Cluster("auto"), machine(), "no CPU for workers yet.*--workers N, with --gpus-per-worker 1"),
        (Cluster("auto", gpus_per_worker=1), machine(8), "no machine with 1 GPU yet.*--workers N"),
        (Cluster("auto", gpus_per_worker=2), [Node(8, 1), Node(8, 1)], "no machine with 2 GPUs yet"),
    ],
)
def test_an_autoscaler_without_machines_needs_the_number(cluster, nodes, message):
    with pytest.raises(InputError, match=message):
        shares(cluster, nodes, Growth.AUTOSCALER)


@pytest.mark.parametrize(
    ("cluster", "nodes", "message"),
    [
        (Cluster("auto", 8, 1), [Node(8, 1), Node(8, 1), Node(16, 4)],
         "8 workers with 1 GPU each.*room for 6: 1 machine with 4 GPUs and 16 CPUs, 2 machines with 1"),
        (Cluster("auto", 1, 2), [Node(8, 1), Node(8, 1)],
         "1 worker with 2 GPUs each.*none to give: 2 machines with 1 GPU.*no machine has 2 GPUs for one worker"),
        (Cluster("auto", gpus_per_worker=1), machine(8), "none to give: 1 machine with no GPU and 8 CPUs"),
        (Cluster("auto"), machine(), "--workers: asked for 1 worker with 1 CPU each"),
    ],
)  # fmt: skip
def test_more_than_a_cluster_has_where_nobody_starts_machines(cluster, nodes, message):
    with pytest.raises(InputError, match=message):
        shares(cluster, nodes, Growth.UNKNOWN)


def test_more_workers_than_cpus_of_a_cluster_wait():
    found = shares(Cluster("auto", 5), [Node(2), Node(1)], Growth.UNKNOWN)
    assert (found.workers, found.cpus) == (5, 1.0)
    there = "1 machine with no GPU and 2 CPUs, 1 machine with no GPU and 1 CPUs"
    assert f"room for 3: {there}; the others wait" in found.told


def test_many_workers_for_this_machines_cpus_are_told():
    assert crowded(8, 4) is None and crowded(2, 1) is None
    assert re.search("^9 workers share this machine's 4 CPUs, .*: .*; else --workers 4$", crowded(9, 4))


def test_more_gpus_than_this_machine_has():
    with pytest.raises(InputError, match=r"--gpus-per-worker 2: .*this machine has none to give: 1 machine with 1 GPU"):
        shares(Cluster(gpus_per_worker=2), machine(8, 1), Growth.NONE)


@pytest.mark.parametrize("share", [-1, 1.5, float("nan"), float("inf")])
def test_a_share_of_a_gpu_that_ray_cannot_give(share):
    with pytest.raises(InputError, match="a share up to 1, or a whole number"):
        shares(Cluster("auto", 2, share), machine(8, 8), Growth.UNKNOWN)


@pytest.fixture
def closed_port():
    """A port that refuses, and that nobody else is given meanwhile: it is bound, and nothing listens."""
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        yield s.getsockname()[1]


@pytest.mark.parametrize("address", ["127.0.0.1:{port}", "ray://127.0.0.1:{port}"])
def test_an_address_where_no_cluster_answers(address, closed_port, here, small_evaluator, tmp_path):
    address = address.format(port=closed_port)
    done = here(
        "search", "--evaluator", small_evaluator, "--budget", 2, "--address", address, "--out", tmp_path, check=False
    )
    assert done.returncode == 2
    assert f"--address {address}: no Ray cluster answers there" in done.stderr.splitlines()[-1]
    started = time.monotonic()
    with pytest.raises(InputError, match="no Ray cluster answers there"):
        Connection(Cluster(address))
    assert time.monotonic() - started < 20


@pytest.mark.parametrize("address", ["nonsense", "127.0.0.1", "host:port"])
def test_an_address_without_a_port(address):
    with pytest.raises(InputError, match=f"^--address {address}: expected HOST:PORT of Ray's head"):
        Connection(Cluster(address))


@pytest.fixture
def web_server():
    """The port of somebody else's server, as Ray's dashboard is one."""
    server = ThreadingHTTPServer(("127.0.0.1", 0), BaseHTTPRequestHandler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield server.server_address[1]
    server.shutdown()
    server.server_close()


@pytest.mark.parametrize("address", ["127.0.0.1:{port}", "ray://127.0.0.1:{port}"])
def test_an_address_of_something_else(address, web_server):
    started = time.monotonic()
    with pytest.raises(InputError, match=r"what listens there is no Ray cluster.*8265 is the dashboard's"):
        Connection(Cluster(address.format(port=web_server)))
    assert time.monotonic() - started < 20


@pytest.mark.slow
def test_an_address_of_something_that_says_nothing():
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        s.listen()
        started = time.monotonic()
        with pytest.raises(InputError, match="what listens there is no Ray cluster"):
            Connection(Cluster(f"127.0.0.1:{s.getsockname()[1]}"))
        assert time.monotonic() - started < 20


@pytest.mark.slow
def test_a_worker_killed_while_it_evaluates_changes_nothing(evomerge, here, small_evaluator, tmp_path):
    args = ["search", "--evaluator", str(small_evaluator), "--budget", "14", "--study", "s"]
    here(*args, "--workers", 0, "--out", tmp_path / "undisturbed")
    out = tmp_path / "killed"
    command = [sys.executable, "-m", "evomerge", *args, "--workers", "2", "--out", str(out), "--json"]
    with (tmp_path / "stderr").open("w") as stderr:
        search = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=stderr)
    try:
        # Three answers later the candidate of the first one has been run again, first of all: one whose second worker
        # dies too would be recorded as failed.
        killed = [kill_a_busy_worker(search, out / "study.db", after=n) for n in (1, 3)]
        search.wait(timeout=200)
    finally:
        search.kill()
    assert search.returncode == 0, (tmp_path / "stderr").read_text()[-3000:]
    assert len(set(killed)) == 2
    assert sequence(out) == sequence(tmp_path / "undisturbed")
    assert {t[2] for t in sequence(out)} == {State.COMPLETE}


def kill_a_busy_worker(search, database, after):
    """Kill -9 of an actor that has a candidate, once so many more are recorded. Returns its pid.

    It is stopped first, so that the candidate cannot end between the look and the kill.
    """
    deadline, after = time.monotonic() + 150, recorded(database) + after
    while time.monotonic() < deadline:
        assert search.poll() is None, "the search ended before a worker could be killed"
        if recorded(database) < after:
            time.sleep(0.1)
            continue
        for process in psutil.Process(search.pid).children(recursive=True):
            with contextlib.suppress(psutil.Error):
                if not busy(process):
                    continue
                process.suspend()
                if busy(process):
                    process.kill()
                    return process.pid
                process.resume()
    raise AssertionError("no worker was busy")


def busy(process):
    return "ray::_Worker.run" in " ".join(process.cmdline())
