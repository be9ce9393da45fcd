"""A candidate in a line or two of words: which method, and how much of whom."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from evomerge.recipe import Path, Recipe
from evomerge.report.path import path_text
from evomerge.score import Value

# Values of modules that lie closer than this are one value.
CLOSE = 0.05


def recipe_words(recipe: Recipe, params: Mapping[str, Value], names: Mapping[str, str]) -> str:
    """`task_arithmetic: maths 0.80 (attention 1.10, mlp 0.50), kovesh 0.40`, or a path (see `path_text`).

    A source's value is the mean over what it has a weight for; in brackets the means of modules, where they differ.

    Args:
        params: The space's parameters that the recipe was made of.
        names: Short names of the sources by reference.
    """
    path = Path.read(recipe)
    if path is not None:
        return path_text(path, names)
    return params_words(params, recipe.merge_method, names.values())


def params_words(params: Mapping[str, Value], method: str, names: Iterable[str]) -> str:
    """The same from parameters alone; what is neither a weight nor of a source follows by its name."""
    left = dict(params)
    words: list[str] = []
    for name in names:
        mine = {k: float(v) for k, v in left.items() if _of(k, "weight", name) and not isinstance(v, str)}
        if mine:
            words.append(f"{name} {_source(mine, f'weight.{name}')}")
            left = {k: v for k, v in left.items() if k not in mine}
    others: dict[str, list[Any]] = {}
    for key, value in left.items():
        if key != "method":
            others.setdefault(key.partition(".")[0], []).append(value)
    words += [_range(kind, values) for kind, values in others.items()]
    return f"{method}: {', '.join(words)}" if words else method


def _of(key: str, kind: str, name: str) -> bool:
    return key == f"{kind}.{name}" or key.startswith(f"{kind}.{name}.")


def _source(mine: Mapping[str, float], prefix: str) -> str:
    """A source's mean weight, and those of its modules."""
    modules: dict[str, list[float]] = {}
    for key, value in mine.items():
        last = key.removeprefix(prefix).lstrip(".").rpartition(".")[2]
        # "layers_0-1", "segment.2": a place in depth, no module.
        modules.setdefault("" if last.startswith(("layer", "segment")) or last.isdigit() else last, []).append(value)
    means = {module: sum(values) / len(values) for module, values in modules.items()}
    whole = sum(mine.values()) / len(mine)
    named = {m: v for m, v in means.items() if m}
    if len(means) < 2 or max(means.values()) - min(means.values()) < CLOSE:
        return f"{whole:.2f}"
    return f"{whole:.2f} ({', '.join(f'{module} {value:.2f}' for module, value in named.items())})"


def _range(kind: str, values: list[Any]) -> str:
    numbers = [float(v) for v in values if not isinstance(v, str)]
    if not numbers:
        return f"{kind} {' / '.join(dict.fromkeys(map(str, values)))}"
    low, high = min(numbers), max(numbers)
    return f"{kind} {low:.3g}" if low == high else f"{kind} {low:.3g} to {high:.3g}"
