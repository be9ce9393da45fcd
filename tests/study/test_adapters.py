"""Adapters as sources of a study: what is scored is the model with its adapter, and candidates are built over it."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from evomerge import zoo
from evomerge.evaluation import load_evaluator
from evomerge.recipe import parse_recipe
from evomerge.sources import open_sources
from evomerge.study.builder import Builder
from evomerge.study.job import Job


@pytest.fixture
def difference(tmp_path: Path) -> Path:
    """What makes zoo:maths of zoo:base, as an adapter of full rank; the rest as whole tensors."""
    base, other = (load_file(zoo.path(n) / "model.safetensors") for n in ("base", "maths"))
    tensors, ranks = {}, {}
    for name, tensor in other.items():
        module = name.removesuffix(".weight")
        if tensor.dim() < 2 or "embed" in name:
            tensors[f"base_model.model.{name}"] = tensor
            continue
        u, s, vh = torch.linalg.svd(tensor.double() - base[name].double(), full_matrices=False)
        tensors[f"base_model.model.{module}.lora_A.weight"] = vh.float().contiguous()
        tensors[f"base_model.model.{module}.lora_B.weight"] = (u * s).float().contiguous()
        ranks[module] = len(s)
    save_file(tensors, tmp_path / "adapter_model.safetensors")
    config = {"peft_type": "LORA", "r": 1, "lora_alpha": 1, "rank_pattern": ranks, "alpha_pattern": ranks}
    (tmp_path / "adapter_config.json").write_text(json.dumps(config))
    return tmp_path


def test_scores_of_an_adapter_are_those_of_the_merged_model(small_evaluator: Path, difference: Path) -> None:
    adapted = f"zoo:base+{difference}"
    sources = open_sources(["zoo:base", "zoo:maths", adapted])
    builder = Builder(sources, "zoo:base", load_evaluator(str(small_evaluator)), "cpu")

    def score(**job: object) -> list[float]:
        answer = builder.run(Job("search", **job))  # type: ignore[arg-type]
        assert answer.score is not None, answer.reason
        return [t.shown for t in answer.score.tasks]

    base, maths, whole = (score(source=r) for r in ("zoo:base", "zoo:maths", adapted))
    assert whole == maths != base
    recipe = {"merge_method": "task_arithmetic", "base_model": "zoo:base", "dtype": "float32",
              "models": [{"model": adapted, "parameters": {"weight": 1.0}}]}  # fmt: skip
    candidate = parse_recipe(json.dumps(recipe))
    assert score(recipe=candidate) == maths, "live"
    assert score(recipe=candidate, exported=True) == maths
