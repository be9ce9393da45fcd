"""What can be said of a recipe whose models cannot be opened: its numbers may still be lacking."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from evomerge.errors import RecipeError
from evomerge.merging.statistics import unnamed
from evomerge.merging.tokens import check_template
from evomerge.recipe import InputModel, InputSlice, Module, Parameters, Recipe

# Sources, what they are merged against, and the parameters that apply to all of them.
Group = tuple[Sequence[InputModel | InputSlice], str | None, list[Parameters | None]]


def recipe_problems(recipe: Recipe) -> list[str]:
    """Problems of a recipe that need no model to be seen, a line each."""
    problems: list[str] = []
    try:
        check_template(recipe)
    except RecipeError as e:
        problems.append(str(e))
    problems += _lacking(recipe)
    merged = [m for m in recipe.merged_models() if not (recipe.method.apart and m == recipe.base_model)]
    return list(dict.fromkeys([*problems, *unnamed(recipe, merged)]))


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
