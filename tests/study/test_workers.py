"""Workers: what is asked of a cluster, clusters that do not answer, and workers that are killed. Real Ray."""

import os
import signal
import socket
import sys
import time

import pytest

from evomerge.errors import InputError
from evomerge.study.workers import Cluster, RayPool, Shares, shares


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
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return s.getsockname()[1]


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


def kill_one_while_it_evaluates(pool):
    """Kill -9 of the process of an actor that has a job; the actors' class says its pid."""
    import ray
    from ray.util.state import list_actors

    assert ray.is_initialized()
    busy = {worker._actor_id.hex() for worker, *_ in pool._running.values()}
    victims = [a.pid for a in list_actors(filters=[("state", "=", "ALIVE")]) if a.actor_id in busy]
    os.kill(victims[0], signal.SIGKILL)


if __name__ == "__main__":
    sys.exit(RayPool is None)
