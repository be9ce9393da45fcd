"""A few steps of training."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from evomerge.zoo.curriculum import Curriculum
from evomerge.zoo.train import Plan, Schedule, train_one

PLAN = Plan(
    Curriculum(),
    width=32,
    layers=2,
    base=Schedule(3, 1e-3, batch=8),
    fine_tune=Schedule(3, 1e-3, batch=8),
)


@pytest.mark.parametrize("name", ["maths", "ceiling"])
def test_same_seed_trains_the_same_bytes(tmp_path: Path, name: str) -> None:
    torch.set_num_threads(1)
    for run in ("one", "two"):
        (tmp_path / run).mkdir()
        train_one("base", PLAN, 5, tmp_path / run)
        train_one(name, PLAN, 5, tmp_path / run)
    base, tuned = ((tmp_path / "one" / m / "model.safetensors") for m in ("base", name))
    assert base.read_bytes() != tuned.read_bytes()
    assert tuned.read_bytes() == (tmp_path / "two" / name / "model.safetensors").read_bytes()
    last = json.loads((tmp_path / "one" / f"{name}.jsonl").read_text().splitlines()[-1])
    assert last["model"] == name
    assert last["step"] == PLAN.schedule(name).steps
