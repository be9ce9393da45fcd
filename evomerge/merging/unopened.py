"""What can be said of a recipe whose models cannot all be opened: of its numbers, and of those models that can."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from evomerge.errors import RecipeError, SourceError
from evomerge.merging.statistics import unnamed
from evomerge.merging.tokens import check_template
from evomerge.recipe import (
    InputModel,
    InputSlice,
    ModelReference,
    Module,
    Parameters,
    Recipe,
    merged_models,
    stack_ends,
)
from evomerge.sources import Source, check_fit, open_source

# Sources, what they are merged against, and the parameters that apply to all of them.
Group = tuple[Sequence[InputModel | InputSlice], str | None, list[Parameters | None]]


def recipe_problems(recipe: Recipe) -> list[str]:
    """Problems of a recipe that need no model to be seen, a line each."""
    problems: list[str] = []
    try:
        check_template(recipe.chat_template)
    except RecipeError as e:
        problems.append(str(e))
    problems += _lacking(recipe)
    merged = [m for m in recipe.merged_models() if not (recipe.method.apart and m == recipe.base_model)]
    return list(dict.fromkeys([*problems, *unnamed(recipe, merged)]))


def misfits(recipe: Any, made: Collection[str], root: Path | None) -> list[str]:
    """How the models that can be opened do not fit each other.

    Args:
        recipe: A recipe, or the plain data of a file that is none yet.
        made: Names of results of other recipes, which are no models yet.
        root: Where a relative folder is looked for when it is not below the current one.
    """

    def has(key: str) -> bool:
        return bool(recipe.get(key) if isinstance(recipe, Mapping) else getattr(recipe, key))

    if has("modules"):
        return []  # not every module is of every model
    opened: list[Source] = []
    for reference in merged_models(recipe):
        with suppress(RecipeError, SourceError):
            if ModelReference.parse(reference).path not in made:
                opened.append(open_source(reference, root, weights=False))
    own = stack_ends(recipe)
    ends = None if own is None else [s for s in opened if s.reference in own]
    vocabulary = not (has("tokenizer_source") or has("tokenizer"))
    try:
        check_fit(opened, layers=has("models"), vocabulary=vocabulary, ends=ends)
    except SourceError as e:
        return str(e).splitlines()
    return []


def _lacking(recipe: Recipe) -> Iterator[str]:
    """Parameters without a default that nothing gives."""
    method = recipe.method
    for parameter in method.parameters:
        if parameter.default is not None:
            continue
        for sources, base, levels in _groups(recipe):
            if any(parameter.name in level for level in levels if level):
                continue
            given = [bool(s.parameters and parameter.name in s.parameters) for s in sources]
            if not parameter.per_source:
                yield f'merge_method "{method.name}" needs "{parameter.name}", and the recipe has none'
                continue
            for source, has in zip(sources, given, strict=True):
                if not has and not (method.apart and source.model == base):
                    yield f'merge_method "{method.name}" needs "{parameter.name}", and "{source.model}" has none'


def _groups(recipe: Recipe) -> Iterator[Group]:
    holders: list[tuple[Recipe | Module, Parameters | None]] = [(recipe, None)]
    holders += [(module, module.parameters) for module in (recipe.modules or {}).values()]
    for holder, own in holders:
        if holder.models:
            yield holder.models, recipe.base_model, [own, recipe.parameters]
        for piece in holder.slices or ():
            yield piece.sources, piece.base_model or recipe.base_model, [piece.parameters, own, recipe.parameters]
