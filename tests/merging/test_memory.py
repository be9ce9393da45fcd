"""Private memory of whole merges to disk (RssAnon: what is beyond mapped files), and what `evomerge check` says."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from benchmarks.process_memory import time_and_memory
from benchmarks.sized_models import write_models
from evomerge.merging.statistics.files import MANIFEST, TENSORS, VERSION
from evomerge.sources import open_source
from tests.merging.sized import command, recipe

pytestmark = [
    pytest.mark.skipif(not Path("/proc/self/status").is_file(), reason="RssAnon is read from /proc"),
    pytest.mark.xdist_group("sized models"),  # written once
]

METHODS = ("linear", "ties", "dare_ties", "sce", "della", "model_stock")
# Asked for: 1.5 GB.
ASKED = 1.5e9


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A tenth of 1.5B parameters: three files of 0.3 GB."""
    folder = tmp_path_factory.mktemp("small")
    assert 0.25e9 < write_models(folder, hidden=1024, inner=3584, layers=8, vocabulary=10_000) < 0.35e9
    yield folder
    shutil.rmtree(folder)


@pytest.fixture(scope="module")
def large(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """1.5B parameters in llama's shape: three files of 3 GB."""
    folder = tmp_path_factory.mktemp("large")
    if shutil.disk_usage(folder).free < 20e9:
        pytest.skip("needs 12 GB of disk, and leaves 8")
    assert 2.8e9 < write_models(folder, hidden=2048, inner=8192, layers=20, vocabulary=32_000) < 3.2e9
    yield folder
    shutil.rmtree(folder)


def in_float64(folder: Path) -> Path:
    file = folder / "ties_float64.yaml"
    file.write_text(recipe(folder, "ties").read_text() + "dtype: float64\nout_dtype: bfloat16\n")
    return file


def regmean(folder: Path) -> Path:
    """With Gram matrices of a layer's input that is much wider than its output; singular, which needs the most."""
    tensor, columns = "model.layers.0.mlp.down_proj.weight", 3584
    for model in ("A", "B"):
        x = torch.randn(64, columns, generator=torch.Generator().manual_seed(0))
        source = open_source(str(folder / model))
        facts = {"version": VERSION, "kind": "gram", "model": source.content_hash(), "reference": model, "text": "x",
                 "samples": 1, "tokens": 64, "max_length": 64, "tensors": 1}  # fmt: skip
        (folder / f"{model}.gram").mkdir()
        save_file({tensor: x.t() @ x / len(x)}, folder / f"{model}.gram" / TENSORS)
        (folder / f"{model}.gram" / MANIFEST).write_text(json.dumps(facts))
    file = folder / "regmean.yaml"
    file.write_text(
        "merge_method: regmean\nmodels: [{model: A}, {model: B}]\n"
        f"evomerge: {{statistics: {{A: {folder}/A.gram, B: {folder}/B.gram}}}}\nparameters: {{alpha: 1.0}}\n"
    )
    return file


RECIPES = {"ties_float64": in_float64, "regmean": regmean}
SLOW = [pytest.param(name, marks=pytest.mark.slow) for name in ("tsv", "iso_c", *RECIPES)]


@pytest.mark.timeout(300)
@pytest.mark.parametrize("method", ["linear", "ties", *SLOW])
def test_said_and_measured(method: str, small: Path, here: Callable[..., Any], tmp_path: Path) -> None:
    """What `evomerge check` predicts is an upper limit, and not twice as much as is needed."""
    file = RECIPES[method](small) if method in RECIPES else recipe(small, method)
    said = here("check", file, "--json").result
    _, peak = time_and_memory(command(file, tmp_path / "out"))
    limit = said["memory_bytes"]
    assert peak <= limit <= 2 * peak, f"{method}: {peak / 1e6:.0f} MB, said {limit / 1e6:.0f}"
    assert (tmp_path / "out" / "model.safetensors").stat().st_size == said["output_bytes"]


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.parametrize("method", METHODS)
def test_a_tenth(method: str, small: Path, tmp_path: Path) -> None:
    _, peak = time_and_memory(command(recipe(small, method), tmp_path / "out"))
    print(f"{method}: {peak / 1e6:.0f} MB")
    # Measured on two threads: 163 MB, of which 150 are Python with torch; 193 and 207 where elements are ranked.
    assert peak < 0.35e9, f"{method}: {peak / 1e6:.0f} MB"


@pytest.mark.slow
@pytest.mark.timeout(1800)
@pytest.mark.parametrize("method", METHODS)
def test_three_of_three_gigabytes(method: str, large: Path, here: Callable[..., Any], tmp_path: Path) -> None:
    file = recipe(large, method)
    said = here("check", file, "--json").result["memory_bytes"]
    _, peak = time_and_memory(command(file, tmp_path / "out"))
    shutil.rmtree(tmp_path / "out")
    print(f"{method}: {peak / 1e6:.0f} MB, said {said / 1e6:.0f}")
    # Measured on two threads: 163 MB as for small models; with ties 427, for lists of 1/32 of the embedding's elements.
    assert peak <= said < 0.7e9 < ASKED, f"{method}: {peak / 1e6:.0f} MB, said {said / 1e6:.0f}"
