"""A few steps of training."""

from __future__ import annotations

import json
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from transformers import LlamaForCausalLM

from evomerge.zoo import train
from evomerge.zoo.curriculum import Curriculum
from evomerge.zoo.plan import Part, Plan, Schedule
from evomerge.zoo.train import main, train_one

PLAN = Plan(
    Curriculum(),
    width=32,
    layers=2,
    base=Schedule(3, 1e-3, batch=8),
    fine_tune=Schedule(3, 1e-3, batch=8),
)


@pytest.mark.parametrize("name", ["maths", "ceiling", "maths_upper"])
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


@pytest.mark.parametrize("name", ["maths", "kovesh_lower", "maths_upper"])
def test_trains_its_part_alone(tmp_path: Path, name: str) -> None:
    train_one("base", PLAN, 5, tmp_path)
    train_one(name, PLAN, 5, tmp_path)
    base, tuned = (load_file(tmp_path / n / "model.safetensors") for n in ("base", name))
    changed = {tensor for tensor, weights in base.items() if not torch.equal(weights, tuned[tensor])}
    part = {tensor for tensor in base if PLAN.part(name).holds(tensor, PLAN.layers)}
    assert changed <= part
    if PLAN.part(name) is not Part.ALL:
        assert {tensor for tensor in part if "proj" in tensor} <= changed


def run(monkeypatch: pytest.MonkeyPatch, *arguments: str | Path) -> None:
    monkeypatch.setattr(sys, "argv", ["train", *map(str, arguments)])
    main()


def test_some_models_join_those_that_lie_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def measured(model: LlamaForCausalLM) -> dict[str, float]:
        return {"norm": sum(p.double().norm().item() for p in model.parameters())}

    monkeypatch.setattr(train, "Plan", lambda: PLAN)
    monkeypatch.setattr(train, "ProcessPoolExecutor", lambda *_: ThreadPoolExecutor(1))  # starts no Python
    monkeypatch.setattr(train, "figures", measured)
    run(monkeypatch, "--seed", "5", "--out", tmp_path, "--models", "base", "maths")
    files = {name: (tmp_path / name / "model.safetensors").read_bytes() for name in ("base", "maths")}
    first = json.loads((tmp_path / "figures.json").read_text())
    lines = (tmp_path / "log.jsonl").read_text().splitlines()
    for _ in range(2):  # the second time their lines take the place of the first's
        run(monkeypatch, "--seed", "5", "--out", tmp_path, "--models", "maths_upper")
        assert all((tmp_path / name / "model.safetensors").read_bytes() == old for name, old in files.items())
        both = json.loads((tmp_path / "figures.json").read_text())
        assert list(both["scores"]) == ["base", "maths", "maths_upper"] and both["seed"] == 5
        assert {name: both["scores"][name] for name in first["scores"]} == first["scores"]
        log = (tmp_path / "log.jsonl").read_text().splitlines()
        assert log[: len(lines)] == lines
        assert [json.loads(line)["model"] for line in log[len(lines) :]] == ["maths_upper"]
    assert not list(tmp_path.glob("maths*.jsonl"))


def test_refuses_what_it_cannot_train(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def refused(*arguments: str | Path) -> str:
        with pytest.raises(SystemExit, match="2"):
            run(monkeypatch, "--out", tmp_path, *arguments)
        return capsys.readouterr().err

    assert f"{tmp_path / 'base'}: no base to fine-tune" in refused("--models", "maths_upper")
    assert "choose from" in refused("--models", "maths_uper")
    (tmp_path / "figures.json").write_text('{"seed": 0, "scores": {}}')
    assert "holds models of seed 0, asked for seed 3" in refused("--seed", "3")
