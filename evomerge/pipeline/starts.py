"""Merges that a search over fused targets tries first: what FuseChat merges by, and weights by layer from it."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from evomerge.errors import SpaceError
from evomerge.pipeline.models import open_space
from evomerge.pipeline.options import Asked, Options
from evomerge.recipe import InputModel, Recipe, Setting
from evomerge.score import Value
from evomerge.sources import Source
from evomerge.space import Float, Space, SpaceConfig

if TYPE_CHECKING:
    from evomerge.merging.plan import Plan, TensorPlan

# FuseChat's own settings (arXiv 2408.07990, section 4.1; 2402.16107, section 3.3).
SCE_SHARE = 0.1
VARM_UNIT = "matrix"


def write_starts(options: Options, names: Sequence[str], folder: Path) -> list[Path]:
    """Write the recipes of the starts that a space has, for `--enqueue`.

    "sce" and "varm" are FuseChat's merges, where the space has the method; "layerwise" is task arithmetic whose
    weights, at each place of the space, are VaRM's: how far each target moved there.

    Returns:
        Their files, in order.
    """
    asked = Asked.by(options)
    config = asked.config
    if not isinstance(config, SpaceConfig):
        return []
    sources, space = open_space(config, asked.root)
    assert isinstance(space, Space)
    found: list[tuple[str, Recipe]] = []
    for name in names:
        recipe = _start(name, config, space, sources)
        if recipe is not None:
            found.append((name, recipe))
    folder.mkdir(parents=True, exist_ok=True)
    files = []
    for name, recipe in found:
        file = folder / f"{name}.yaml"
        file.write_text(recipe.to_yaml(), encoding="utf-8")
        files.append(file)
    return files


def _start(name: str, config: SpaceConfig, space: Space, sources: Mapping[str, Source]) -> Recipe | None:
    if name == "layerwise":
        if "task_arithmetic" not in config.method or "source" not in _axes(space):
            return None
        return space.decode(_moved(config, space, sources), seed=0)
    if name not in config.method:
        return None
    parameters: dict[str, Setting] = {"select_topk": SCE_SHARE} if name == "sce" else {"unit": VARM_UNIT}
    recipe = Recipe(
        merge_method=name, models=[InputModel(model=s.model) for s in config.sources], base_model=config.base_model,
        parameters=parameters, dtype=config.dtype, out_dtype=config.out_dtype,
    )  # fmt: skip
    try:
        space.encode(recipe)
    except SpaceError:
        return None  # the space's own bounds or fixed values leave it out
    return recipe


def _axes(space: Space) -> tuple[str, ...]:
    """What a weight has a value of its own for; nothing where none is searched."""
    return space.genes["weight"].axes if "weight" in space.genes else ()


def _moved(config: SpaceConfig, space: Space, sources: Mapping[str, Source]) -> dict[str, Value]:
    """Parameters of the space with VaRM's weights for each of its places (arXiv 2402.16107, eq. 6).

    A source's weight is its summed squared distance to the base as a share of all of theirs.
    """
    from evomerge.merging.engine import Engine

    gene = space.genes["weight"]
    names = {
        (s.name, place): gene.name(s.name, place) for s in config.sources for place in space.grid.positions(gene.axes)
    }
    bounds = {p.name: p for p in space.parameters if isinstance(p, Float)}
    params = space.initial()
    if len(config.method) > 1:
        params["method"] = "task_arithmetic"
    # Which tensors a parameter is about is read off the plan: each is given a number of its own.
    marks = {}
    for i, name in enumerate(names.values(), start=1):
        low, high = bounds[name].low, bounds[name].high
        marks[name] = low + (high - low) * i / (len(names) + 1)
    plan = Engine(sources).plan(space.decode({**params, **marks}))
    by_mark = {round(mark, 9): name for name, mark in marks.items()}
    moved = dict.fromkeys(marks, 0.0)
    for t in plan.tensors:
        if t.copied or t.base is None:
            continue
        energies = _energies(plan, t)
        weights = t.parameters["weight"]
        assert isinstance(weights, tuple)
        for weight, energy in zip(weights, energies, strict=True):
            moved[by_mark[round(float(weight), 9)]] += energy
    for place in space.grid.positions(gene.axes):
        own = [names[s.name, place] for s in config.sources]
        total = math.fsum(moved[name] for name in own)
        for name in own:
            share = moved[name] / total if total else 1 / len(own)
            params[name] = min(max(share, bounds[name].low), bounds[name].high)
    return params


def _energies(plan: Plan, t: TensorPlan) -> list[float]:
    """Sum of squares of each source's task vector of one tensor."""
    from evomerge.merging.mapped import MappedFiles

    assert t.base is not None
    files = MappedFiles()
    base = files.tensor(plan.sources[t.base.model].tensors[t.base.tensor]).float()
    found = []
    for item in t.inputs:
        delta = files.tensor(plan.sources[item.model].tensors[item.tensor]).float() - base
        found.append(float(delta.double().square().sum()))
    return found
