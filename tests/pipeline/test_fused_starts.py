"""Merges that a search over fused targets tries first."""

from __future__ import annotations

import re

import numpy as np

from evomerge import zoo
from evomerge.pipeline import Options
from evomerge.pipeline.fused_starts import write_starts
from evomerge.recipe import InputModel, Recipe, load_recipe
from evomerge.recipe.read import parse_recipe
from evomerge.study.budget import Budget


def options(space, **changes) -> Options:
    return Options(budget=Budget(candidates=1), space=str(space), evaluator="quickstart", **changes)


def test_weights_by_layer_are_how_far_each_source_moved(tmp_path):
    """Squared distances to the base, as shares, over the tensors of each place (arXiv 2402.16107, eq. 6)."""
    files = write_starts(options("fused"), ["layerwise", "sce", "varm"], tmp_path)
    assert [f.name for f in files] == ["layerwise.yaml", "sce.yaml", "varm.yaml"]
    recipe = load_recipe(tmp_path / "layerwise.yaml")
    assert recipe.merge_method == "task_arithmetic"
    base, *sources = (load_file_float(n) for n in ("base", "maths", "kovesh"))

    def shares(wanted):
        moved = [sum(float(((s[n] - base[n]) ** 2).sum()) for n in base if wanted(n)) for s in sources]
        return [m / sum(moved) for m in moved]

    expected = {
        ("layers.0.", "attn"): shares(lambda n: "layers.0." in n and "attn" in n),
        ("layers.3.", "mlp"): shares(lambda n: "layers.3." in n and "attn" not in n),
    }
    from evomerge.merging.engine import Engine
    from evomerge.sources import open_sources

    plan = Engine(open_sources(recipe.references())).plan(recipe)
    for (layer, kind), wanted in expected.items():
        own = [t for t in plan.tensors if layer in t.name and ("attn" in t.name) == (kind == "attn") and not t.copied]
        assert own
        for t in own:
            assert np.allclose(t.parameters["weight"], wanted, atol=1e-4), t.name
    # Each matrix alone has VaRM's own weights; over a place they are nearly those.
    near = Engine(open_sources(recipe.references())).plan(load_recipe(tmp_path / "varm.yaml"))
    weights = {t.name: t.parameters["weight"] for t in plan.tensors if not t.copied}
    for t in near.tensors:
        if not t.copied:
            assert np.allclose(t.parameters["weight"], weights[t.name], atol=0.1), t.name


def test_a_merge_that_a_space_can_say_is_found_again(tmp_path):
    """The weights nearest to an average are its own; to SCE's merge nothing of the space is nearer than its start."""
    import torch

    from evomerge.merging.engine import Engine
    from evomerge.sources import open_sources

    (file,) = write_starts(options("fused"), ["sce"], tmp_path)
    recipe = load_recipe(file)
    sources = open_sources(recipe.references())
    models = [InputModel(model=m) for m in ("zoo:maths", "zoo:kovesh")]
    wanted = Recipe(
        merge_method="sce", models=models, base_model="zoo:base", parameters={"select_topk": 0.1},
        dtype="float32", out_dtype="float32",
    )  # fmt: skip
    merged = dict(Engine(sources).tensors(wanted))

    def far(changed: Recipe) -> float:
        found = dict(Engine(sources).tensors(changed))
        return sum(float((found[n].double() - merged[n].double()).square().sum()) for n in merged)

    text = file.read_text()
    here = far(recipe)
    number = float(re.findall(r"value: ([0-9.]+)", text)[0])
    for factor in (0.8, 1.25):
        moved = parse_recipe(text.replace(str(number), str(number * factor)))
        assert far(moved) > here
    assert torch.isfinite(torch.tensor(here))


def test_a_space_of_the_methods_has_them_as_they_are(tmp_path):
    space = tmp_path / "space.yaml"
    space.write_text(
        "kind: parameter\nmethod: [sce, varm]\nbase_model: zoo:base\nsources: [zoo:maths, zoo:kovesh]\n"
        "parameters: {select_topk: {low: 0.0, high: 1.0}, unit: matrix}\n"
    )
    files = write_starts(options(space), ["layerwise", "sce", "varm"], tmp_path / "starts")
    assert [load_recipe(f).merge_method for f in files] == ["sce", "varm"]
    assert load_recipe(files[0]).parameters["select_topk"] == 0.1


def load_file_float(name):
    import torch
    from safetensors.torch import load_file as torch_file

    return {k: v.to(torch.float64).numpy() for k, v in torch_file(zoo.path(name) / "model.safetensors").items()}


def test_a_space_without_them_has_none(tmp_path):
    assert write_starts(options("linear"), ["layerwise", "sce", "varm"], tmp_path) == []
    assert write_starts(options("dataflow"), ["layerwise"], tmp_path) == []


def test_a_bound_that_leaves_one_out(tmp_path):
    space = tmp_path / "space.yaml"
    space.write_text(
        "kind: parameter\nmethod: [sce]\nbase_model: zoo:base\nsources: [zoo:maths, zoo:kovesh]\n"
        "parameters: {select_topk: {low: 0.5, high: 1.0}}\n"
    )
    assert write_starts(options(space), ["sce", "varm"], tmp_path / "starts") == []
