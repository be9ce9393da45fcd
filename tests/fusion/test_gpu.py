"""Passes and trainings on a GPU: they say what a CPU says, and learn."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from evomerge.fusion.documents import Document
from evomerge.fusion.loading import loaded
from evomerge.fusion.teachers.observe import observe
from evomerge.sources import open_source
from evomerge.zoo.fusion import corpus
from tests.pipeline.fusions import fusion_file, result

pytestmark = pytest.mark.gpu


def documents(count: int) -> list[Document]:
    import json

    lines = corpus("chains").read_text(encoding="utf-8").splitlines()[:count]
    return [Document(json.loads(line)["text"]) for line in lines]


@pytest.mark.parametrize("name", ["tides", "roads"])
def test_a_pass_says_what_it_says_on_a_cpu(zoo_readers, name: str) -> None:
    source = open_source(f"zoo:{name}")
    tokens = zoo_readers[name].read(documents(30))
    here, there = (observe(loaded(source, "float32", d)[0], tokens, 10, 4096) for d in ("cpu", "cuda"))
    for one, other in zip(here, there, strict=True):
        assert np.array_equal(one.positions, other.positions)
        assert np.allclose(one.likelihoods, other.likelihoods, atol=2e-3)
        assert np.mean(one.top_ids == other.top_ids) > 0.99


def test_a_pass_in_bfloat16_is_near(zoo_readers) -> None:
    source = open_source("zoo:tides")
    tokens = zoo_readers["tides"].read(documents(30))
    exact = observe(loaded(source, "float32", "cuda")[0], tokens, 10, 4096)
    rounded = observe(loaded(source, "bfloat16", "cuda")[0], tokens, 10, 4096)
    one, other = (sum(float(o.likelihoods.sum()) for o in found) for found in (exact, rounded))
    assert other == pytest.approx(one, rel=0.02)


def test_a_fusion_trains_on_it_in_bf16(here, tmp_path) -> None:
    file = fusion_file(tmp_path, documents=80, training={"max_steps": 40, "learning_rate": 1e-3, "bf16": True})
    here("fuse", file, tmp_path / "out", "--workers", 0)
    models = result(tmp_path / "out")["models"]
    assert models["fused"]["bits_per_byte"]["mean"] < models["target"]["bits_per_byte"]["mean"]
    assert torch.cuda.max_memory_allocated() > 0
