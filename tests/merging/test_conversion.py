"""Parts of fused parameters: transformers' own conversion is the oracle, followed backwards."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM
from transformers.core_model_loading import (
    Chunk,
    Concatenate,
    Conv3dToLinear,
    Interleave,
    LinearToConv3d,
    MergeModulelist,
    Transpose,
    WeightConverter,
    WeightRenaming,
)

from evomerge.errors import RecipeError
from evomerge.merging.conversion import converted_parts
from evomerge.merging.engine import Engine
from evomerge.merging.live import live_model, live_model_for
from evomerge.merging.targets import live_names, targets_of
from evomerge.recipe import parse_recipe
from evomerge.sources import open_sources

Make = Callable[..., Path]

# Converters as transformers has them, with the shapes of what they take.
CONVERTERS: dict[str, tuple[WeightConverter, dict[str, tuple[int, ...]]]] = {
    "experts": (
        WeightConverter([".experts.*.w1.weight", ".experts.*.w3.weight"], ".experts.gate_up_proj",
                        [MergeModulelist(dim=0), Concatenate(dim=1)]),
        {f"a.experts.{i}.{w}.weight": (3, 5) for i in range(11) for w in ("w1", "w3")},
    ),
    "transposed experts": (
        WeightConverter(".experts.*.w2.weight", ".experts.down_proj", [MergeModulelist(dim=0), Transpose(1, 2)]),
        {f"a.experts.{i}.w2.weight": (3, 5) for i in range(11)},
    ),
    "uneven concatenation": (
        WeightConverter([".q.weight", ".k.weight", ".v.weight"], ".qkv.weight", [Concatenate(dim=0)]),
        {"a.v.weight": (2, 4), "a.q.weight": (6, 4), "a.k.weight": (3, 4)},
    ),
    "transposition": (WeightConverter(".w.weight", ".t.weight", [Transpose(0, 1)]), {"a.w.weight": (3, 5)}),
    "convolution": (
        WeightConverter(".proj.weight", ".linear.weight", [Conv3dToLinear(2, (1, 2, 2))]),
        {"a.proj.weight": (4, 2, 1, 2, 2)},
    ),
    "back to a convolution": (
        WeightConverter(".linear.weight", ".proj.weight", [LinearToConv3d(2, (1, 2, 2))]), {"a.linear.weight": (4, 8)}
    ),
}  # fmt: skip


class Model(torch.nn.Module):
    """What the conversion asks of a live model, with one parameter."""

    base_model_prefix = "model"

    def __init__(self, name: str, value: torch.Tensor) -> None:
        super().__init__()
        *modules, last = name.split(".")
        inner: torch.nn.Module = self
        for part in modules:
            inner.add_module(part, torch.nn.Module())
            inner = getattr(inner, part)
        inner.register_parameter(last, torch.nn.Parameter(value))


def conversion(monkeypatch: pytest.MonkeyPatch, *transforms: WeightRenaming | WeightConverter) -> None:
    module = import_module("transformers.conversion_mapping")
    monkeypatch.setattr(module, "get_model_conversion_mapping", lambda model: list(transforms))


@pytest.mark.parametrize("name", CONVERTERS)
def test_every_stored_tensor_lies_where_transformers_puts_it(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    converter, shapes = CONVERTERS[name]
    stored = {n: torch.randn(shape, generator=torch.Generator().manual_seed(i))
              for i, (n, shape) in enumerate(shapes.items())}  # fmt: skip
    target = ""
    ready = WeightConverter(
        list(converter._original_source_patterns), list(converter._original_target_patterns), converter.operations
    )
    # As the loader does it: names in natural order, whatever order the file has.
    for n in sorted(stored, key=lambda n: [int(p) if p.isdigit() else 0 for p in n.split(".")]):
        target, pattern = ready.rename_source_key(n)
        assert pattern is not None
        ready.add_tensor(target, n, pattern, stored[n])  # type: ignore[arg-type]
    ((_, fused),) = ready.convert(target).items()
    model = Model(target, fused[0].clone() if isinstance(fused, list) else fused.clone())
    conversion(monkeypatch, converter)
    parts = converted_parts(shapes, model)  # type: ignore[arg-type]
    live = model.get_parameter(target)
    covered = torch.zeros_like(live, dtype=torch.int)
    for n, x in stored.items():
        part = parts[n]
        assert part is not None and part.name == target
        assert torch.equal(part.view(live.detach()), x), n
        part.view(covered).add_(1)
    assert (covered == 1).all()


REFUSED = {
    "Chunk(dim=0)": (WeightConverter(".qkv.weight", [".q.weight", ".k.weight"], [Chunk(dim=0)]), ".q.weight"),
    "Interleave(dim=0)": (WeightConverter(".qkv.weight", ".w13.weight", [Interleave(dim=0)]), ".w13.weight"),
}


@pytest.mark.parametrize("operation", REFUSED)
def test_operations_that_are_no_views_are_refused_by_name(operation: str, monkeypatch: pytest.MonkeyPatch) -> None:
    converter, target = REFUSED[operation]
    conversion(monkeypatch, converter)
    with pytest.raises(RecipeError) as e:
        converted_parts({"a.qkv.weight": (4, 3)}, Model(f"a{target}", torch.zeros(4, 3)))  # type: ignore[arg-type]
    assert operation in str(e.value) and '"a.qkv.weight" cannot be written into a live model' in str(e.value)


def recipe_of(*folders: Path) -> Any:
    listed = ", ".join(f"{{model: {f}}}" for f in folders)
    return parse_recipe(f"{{merge_method: linear, models: [{listed}], parameters: {{weight: 1}}}}")


@pytest.mark.parametrize("kind", ["mixtral", "qwen3_moe"])
def test_targets_are_views_of_the_models_parameters(kind: str, make: Make) -> None:
    folder = make(kind, seed=1)
    recipe = recipe_of(folder)
    plan = Engine(open_sources(recipe.references())).plan(recipe)
    model = live_model_for(plan)
    targets = targets_of(plan, model)
    assert [t.name for t, _ in targets] == [t.name for t in plan.tensors]
    storages = {p.untyped_storage().data_ptr() for p in model.parameters()}
    for p in model.parameters():
        p.zero_()
    for t, view in targets:
        assert tuple(view.shape) == t.shape and view.untyped_storage().data_ptr() in storages
        view.add_(1)  # every element once
    assert all(bool((p == 1).all()) for p in model.parameters())
    names = live_names([t.name for t in plan.tensors], dict(model.named_parameters()), model)
    assert None not in names.values() and any(n and n.endswith("gate_up_proj") for n in names.values())


def changed(folder: Path, out: Path, change: Callable[[dict[str, torch.Tensor]], None]) -> Path:
    shutil.copytree(folder, out)
    tensors = load_file(out / "model.safetensors")
    change(tensors)
    save_file(tensors, out / "model.safetensors", {"format": "pt"})
    return out


def test_an_expert_that_is_lacking(make: Make, tmp_path: Path) -> None:
    name = "model.layers.1.block_sparse_moe.experts.2.w3.weight"
    folder = changed(make("mixtral", seed=1), tmp_path / "lacking", lambda tensors: tensors.pop(name))
    live = live_model(make("mixtral", seed=2))
    recipe = recipe_of(folder)
    with pytest.raises(RecipeError, match=r"layers.1.*gate_up_proj"):
        Engine(open_sources(recipe.references())).build_into(recipe, live)


def test_two_tensors_of_one_place(make: Make, tmp_path: Path) -> None:
    def twice(tensors: dict[str, torch.Tensor]) -> None:
        tensors["norm.weight"] = tensors["model.norm.weight"].clone()

    recipe = recipe_of(changed(make(seed=1), tmp_path / "twice", twice))
    with pytest.raises(RecipeError, match="have the same place in the live model"):
        Engine(open_sources(recipe.references())).build_into(recipe, live_model(make(seed=2)))


def test_a_fused_model_again_and_again(make: Make, tmp_path: Path) -> None:
    """The parts are found once; a model moved in memory in between is written where it is then."""
    folders = [make("mixtral", seed=s) for s in (1, 2)]
    engine = Engine(open_sources(map(str, folders)))
    live = live_model(folders[0])
    for folder in (folders[1], folders[0], folders[1]):
        for p in live.parameters():
            p.data = p.data.clone()
        engine.build_into(recipe_of(folder), live)
        own = AutoModelForCausalLM.from_pretrained(folder, dtype="auto").state_dict()
        assert all(torch.equal(x, own[n]) for n, x in live.state_dict().items())
