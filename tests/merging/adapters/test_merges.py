"""Merges over adapters, against float64 NumPy, peft's own combination, merged copies of the model, and mergekit."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import peft
import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file

from evomerge import zoo
from evomerge.errors import InputError
from evomerge.merging.engine import Engine
from evomerge.recipe import parse_recipe
from evomerge.sources import open_source, open_sources
from tests.merging.adapters.vectors import deltas, numpy_delta

WEIGHTS = (0.7, -0.4, 1.2)


def recipe_text(method: str, model: Path, adapters_: list[Path], weights: tuple[float, ...] = WEIGHTS) -> str:
    entries = [{"model": f"{model}+{a}", "parameters": {"weight": w}} for a, w in zip(adapters_, weights, strict=True)]
    data: dict[str, Any] = {"merge_method": method, "models": entries, "dtype": "float32"}
    if method != "linear":
        data |= {"base_model": str(model)}
    if method == "ties":
        data |= {"parameters": {"density": 0.6}}
    return json.dumps(data)


def built(text: str) -> dict[str, torch.Tensor]:
    recipe = parse_recipe(text)
    return dict(Engine(open_sources(recipe.references()), threads=1).tensors(recipe))


def test_task_arithmetic_of_mixed_ranks_and_negative_weights(three: tuple[Path, list[Path]]) -> None:
    model, folders = three
    merged = built(recipe_text("task_arithmetic", model, folders))
    changed = 0
    for name, tensor in load_file(model / "model.safetensors").items():
        parts = [w * numpy_delta(f, name) for f, w in zip(folders, WEIGHTS, strict=True)]
        if all(isinstance(part, float) for part in parts):
            assert torch.equal(merged[name], tensor), name
            continue
        changed += 1
        error = np.abs(merged[name].double().numpy() - (tensor.double().numpy() + sum(parts)))
        # Four terms, each rounded to float32 once, and their sums.
        assert np.all(error <= 2.5e-7 * (np.abs(tensor.double().numpy()) + sum(map(np.abs, parts)))), name
    assert changed == 3 * 4


def test_the_task_vector_itself_is_exact(three: tuple[Path, list[Path]]) -> None:
    model, folders = three
    for folder in folders:
        found = deltas(open_source(f"{model}+{folder}"))
        for name, delta in found.items():
            expected = numpy_delta(folder, name)
            np.testing.assert_allclose(delta.double().numpy(), expected, rtol=1.2e-7, atol=1e-12, err_msg=name)


@pytest.mark.filterwarnings("ignore")
def test_task_arithmetic_is_pefts_own_exact_combination(three: tuple[Path, list[Path]]) -> None:
    model, folders = three
    live = transformers.AutoModelForCausalLM.from_pretrained(model, dtype=torch.float64)
    adapted = peft.PeftModel.from_pretrained(live, folders[0], "a0", autocast_adapter_dtype=False)
    for i, folder in enumerate(folders[1:], start=1):
        adapted.load_adapter(folder, f"a{i}", autocast_adapter_dtype=False)
    weights = [w for w in WEIGHTS]
    # peft refuses "cat" where adapters have different targets: only those of all three are compared.
    adapted.add_weighted_adapter(["a0", "a1", "a2"], weights, "all", combination_type="cat")
    adapted.set_adapter("all")
    expected = adapted.merge_and_unload().state_dict()
    merged = built(recipe_text("task_arithmetic", model, folders))
    for name, tensor in merged.items():
        torch.testing.assert_close(tensor.double(), expected[name].double(), rtol=1.2e-7, atol=1e-7, msg=name)


@pytest.mark.parametrize("method", ["linear", "ties", "dare_ties"])
def test_other_methods_see_the_merged_weights(three: tuple[Path, list[Path]], tmp_path: Path, method: str) -> None:
    model, folders = three
    if method == "dare_ties":  # its masks are drawn by content, which differs: at full density none is drawn
        text = recipe_text(method, model, folders)
    else:
        text = recipe_text(method, model, folders, (0.5, 0.3, 0.2))
    merged = built(text)
    for folder in folders:
        plain = Path(shutil.copytree(model, tmp_path / folder.parent.name))
        tensors = load_file(model / "model.safetensors")
        for name in tensors:
            delta = torch.as_tensor(numpy_delta(folder, name))
            tensors[name] = (tensors[name].double() + delta).float()
        save_file(tensors, plain / "model.safetensors")
        text = text.replace(f"{model}+{folder}", str(plain))
    assert "+" not in text
    expected = built(text)
    for name, tensor in merged.items():
        # Where elements of a task vector are equal to rounding, TIES may trim another one.
        close = torch.isclose(tensor, expected[name], rtol=1e-6, atol=2e-7)
        assert float((~close).float().mean()) <= (0.01 if method == "ties" else 0.0), name


def test_an_adapter_as_the_base(three: tuple[Path, list[Path]]) -> None:
    model, folders = three
    base = f"{model}+{folders[0]}"
    text = json.dumps({"merge_method": "task_arithmetic", "base_model": base, "dtype": "float32",
                       "models": [{"model": str(model), "parameters": {"weight": 1.0}}]})  # fmt: skip
    merged = built(text)
    for name, tensor in load_file(model / "model.safetensors").items():
        torch.testing.assert_close(merged[name], tensor, rtol=1e-6, atol=1e-6)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("method", ["linear", "task_arithmetic"])
def test_mergekit_builds_the_same(three: tuple[Path, list[Path]], tmp_path: Path, method: str) -> None:
    """One recipe file, both programs: mergekit merges each adapter into a copy of the model first."""
    pytest.importorskip("mergekit")
    import yaml
    from mergekit.config import MergeConfiguration
    from mergekit.merge import run_merge
    from mergekit.options import MergeOptions

    model, folders = three
    text = recipe_text(method, model, folders)
    configuration = MergeConfiguration.model_validate(yaml.safe_load(text))
    options = MergeOptions(lora_merge_cache=str(tmp_path / "cache"), quiet=True)
    run_merge(configuration, str(tmp_path / "theirs"), options)
    theirs = load_file(tmp_path / "theirs" / "model.safetensors")
    ours = built(text)
    assert ours.keys() == theirs.keys()
    for name, tensor in ours.items():
        torch.testing.assert_close(tensor, theirs[name], rtol=1e-6, atol=1e-6, msg=name)


def test_the_adapter_is_not_overwritten(three: tuple[Path, list[Path]], tmp_path: Path) -> None:
    model, folders = three
    here = tmp_path / "out"
    here.mkdir()
    (here / "config.json").write_text("{}")
    adapter = Path(shutil.copytree(folders[0], here / "adapter"))
    recipe = parse_recipe(recipe_text("linear", model, [adapter], (1.0,)))
    with pytest.raises(InputError, match="holds the source model"):
        Engine(open_sources(recipe.references())).write(recipe, here, overwrite=True)
    assert (adapter / "adapter_model.safetensors").exists()


MEMORY = """
import os, sys, threading
from pathlib import Path
from evomerge.merging.engine import Engine
from evomerge.recipe import load_recipe
from evomerge.sources import open_sources

def anonymous():
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("RssAnon"))

recipe = load_recipe(sys.argv[1])
engine = Engine(open_sources(recipe.references()), threads=1)
start, peak, done = anonymous(), [0], threading.Event()
def watch():
    while not done.wait(0.002):
        peak[0] = max(peak[0], anonymous())
watcher = threading.Thread(target=watch)
watcher.start()
engine.write(recipe, Path(sys.argv[2]))
done.set(); watcher.join()
print(peak[0] - start)
"""


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="reads /proc")
def test_memory_stays_far_below_one_copy_of_the_model(tmp_path: Path) -> None:
    rows, columns = 8192, 4096  # 128 MB
    model = tmp_path / "model"
    model.mkdir()
    generator = torch.Generator().manual_seed(0)
    name = "model.layers.0.mlp.up_proj.weight"
    save_file({name: torch.randn(rows, columns, generator=generator)}, model / "model.safetensors")
    config = {"model_type": "llama", "architectures": ["LlamaForCausalLM"], "num_hidden_layers": 1}
    (model / "config.json").write_text(json.dumps(config))
    for file in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copyfile(zoo.path("base") / file, model / file)
    folders = []
    for rank in (2, 4, 8):
        folder = tmp_path / f"lora{rank}"
        folder.mkdir()
        key = f"base_model.model.{name.removesuffix('.weight')}"
        a = torch.randn(rank, columns, generator=generator)
        b = torch.randn(rows, rank, generator=generator)
        save_file({f"{key}.lora_A.weight": a, f"{key}.lora_B.weight": b}, folder / "adapter_model.safetensors")
        (folder / "adapter_config.json").write_text(json.dumps({"peft_type": "LORA", "r": rank, "lora_alpha": 2}))
        folders.append(folder)
    (tmp_path / "recipe.json").write_text(recipe_text("task_arithmetic", model, folders))
    command = [sys.executable, "-c", MEMORY, str(tmp_path / "recipe.json"), str(tmp_path / "out")]
    done = subprocess.run(command, capture_output=True, text=True, env={**os.environ, "OMP_NUM_THREADS": "1"})
    assert done.returncode == 0, done.stderr[-3000:]
    assert (tmp_path / "out" / "model.safetensors").stat().st_size > 128 << 20
    assert int(done.stdout) < 50_000, "kB; one copy is 131,072"
