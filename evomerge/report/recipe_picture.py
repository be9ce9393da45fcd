"""A merge as a picture: the weight of each source in each layer and module."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from evomerge.recipe import Recipe
from evomerge.recipe.values import Condition, number, resolve
from evomerge.report.path import short_name

DPI = 120
MOST_NUMBERS = 400  # cells, above which no numbers are written into them
# Names that filters for what is no layer look for.
EMBEDDINGS, HEAD = "model.embed_tokens.embed_in.wte.weight", "lm_head.model.norm.weight"


@dataclass(frozen=True)
class Coefficients:
    """Weights of a merge.

    Attributes:
        parameter: Which parameter of the method it is ("weight", or the first that varies).
        rows: (source's short name, module) of each row.
        values: Shape (rows, layers + 2): embeddings, each layer, norm and head; NaN where a row has none.
    """

    parameter: str
    rows: tuple[tuple[str, str], ...]
    values: np.ndarray[Any, np.dtype[np.float64]]


def coefficients(recipe: Recipe, names: Mapping[str, str], depths: Mapping[str, int]) -> Coefficients | None:
    """What a recipe says of each source, layer and module; None where it has no numbers by source.

    Args:
        names: Short names of the models by reference.
        depths: Their numbers of layers.
    """
    places = list(_places(recipe, depths))
    keys = [k for _, _, _, settings in places for s in settings for k in (s or {})]
    parameter = "weight" if "weight" in keys else next(iter(keys), None)
    if parameter is None:
        return None
    layers = max(layer for layer, _, _, _ in places) + 1
    filters = list(dict.fromkeys(f for _, _, _, settings in places for f in _filters(settings, parameter)))
    modules = [f for f in filters if f not in EMBEDDINGS and f not in HEAD] or [""]
    if len(modules) > 1 or modules != [""]:
        modules.append("other")
    sources = list(dict.fromkeys(m for _, _, m, settings in places if any(parameter in (s or {}) for s in settings)))
    rows = [(m, module) for m in sources for module in modules]
    values = np.full((len(rows), layers + 2), np.nan)
    for layer, t, model, settings in places:
        setting = next((s[parameter] for s in settings if s and parameter in s), None)
        for r, (m, module) in enumerate(rows):
            if m != model or setting is None:
                continue
            values[r, layer + 1] = _value(setting, f"model.layers.{layer}.{module}.weight", t)
            if module in (modules[0], ""):
                if layer == 0:
                    values[r, 0] = _value(setting, EMBEDDINGS, 0.0)
                if layer == layers - 1:
                    values[r, -1] = _value(setting, HEAD, 1.0)
    shown = tuple((short_name(m, names), module) for m, module in rows)
    return Coefficients(parameter, shown, values) if np.isfinite(values).any() else None


def _places(recipe: Recipe, depths: Mapping[str, int]) -> Iterator[tuple[int, float, str, tuple[Any, ...]]]:
    """(layer, place in its slice from 0 to 1, model, its settings from the nearest on) of every layer and source."""
    whole = recipe.parameters
    if recipe.slices:
        first = 0
        for part in recipe.slices:
            count = part.sources[0].layer_range[1] - part.sources[0].layer_range[0]
            for layer in range(count):
                t = layer / (count - 1) if count > 1 else 0.0
                for source in part.sources:
                    yield first + layer, t, source.model, (source.parameters, part.parameters, whole)
            first += count
    for entry in recipe.models or []:
        count = depths.get(entry.model) or max(depths.values(), default=1)
        for layer in range(count):
            yield layer, layer / (count - 1) if count > 1 else 0.0, entry.model, (entry.parameters, whole)


def _filters(settings: tuple[Any, ...], parameter: str) -> Iterator[str]:
    for found in settings:
        setting = (found or {}).get(parameter)
        for entry in setting if isinstance(setting, list) else [setting]:
            if isinstance(entry, Condition) and entry.filter not in (None, "*"):
                yield str(entry.filter)


def _value(setting: Any, tensor: str, t: float) -> float:
    found = resolve(setting, tensor, t)
    try:
        return float("nan") if found is None else number(found)
    except (ValueError, TypeError):
        return float("nan")


def write_recipe_png(found: Coefficients, title: str, file: Path) -> None:
    """Draw the weights as a PNG: a row for each source and module, a column for each layer.

    Args:
        file: File to write; replaced when it exists.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg  # no pyplot: no global state, no display
    from matplotlib.figure import Figure

    rows, columns = found.values.shape
    figure = Figure(figsize=(min(4.0 + 0.42 * columns, 40.0), min(1.8 + 0.36 * rows, 40.0)), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    top = max(1e-9, float(np.nanmax(np.abs(found.values))))
    # Purple and orange, white in the middle at 0: told apart with any colour vision, and in grey by their lightness.
    image = axes.imshow(found.values, cmap="PuOr_r", vmin=-top, vmax=top, aspect="auto", interpolation="nearest")
    if rows * columns <= MOST_NUMBERS:
        for (r, c), value in np.ndenumerate(found.values):
            if np.isfinite(value):
                dark = abs(value) > 0.65 * top
                axes.text(c, r, f"{value:.2f}", ha="center", va="center", fontsize=7, color="w" if dark else "k")
    axes.set_yticks(range(rows), [f"{source} {module}".strip() for source, module in found.rows], fontsize=8)
    step = max(1, -(-(columns - 2) // 32))
    layers = list(range(0, columns - 2, step))
    axes.set_xticks([0, *(x + 1 for x in layers), columns - 1], ["emb.", *map(str, layers), "head"], fontsize=8)
    axes.set_xlabel("layer")
    axes.set_title(title, fontsize=9)
    figure.colorbar(image, ax=axes, label=found.parameter)
    figure.savefig(file, dpi=DPI, format="png", metadata={"Software": "evomerge"})
