"""Workers: what is asked of a cluster, clusters that do not answer, and workers that are killed. Real Ray."""

import contextlib
import socket
import subprocess
import sys
import time

import psutil
import pytest

from evomerge.errors import InputError
from evomerge.score import State
from evomerge.study.workers import Cluster, Shares, shares
from tests.study.recorded import recorded, sequence


@pytest.mark.parametrize(
    ("cluster", "cpus", "gpus", "expected"),
    [
        (Cluster(), 4, 0, Shares(4, 1.0, 0.0)),
        (Cluster(), 0.5, 0, Shares(1, 0.5, 0.0)),
        (Cluster(workers=8), 4, 0, Shares(8, 0.5, 0.0)),
        (Cluster(), 16, 2, Shares(2, 0.0, 1.0)),
        (Cluster(gpus_per_worker=0.5), 16, 2, Shares(4, 0.0, 0.5)),
        (Cluster(gpus_per_worker=0), 16, 2, Shares(16, 1.0, 0.0)),
    ],
)
def test_this_machine_is_divided(cluster, cpus, gpus, expected):
    assert shares(cluster, cpus, gpus, grows=False) == expected


@pytest.mark.parametrize(
    ("cluster", "cpus", "gpus", "expected"),
    [
        (Cluster("auto", 8, 1), 0, 0, Shares(8, 0.0, 1.0)),
        (Cluster("auto", 8, 1), 8, 1, Shares(8, 0.0, 1.0)),
        (Cluster("auto", 8), 0, 0, Shares(8, 1.0, 0.0)),
        (Cluster("auto", 8), 2, 0, Shares(8, 1.0, 0.0)),
        (Cluster("auto"), 24, 3, Shares(3, 0.0, 1.0)),
        (Cluster("auto"), 4, 0, Shares(4, 1.0, 0.0)),
    ],
)
def test_a_cluster_that_grows_is_asked_for_all_that_was_named(cluster, cpus, gpus, expected):
    assert shares(cluster, cpus, gpus, grows=True) == expected


@pytest.mark.parametrize(
    ("cluster", "cpus", "message"),
    [
        (Cluster("auto"), 0, "neither CPU nor GPU yet.*--workers N, with --gpus-per-worker 1"),
        (Cluster("auto", gpus_per_worker=1), 8, "no GPU yet.*--workers N"),
    ],
)
def test_a_cluster_without_machines_needs_the_number(cluster, cpus, message):
    with pytest.raises(InputError, match=message):
        shares(cluster, cpus, 0, grows=True)


def test_more_gpus_than_this_machine_has():
    with pytest.raises(InputError, match=r"--gpus-per-worker 2: this machine has 1 GPUs"):
        shares(Cluster(gpus_per_worker=2), 8, 1, grows=False)


@pytest.mark.parametrize("share", [-1, 1.5, float("nan"), float("inf")])
def test_a_share_of_a_gpu_that_ray_cannot_give(share):
    with pytest.raises(InputError, match="a share up to 1, or a whole number"):
        shares(Cluster("auto", 2, share), 8, 8, grows=True)


@pytest.fixture
def closed_port():
    """A port that refuses, and that nobody else is given meanwhile: it is bound, and nothing listens."""
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        yield s.getsockname()[1]


@pytest.mark.parametrize("address", ["127.0.0.1:{port}", "ray://127.0.0.1:{port}", "nonsense"])
def test_an_address_where_no_cluster_answers(address, closed_port, here, small_evaluator, tmp_path):
    address = address.format(port=closed_port)
    started = time.monotonic()
    done = here(
        "search", "--evaluator", small_evaluator, "--budget", 2, "--address", address, "--out", tmp_path, check=False
    )
    assert done.returncode == 2
    assert f"--address {address}: no Ray cluster answers there" in done.stderr.splitlines()[-1]
    assert time.monotonic() - started < 60


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
