"""ray_cluster.yaml, by Ray's own validation and by what the comments in it promise. Offline."""

from __future__ import annotations

import copy
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


def test_head_without_gpu_workers_with_one_shared_storage(cluster: dict[str, Any]) -> None:
    types = cluster["available_node_types"]
    head = types.pop(cluster["head_node_type"])
    assert not head["resources"].get("GPU")
    assert types and all(t["resources"]["GPU"] == 1 for t in types.values())
    assert any("/shared" in c and "mount" in c for c in cluster["setup_commands"])


def test_ray_is_the_version_of_the_constraints(cluster: dict[str, Any]) -> None:
    pin = next(x for x in (FILE.parent / "constraints.txt").read_text().splitlines() if x.startswith("ray=="))
    wanted = pin.replace("ray", "ray[default]")
    assert any(wanted in c for c in cluster["setup_commands"])
