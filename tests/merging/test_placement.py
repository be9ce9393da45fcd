"""Models over several devices. Without GPUs: the device map that accelerate makes for two of a given size, and a model
that really runs through its hooks, on the CPU twice; with them (make gpu-check) the same on GPUs."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import pytest
import torch
from torch import Tensor

from evomerge.errors import InputError, RecipeError
from evomerge.merging.engine import Engine
from evomerge.merging.live import live_model
from evomerge.merging.placement import device_map, park, spread, unpark
from evomerge.recipe import Recipe
from evomerge.sources import Source, open_sources

# Two names that accelerate makes a map for on any machine.
PAIR = ["mps", "cpu"]
REFERENCES = ("zoo:base", "zoo:maths", "zoo:kovesh")


@pytest.fixture(scope="module")
def sources() -> dict[str, Source]:
    return open_sources(REFERENCES)


@pytest.fixture
def recipe() -> Recipe:
    return Recipe.model_validate({
        "merge_method": "ties", "base_model": "zoo:base", "dtype": "float32",
        "models": [{"model": m, "parameters": {"weight": 0.6, "density": 0.5}} for m in REFERENCES[1:]],
    })  # fmt: skip


def size(model: torch.nn.Module) -> int:
    return sum(p.nbytes for p in model.parameters())


def logits(model: torch.nn.Module) -> Tensor:
    device = next(model.parameters()).device
    with torch.inference_mode():
        found: Tensor = model(torch.tensor([[5, 6, 7, 8]], device=device)).logits
    return found.cpu()


def test_layers_stay_whole_and_nothing_is_offloaded(sources: dict[str, Source]) -> None:
    model = live_model(sources["zoo:base"])
    each = int(size(model) * 0.8)  # accelerate keeps room for a layer on each, as if some were offloaded
    placed = device_map(model, PAIR, dict.fromkeys(PAIR, each))
    assert set(placed.values()) == set(PAIR)
    for number in range(model.config.num_hidden_layers):
        assert [name for name in placed if name.startswith(f"model.layers.{number}.")] == []
    # In the order in which they run, so that hidden states change the device once.
    order = [placed[f"model.layers.{n}"] for n in range(model.config.num_hidden_layers)]
    assert order == sorted(order, key=PAIR.index)
    # What is tied goes together.
    if model.config.tie_word_embeddings:
        assert placed["model.embed_tokens"] == placed.get("lm_head", placed["model.embed_tokens"])


def test_a_model_that_does_not_fit_is_told_with_both_sizes(sources: dict[str, Source]) -> None:
    model = live_model(sources["zoo:base"])
    with pytest.raises(InputError, match=r"has [\d.e-]+ GB of weights, and the 2 GPUs .* expected --gpus-per-worker 3"):
        device_map(model, PAIR, dict.fromkeys(PAIR, size(model) // 4))


def check_builds(sources: dict[str, Source], recipe: Recipe, model: torch.nn.Module, device: str) -> None:
    alone = live_model(sources["zoo:base"], device=device)
    Engine(sources, device=device).build_into(recipe, alone)
    engine = Engine(sources, device=device)
    for _ in range(2):  # the second into what the first left
        engine.build_into(recipe, model)
        state, expected = model.state_dict(), alone.state_dict()
        assert state.keys() == expected.keys()
        assert all(torch.equal(state[n].cpu(), expected[n].cpu()) for n in state)
    assert torch.allclose(logits(model), logits(alone), atol=1e-5)


def test_a_model_that_runs_by_accelerates_hooks_is_built_in_place(sources: dict[str, Source], recipe: Recipe) -> None:
    model = live_model(sources["zoo:base"])
    spread(model, ["cpu", "cpu"], {"cpu": 2 * size(model)})
    assert any(hasattr(m, "_hf_hook") for m in model.modules())
    check_builds(sources, recipe, model, "cpu")
    park(model)
    unpark(model, "cpu")
    check_builds(sources, recipe, model, "cpu")


def test_weights_that_are_not_in_memory_are_told(sources: dict[str, Source], recipe: Recipe) -> None:
    model = live_model(sources["zoo:base"])
    model.model.norm.weight = torch.nn.Parameter(model.model.norm.weight.to("meta"), requires_grad=False)
    with pytest.raises(RecipeError, match="of the live model is not in memory"):
        Engine(sources).build_into(recipe, model)


@pytest.fixture
def gpus() -> Sequence[str]:
    if torch.cuda.device_count() < 2:
        pytest.skip("needs two GPUs")
    return ["cuda:0", "cuda:1"]


@pytest.mark.gpu
def test_a_model_over_two_gpus_is_built_where_it_lies(
    sources: dict[str, Source], recipe: Recipe, gpus: Sequence[str], tmp_path: Path
) -> None:
    model = live_model(sources["zoo:base"])
    each = int(size(model) * 0.7)
    spread(model, gpus, dict.fromkeys(gpus, each))
    before = {n: p.device for n, p in model.named_parameters()}
    assert {str(d) for d in before.values()} == set(gpus)
    check_builds(sources, recipe, model, "cuda")
    park(model)
    assert {p.device.type for p in model.parameters()} == {"cpu"}
    unpark(model, "cuda")
    assert {n: p.device for n, p in model.named_parameters()} == before
    check_builds(sources, recipe, model, "cuda")


@pytest.mark.gpu
def test_half_a_gpu_takes_half_of_its_memory(sources: dict[str, Source]) -> None:
    import subprocess
    import sys

    code = (
        "import sys, torch; from evomerge.evaluation import load_evaluator; from evomerge.sources import open_sources; "
        "from evomerge.study.builder import Builder; "
        "Builder(open_sources(['zoo:base']), 'zoo:base', load_evaluator('quickstart'), gpus=0.5); "
        "total = torch.cuda.mem_get_info()[1]; "
        "torch.empty(int(0.3 * total), dtype=torch.uint8, device='cuda')\n"
        "try: torch.empty(int(0.6 * total), dtype=torch.uint8, device='cuda')\n"
        "except torch.OutOfMemoryError: print('held')"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.stdout.strip() == "held", done.stderr
