"""ray_cluster.yaml, by Ray's own validation and by what the comments in it promise. Offline."""

from __future__ import annotations

import copy
import os
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml

FILE = Path(__file__).parents[1] / "ray_cluster.yaml"


@pytest.fixture(scope="module")
def cluster() -> dict[str, Any]:
    return yaml.safe_load(FILE.read_text(encoding="utf-8"))


def test_ray_accepts_it(cluster: dict[str, Any]) -> None:
    from ray.autoscaler._private.util import prepare_config, validate_config

    validate_config(prepare_config(copy.deepcopy(cluster)))


def test_ray_would_refuse_a_typo(cluster: dict[str, Any]) -> None:
    from jsonschema import ValidationError
    from ray.autoscaler._private.util import prepare_config, validate_config

    wrong = copy.deepcopy(cluster) | {"max_wrkers": 3}
    with pytest.raises(ValidationError, match="max_wrkers"):
        validate_config(prepare_config(wrong))


def test_head_without_gpu_workers_with_and_without_shared_storage(cluster: dict[str, Any]) -> None:
    types = dict(cluster["available_node_types"])
    head = types.pop(cluster["head_node_type"])
    assert not head["resources"].get("GPU") and not head["resources"]["CPU"]
    assert sorted(t["resources"].get("GPU", 0) for t in types.values()) == [0, 1, 4]
    assert any("/shared" in c and "mount" in c for c in cluster["setup_commands"])


def test_ray_is_the_version_of_the_constraints(cluster: dict[str, Any]) -> None:
    pin = next(x for x in (FILE.parent / "constraints.txt").read_text().splitlines() if x.startswith("ray=="))
    wanted = pin.replace("ray", "ray[default]")
    assert any(wanted in c for c in cluster["setup_commands"])


def test_set_up_installs_torch_first_and_then_the_newest_wheel_that_was_sent(
    cluster: dict[str, Any], tmp_path: Path
) -> None:
    """The lines as a machine's shell runs them, in a home with what `file_mounts` sends; pip alone is a stand-in, which
    writes down what it was told: the real one would fetch gigabytes."""
    mounts = cluster["file_mounts"]
    # What is sent is what `make build` makes, and what is in every clone.
    assert mounts["~/evomerge-wheel/dist"] == "dist" and mounts["~/evomerge-wheel/constraints.txt"] == "constraints.txt"
    plan = subprocess.run(["make", "-n", "build"], cwd=FILE.parent, capture_output=True, text=True, check=True).stdout
    assert "-m build" in plan and "--outdir" not in plan and (FILE.parent / "constraints.txt").is_file()
    dist = tmp_path / "evomerge-wheel" / "dist"
    dist.mkdir(parents=True)
    for age, name in ((50, "evomerge-0.1.0-py3-none-any.whl"), (0, "evomerge-0.9.0-py3-none-any.whl")):
        (dist / name).touch()
        os.utime(dist / name, (1e9 - age, 1e9 - age))
    (dist / "evomerge-0.1.0.tar.gz").touch()
    pip = tmp_path / "evomerge" / "bin" / "pip"
    pip.parent.mkdir(parents=True)
    pip.write_text('#!/bin/sh\nprintf "%s " "$@" >> "$HOME/said"; echo >> "$HOME/said"\n')
    pip.chmod(0o755)
    for line in cluster["setup_commands"]:
        if "/pip install" in line:
            subprocess.run(["bash", "-c", line], check=True, env={"HOME": str(tmp_path), "PATH": os.environ["PATH"]})
    wheel, pins = dist / "evomerge-0.9.0-py3-none-any.whl", tmp_path / "evomerge-wheel" / "constraints.txt"
    assert (tmp_path / "said").read_text().splitlines() == [
        f"install --quiet -c {pins} torch ",
        f"install --quiet -c {pins} {wheel} ray[default]==2.60.0 ",
        f"install --quiet --force-reinstall --no-deps {wheel} ",
    ]


def test_what_is_sent_is_small_and_hashed_by_ray(cluster: dict[str, Any]) -> None:
    """Ray reads every file below what it sends; a clone has gigabytes of libraries in .venv."""
    assert not {"", ".", ".."} & {os.path.normpath(p).strip("/") for p in cluster["file_mounts"].values()}


def test_uneven_machines_for_every_share_of_a_gpu(cluster: dict[str, Any]) -> None:
    from evomerge.study.workers import Cluster, Growth, Node, shares

    types = cluster["available_node_types"]
    nodes = [Node(t["resources"].get("CPU", 0), t["resources"].get("GPU", 0)) for t in types.values()]
    room = {s: shares(Cluster("auto", gpus_per_worker=s), nodes, Growth.AUTOSCALER).workers for s in (0, 0.5, 1, 2, 4)}
    assert room == {0: 72, 0.5: 10, 1: 5, 2: 2, 4: 1}
    # The sum of the types' workers is what the cluster may grow to.
    assert sum(t["max_workers"] for t in types.values()) >= cluster["max_workers"]


def test_every_machine_asks_for_the_token(cluster: dict[str, Any]) -> None:
    """Copied to all of them, readable by nobody else, and asked for by Ray."""
    assert cluster["file_mounts"]["~/.ray/auth_token"] == "~/.ray/auth_token"
    assert any("chmod 600" in c and "auth_token" in c for c in cluster["setup_commands"])
    assert any("RAY_AUTH_MODE=token" in c and ".bashrc" in c for c in cluster["setup_commands"])
    (start,) = [c for c in cluster["head_start_ray_commands"] if "ray start" in c]
    assert "--dashboard-host=127.0.0.1" in start and "GRPC_ENABLE_FORK_SUPPORT=0" in start
