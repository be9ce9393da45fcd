"""Searches on a cluster of three machines that share nothing: each has a mount namespace in which the folders of models
and evaluator are covered, an address and a cache of its own. Real Ray, with its tokens."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
import time

import pytest
import yaml

from evomerge import presets, zoo
from tests.ray_head import ROOT, hiding, ray_head, wait_for
from tests.study.recorded import sequence

pytestmark = [
    pytest.mark.slow,
    pytest.mark.timeout(900),
    pytest.mark.skipif(hiding() is None, reason="needs the right to make a mount namespace (unshare -m)"),
]
BUDGET = 6


@pytest.fixture(scope="module")
def own(tmp_path_factory):
    """Models, a space over them, and an evaluator with tasks of its own: all in one folder, by relative paths."""
    folder = tmp_path_factory.mktemp("own")
    for name in ("base", "maths", "kovesh"):
        shutil.copytree(zoo.path(name), folder / "models" / name)
    shutil.copytree(presets.folder("evaluators") / "zoo", folder / "tasks", ignore=shutil.ignore_patterns("*text*"))
    parts = {s: {"share": 0.3, "items": 30} for s in ("search", "select", "test")}
    data = {"include_path": "tasks", "tasks": ["kovesh_problems"], "splits": parts, "device": "cpu"}
    (folder / "own.yaml").write_text(yaml.safe_dump(data))
    return folder


def arguments(out, *more):
    models = ["--models", "models/maths", "models/kovesh", "--base", "models/base"]
    where = ["--budget", str(BUDGET), "--study", "s", "--out", str(out), "--json"]
    return ["search", *models, "--evaluator", "own.yaml", *where, *more]


@pytest.fixture(scope="module")
def undisturbed(own, evomerge, tmp_path_factory):
    out = tmp_path_factory.mktemp("undisturbed")
    evomerge(*arguments(out, "--workers", 0), cwd=own)
    return sequence(out)


@pytest.fixture(scope="module")
def cluster(own, tmp_path_factory):
    """A head without CPUs that sees the folder, and two machines of 2 and 1 CPUs that do not. `.caches` are theirs."""
    caches = [tmp_path_factory.mktemp(f"cache{i}") for i in range(2)]
    with ray_head("--num-cpus=0", "--num-gpus=0", alone=False) as head:
        for cache, cpus in zip(caches, (2, 1), strict=True):
            head.add(f"--num-cpus={cpus}", "--num-gpus=1", hidden=[own], EVOMERGE_CACHE=str(cache))
        wait_for(lambda: status(head).count("node_") >= 3, 180)
        head.caches = caches
        yield head


def status(head):
    return head.run("status", "--address", head.address).stdout


def search(head, own, out, address, *more, check=True):
    done = subprocess.run(
        [sys.executable, "-m", "evomerge", *arguments(out, "--address", address, *more)], cwd=own,
        env=head.environment, capture_output=True, text=True, timeout=600, stdin=subprocess.DEVNULL,
    )  # fmt: skip
    if check:
        assert done.returncode == 0, done.stderr[-3000:]
    return done


def staged(cache):
    return sorted(p for p in (cache / "staged").iterdir() if p.is_dir())


def test_each_machine_gets_every_file_once_and_the_search_is_the_same(cluster, own, undisturbed, tmp_path):
    done = search(cluster, own, tmp_path / "out", cluster.address, "--gpus-per-worker", "0", "--workers", "3")
    assert sequence(tmp_path / "out") == undisturbed
    assert "3 workers" in done.stderr and "wait" not in done.stderr
    for cache in cluster.caches:
        folders = staged(cache)
        # Three models and the tasks, each whole; the same on both machines.
        assert len(folders) == 4
        assert [f.name for f in folders] == [f.name for f in staged(cluster.caches[0])]
        weights = [f for f in folders if (f / "model.safetensors").is_file()]
        assert len(weights) == 3 and sum((f / "kovesh_problems.jsonl").is_file() for f in folders) == 1
        assert not any(p.suffix == ".part" for p in (cache / "staged").iterdir())
        assert {p.stat().st_mode & 0o222 for f in weights for p in f.iterdir()} == {0}
    # The next search receives nothing.
    before = {p: p.stat().st_mtime_ns for cache in cluster.caches for p in staged(cache)}
    search(cluster, own, tmp_path / "again", cluster.address, "--gpus-per-worker", "0")
    assert sequence(tmp_path / "again") == undisturbed
    assert {p: p.stat().st_mtime_ns for cache in cluster.caches for p in staged(cache)} == before


def test_a_driver_outside_of_the_cluster(own, undisturbed, tmp_path, tmp_path_factory):
    """ray://: not even the head sees the folder."""
    caches = [tmp_path_factory.mktemp(f"client{i}") for i in range(2)]
    with ray_head("--num-cpus=0", "--num-gpus=0", alone=False, hidden=[own], EVOMERGE_CACHE=str(caches[0])) as head:
        head.add("--num-cpus=1", "--num-gpus=0", hidden=[own], EVOMERGE_CACHE=str(caches[1]))
        wait_for(lambda: status(head).count("node_") >= 2, 180)
        search(head, own, tmp_path / "out", head.client_address)
    assert sequence(tmp_path / "out") == undisturbed
    assert [len(staged(cache)) for cache in caches] == [4, 4]


def test_a_source_that_changes_under_the_search_stops_it(cluster, own, tmp_path):
    """It is hashed when the search begins; a machine that asks for it later must not get another model."""
    shutil.copytree(own, tmp_path / "own")
    script = f"""
import json, shutil, sys
sys.path.insert(0, {str(ROOT)!r})
from evomerge.errors import EvoMergeError
from evomerge.evaluation import load_evaluator
from evomerge.sources import open_sources
from evomerge.study.job import Job
from evomerge.study.workers import Cluster, RayPool
sources = open_sources(["models/base"])
sources["models/base"].content_hash()
shutil.copy("models/maths/model.safetensors", "models/base/model.safetensors")
pool = RayPool(Cluster({cluster.address!r}, 1, 0), sources, "models/base", load_evaluator("own.yaml"))
pool.submit(0, Job("search", source="models/base"))
try:
    print(json.dumps(["no error", str(pool.wait())]))
except EvoMergeError as e:
    print(json.dumps([type(e).__name__, str(e)]))
pool.close()
"""
    done = subprocess.run(
        [sys.executable, "-c", script], cwd=tmp_path / "own", env=cluster.environment, capture_output=True, text=True,
        timeout=300,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]
    kind, message = json.loads(done.stdout)
    assert kind == "SourceChangedError", message
    assert "models/base/model.safetensors: has changed while it was in use" in message


def test_more_gpus_than_any_machine_has(cluster, own, tmp_path):
    started = time.monotonic()
    done = search(cluster, own, tmp_path / "out", cluster.address, "--gpus-per-worker", "2", check=False)
    assert done.returncode == 2
    line = done.stderr.splitlines()[-1]
    assert "asked for 1 worker with 2 GPUs each" in line and "no machine has 2 GPUs for one worker" in line
    assert "1 machine with 1 GPU and 2 CPUs, 1 machine with 1 GPU and 1 CPUs, 1 machine with no GPU" in line
    assert time.monotonic() - started < 120


def test_gpus_that_torch_does_not_see_are_told(cluster, own, tmp_path):
    """Ray counts what it was told; on the CPU scores would silently be others."""
    data = yaml.safe_load((own / "own.yaml").read_text()) | {"device": None, "include_path": str(own / "tasks")}
    (tmp_path / "own.yaml").write_text(yaml.safe_dump(data))
    done = search(
        cluster, own, tmp_path / "out", cluster.address, "--evaluator", str(tmp_path / "own.yaml"), check=False
    )
    assert done.returncode == 2
    assert "--gpus-per-worker 1: torch" in done.stderr and "sees 0 GPUs on" in done.stderr
