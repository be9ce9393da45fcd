"""A search on a cluster whose autoscaler starts machines for it: Ray's own, whose machines are processes here."""

from __future__ import annotations

import subprocess
import sys

import pytest

from evomerge.study.workers import Growth
from tests.ray_head import ray_head
from tests.study.recorded import sequence

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]
# What the machines of each type have; none runs at first.
TYPES = {"one_cpu": {"CPU": 1}, "two_gpus": {"CPU": 1, "GPU": 2}}


@pytest.fixture(scope="module")
def head():
    workers = {n: {"resources": r, "node_config": {}, "min_workers": 0, "max_workers": 2} for n, r in TYPES.items()}
    types = {"ray.head.default": {"resources": {"CPU": 0}, "node_config": {}, "max_workers": 0}} | workers
    empty = ("initialization", "setup", "head_setup", "worker_setup", "head_start_ray", "worker_start_ray")
    config = {f"{name}_commands": [] for name in empty} | {
        "file_mounts": {}, "cluster_synced_files": [], "file_mounts_sync_continuously": False, "rsync_exclude": [],
        "rsync_filter": [], "cluster_name": "test", "max_workers": 4, "head_node_type": "ray.head.default",
        "available_node_types": types, "idle_timeout_minutes": 10, "upscaling_speed": 2, "auth": {}, "docker": {},
    }  # fmt: skip
    with ray_head("--num-cpus=0", "--num-gpus=0", alone=False, autoscaler=config) as found:
        yield found


def search(head, evaluator, out, *more):
    return subprocess.run(
        [sys.executable, "-m", "evomerge", "search", "--evaluator", str(evaluator), "--budget", "4", "--study", "s",
         "--address", head.address, "--out", str(out), *more],
        env=head.environment, capture_output=True, text=True, timeout=400, stdin=subprocess.DEVNULL,
    )  # fmt: skip


def test_the_number_of_workers_cannot_be_read_from_nothing(head, small_evaluator, tmp_path):
    done = search(head, small_evaluator, tmp_path)
    assert done.returncode == 2
    assert "the cluster has no CPU for workers yet" in done.stderr and "--workers N" in done.stderr


def test_machines_start_for_what_is_asked_and_the_search_says_that_it_waits(head, here, small_evaluator, tmp_path):
    own = ["--evaluator", small_evaluator, "--budget", 4, "--study", "s", "--out", tmp_path / "a"]
    here("search", *own, "--workers", 0)
    done = search(head, small_evaluator, tmp_path / "b", "--workers", "2")
    assert done.returncode == 0, done.stderr[-3000:]
    assert "asked for 2 workers with 1 CPU each" in done.stderr and "its autoscaler starts" in done.stderr
    assert sequence(tmp_path / "b") == sequence(tmp_path / "a")


def test_how_an_autoscaler_is_told(head):
    """By what Ray itself reports of the machines that it started."""
    code = (
        "import ray, sys; from evomerge.study.workers.connection import _growth; "
        "ray.init(address=sys.argv[1], logging_level='ERROR', log_to_driver=False); print(_growth(ray.nodes()).name)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, head.address], env=head.environment, capture_output=True, text=True, timeout=200
    )
    assert done.stdout.strip() == Growth.AUTOSCALER.name, done.stderr
