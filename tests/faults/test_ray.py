"""Ray itself in trouble, in processes of their own: a machine is lost, the object store is full."""

import json
import os
import re
import subprocess
import sys
import tempfile

import pytest

from tests.faults.disks import PRIVATE, needs_mounts

pytestmark = pytest.mark.slow

LOST = """
import json, os, sys, time
import ray
from ray.cluster_utils import Cluster as Nodes
from evomerge.study.workers import Cluster
from evomerge.study.workers.actors import Actors
from evomerge.study.workers.connection import Connection

folder = sys.argv[1]
nodes = Nodes(initialize_head=True, head_node_args={"num_cpus": 1, "include_dashboard": False})
lost = nodes.add_node(num_cpus=1)
try:
    ray.init(address=nodes.address, log_to_driver=False)

    def maker(device):
        def work(item):
            node = ray.get_runtime_context().get_node_id()
            open(os.path.join(folder, f"{item} {node}"), "w").close()
            while not os.path.exists(os.path.join(folder, "go")):
                time.sleep(0.1)
            return node
        return work

    actors = Actors(Connection(Cluster(workers=2)), maker)
    for item in range(4):
        actors.submit(item, item)

    def poll():
        if sum(" " in f for f in os.listdir(folder)) == 2 and lost in nodes.worker_nodes:
            nodes.remove_node(lost, allow_graceful=False)
            nodes.add_node(num_cpus=1)
            open(os.path.join(folder, "go"), "w").close()

    found = dict(actors.wait(poll) for _ in range(4))
    began = [f.split(" ") for f in os.listdir(folder) if " " in f]
    print("FOUND", json.dumps({"nodes": [found[i] for i in range(4)], "began": began, "lost": lost.node_id}))
finally:
    ray.shutdown()
    nodes.shutdown()
"""

STORE = """
import os, sys
import numpy as np, ray
from evomerge.errors import EvoMergeError
from evomerge.study.workers import Cluster
from evomerge.study.workers.actors import Actors
from evomerge.study.workers.connection import Connection

where = {"_temp_dir": sys.argv[1], "object_store_memory": 80 << 20}
ray.init(address="local", num_cpus=1, include_dashboard=False, log_to_driver=False, **where)
maker = lambda device: lambda item: np.ones(item, np.uint8) if isinstance(item, int) else len(item)
actors = Actors(Connection(Cluster(workers=1)), maker)
kept = []
try:
    for i in range(12):
        actors.submit(i, (30 << 20) if sys.argv[2] == "results" else np.ones(30 << 20, np.uint8))
        kept += [actors.wait(), ray.put(np.ones(30 << 20, np.uint8)) if sys.argv[2] == "items" else None]
except EvoMergeError as e:
    print("STOP", len(kept), e)
ray.shutdown()
"""


def ray_run(command):
    # Ray of its own, on loopback, without its reports.
    env = {**os.environ, "RAY_USAGE_STATS_ENABLED": "0", "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0"}
    env.pop("RAY_ADDRESS", None)
    return subprocess.run(command, capture_output=True, text=True, timeout=250, env=env, stdin=subprocess.DEVNULL)


def test_what_a_lost_machine_had_is_done_on_another(tmp_path):
    done = ray_run([sys.executable, "-c", LOST, tmp_path])
    line = next((x for x in done.stdout.splitlines() if x.startswith("FOUND ")), None)
    assert line is not None, done.stderr[-3000:]
    found = json.loads(line.removeprefix("FOUND "))
    assert found["lost"] not in found["nodes"]
    # It had one when it was lost, which began again elsewhere; the others began once.
    (item,) = [item for item, node in found["began"] if node == found["lost"]]
    assert sorted(i for i, _ in found["began"]) == sorted(["0", "1", "2", "3", item])


@pytest.mark.parametrize("what", ["items", "results"])
def test_a_full_object_store_is_one_message(what):
    """Too small a store, and no room for what it spills: Ray's temporary folder is a file system of 100 MB."""
    needs_mounts()
    script = 'mount -t tmpfs -o size=100m tmpfs "$1" && exec "$2" -c "$3" "$1" "$4"'
    # Ray's sockets lie there, whose paths may have 107 bytes.
    with tempfile.TemporaryDirectory(prefix="ray-") as folder:
        done = ray_run([*PRIVATE, "sh", "-c", script, "sh", folder, sys.executable, STORE, what])
    line = next((x for x in done.stdout.splitlines() if x.startswith("STOP ")), None)
    assert line is not None, done.stdout[-1000:] + done.stderr[-3000:]
    assert "Ray's object store is full (" in line and "Ray's temporary folder; free some of either" in line


def test_that_does_not_start_is_one_message():
    start = """
from evomerge.errors import EvoMergeError
from evomerge.study.workers import Cluster
from evomerge.study.workers.connection import Connection
try:
    Connection(Cluster(workers=1))
except EvoMergeError as e:
    print(e)
"""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("RAY_TMPDIR", "/dev/null/nowhere")
        done = ray_run([sys.executable, "-c", start])
    words = r"Ray did not start on this machine \(.*/dev/null/nowhere.*\); where it is busy .*: --workers 0"
    assert re.fullmatch(words, done.stdout.strip()), done.stderr[-3000:]
