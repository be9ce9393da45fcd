"""Merges that a search over fused targets tries first: what FuseChat merges by, and weights by layer from it."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
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
    from torch import Tensor

    # What one tensor says of the sources' weights at its place: a matrix and a vector of normal equations.
    Equations = tuple[Tensor, Tensor]
    Told = Callable[[str, Tensor, Sequence[Tensor]], Equations]

# FuseChat's own settings (arXiv 2408.07990, section 4.1; 2402.16107, section 3.3).
SCE_SHARE = 0.1
VARM_UNIT = "matrix"


def write_starts(options: Options, names: Sequence[str], folder: Path) -> list[Path]:
    """Write the recipes of the starts that a space has, for `--enqueue`.

    "sce" and "varm" are FuseChat's merges, where the space has the method; where it has weights by source alone, the
    weights that come nearest to them. "layerwise" is task arithmetic whose weights, at each place of the space, are
    VaRM's: how far each target moved there.

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
    weighed = "task_arithmetic" in config.method and "source" in _axes(space) and config.base_model is not None
    if name == "layerwise":
        return space.decode(_weights(config, space, sources, _moved), seed=0) if weighed else None
    if name not in config.method and not weighed:
        return None
    parameters: dict[str, Setting] = {"select_topk": SCE_SHARE} if name == "sce" else {"unit": VARM_UNIT}
    recipe = Recipe(
        merge_method=name, models=[InputModel(model=s.model) for s in config.sources], base_model=config.base_model,
        parameters=parameters, dtype=config.dtype, out_dtype=config.out_dtype,
    )  # fmt: skip
    if name not in config.method:
        from evomerge.merging.engine import Engine

        return space.decode(_weights(config, space, sources, _nearest(Engine(sources).tensors(recipe))), seed=0)
    try:
        space.encode(recipe)
    except SpaceError:
        return None  # the space's own bounds or fixed values leave it out
    return recipe


def _axes(space: Space) -> tuple[str, ...]:
    """What a weight has a value of its own for; nothing where none is searched."""
    return space.genes["weight"].axes if "weight" in space.genes else ()


def _moved(name: str, base: Tensor, deltas: Sequence[Tensor]) -> Equations:
    """VaRM's weights (arXiv 2402.16107, eq. 6): a source's squared distance to the base as a share of all of theirs."""
    import torch

    energies = torch.stack([d.square().sum() for d in deltas])
    return torch.eye(len(deltas), dtype=torch.float64) * energies.sum(), energies


def _nearest(merged: Iterator[tuple[str, Tensor]]) -> Told:
    """The weights w that make base + sum_j w_j delta_j nearest to a merge, by least squares.

    Args:
        merged: Its tensors, taken as they come: those that are asked for in the same order are never held together.
    """
    held: dict[str, Tensor] = {}

    def told(name: str, base: Tensor, deltas: Sequence[Tensor]) -> Equations:
        import torch

        flat = torch.stack([d.flatten() for d in deltas])
        while name not in held:
            held.update([next(merged)])
        return flat @ flat.T, flat @ (held.pop(name).double() - base).flatten()

    return told


def _weights(config: SpaceConfig, space: Space, sources: Mapping[str, Source], told: Told) -> dict[str, Value]:
    """Parameters of the space whose weights at each of its places solve what its tensors say, added up."""
    import torch

    from evomerge.merging.engine import Engine
    from evomerge.merging.mapped import MappedFiles

    gene = space.genes["weight"]
    places = list(space.grid.positions(gene.axes))
    names = {(s.name, place): gene.name(s.name, place) for s in config.sources for place in places}
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
    files = MappedFiles()
    added: dict[tuple[str, ...], list[Tensor]] = {}
    for t in plan.tensors:
        if t.copied or t.base is None:
            continue
        base = files.tensor(plan.sources[t.base.model].tensors[t.base.tensor]).double()
        deltas = [files.tensor(plan.sources[i.model].tensors[i.tensor]).double() - base for i in t.inputs]
        weights = t.parameters["weight"]
        assert isinstance(weights, tuple)
        own = tuple(by_mark[round(float(w), 9)] for w in weights)
        left, right = told(t.name, base, deltas)
        if own in added:
            added[own][0] += left
            added[own][1] += right
        else:
            added[own] = [left, right]
    for own, (left, right) in added.items():
        # Sources that moved alike, or not at all, share what there is.
        found = torch.linalg.pinv(left) @ right if bool(left.any()) else torch.full((len(own),), 1 / len(own))
        for name, weight in zip(own, found.tolist(), strict=True):
            params[name] = min(max(weight, bounds[name].low), bounds[name].high)
    return params
