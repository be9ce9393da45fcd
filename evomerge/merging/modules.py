"""Which modules of a composite model a recipe merges, and which are copied."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from evomerge.errors import RecipeError, choose
from evomerge.recipe import InputModel, OutputSlice, Parameters, Recipe
from evomerge.sources import TEXT, Layout, Source

# Other names under which a recipe may speak of a module. mergekit names the only module of a text model "default".
_ALIASES = {
    TEXT: ("default", "language_model", "text_model", "model", "decoder"),
    "vision_tower": ("vision_model", "visual", "vision_encoder"),
    "multi_modal_projector": ("projector", "mm_projector", "connector"),
    "audio_tower": ("audio_model", "audio_encoder"),
}


@dataclass(frozen=True)
class Module:
    """What a recipe says about one module: either `models` or `slices`.

    Attributes:
        where: What stands before the key in messages: "" or "modules.NAME.".
    """

    name: str
    where: str
    models: tuple[InputModel, ...]
    slices: tuple[OutputSlice, ...]
    parameters: Parameters | None


def donor_of(recipe: Recipe, sources: Mapping[str, Source]) -> str:
    """The model whose configuration and modules the merge has: the one that the recipe says, the base, or the first.

    Where a composite model meets text models it is the (first) composite one: they have no place for its modules.

    Raises:
        RecipeError: the recipe says one that has nothing beside a language model.
    """
    into = recipe.evomerge.into
    if into is not None:
        if not is_composite(sources[into]):
            raise RecipeError(
                f'evomerge.into: "{into}" is a text model; expected a vision-language model, into which the merged '
                f"language model is put, {_composites(sources)}"
            )
        return into
    listed = [recipe.base_model, *recipe.merged_models()]
    named = [r for r in dict.fromkeys(listed) if r is not None]
    composite = (r for r in named if is_composite(sources[r]))
    # Of diffusion models one with a pipeline, which gives encoders, scheduler and tokenizer.
    piped = (r for r in named if (d := sources[r].diffusion) is not None and d.component is not None)
    return next(composite, next(piped, named[0]))


def is_composite(source: Source) -> bool:
    """Whether a model has modules beside its language model (an image encoder, a projector)."""
    return len(source.layout.stacks) > 1


def _composites(sources: Mapping[str, Source]) -> str:
    found = [f'"{r}"' for r, source in sources.items() if is_composite(source)]
    return f"as {' or '.join(found)} is" if found else "and none of the models is one"


def modules_of(recipe: Recipe, sources: Mapping[str, Source]) -> list[Module]:
    """The modules that are merged; what the donor has beside them is copied.

    `models:` merges every module that all of them have; `slices:` speaks of the language model's layers.

    Raises:
        RecipeError: a module that the donor has not, or one that is named twice.
    """
    donor = donor_of(recipe, sources)
    layout = sources[donor].layout
    if recipe.modules is None:
        if recipe.slices:
            return [Module(TEXT, "", (), tuple(recipe.slices), None)]
        merged = recipe.merged_models()
        # What is put into a model is its language model alone, whether that model is merged too or not.
        away = recipe.evomerge.into is not None
        shared = [
            m for m in layout.stacks if all(m in sources[r].layout.stacks for r in merged) and not (away and m != TEXT)
        ]
        if not shared:
            kinds = ", ".join(f'"{r}" is a {sources[r].architecture}' for r in merged)
            raise RecipeError(f"models: have nothing in common that could be merged: {kinds}")
        return [Module(name, "", tuple(recipe.models or ()), (), None) for name in shared]
    found: dict[str, Module] = {}
    problems: list[str] = []
    for name, module in recipe.modules.items():
        known = _known(name, layout)
        if known is None:
            choices = list(layout.stacks)
            problems.append(f'modules: unknown module "{name}" of "{donor}"; {choose(name, choices)}')
        elif known in found:
            problems.append(f'modules: "{name}" and "{found[known].where[8:-1]}" are both the {known}; name it once')
        else:
            models, slices = tuple(module.models or ()), tuple(module.slices or ())
            found[known] = Module(known, f"modules.{name}.", models, slices, module.parameters)
    if problems:
        raise RecipeError("\n".join(problems))
    # In the donor's order, whatever the recipe's is.
    return [found[name] for name in layout.stacks if name in found]


def _known(name: str, layout: Layout) -> str | None:
    """The module that a recipe's name means, by name, alias, or the dotted name that its tensors have."""
    if name in layout.stacks:
        return name
    for module, aliases in _ALIASES.items():
        if name in aliases and module in layout.stacks:
            return module
    named = [p.module for n, p in layout.places.items() if n.startswith(f"{name}.")]
    return named[0] if named and len(set(named)) == 1 else None
