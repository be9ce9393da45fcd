"""Parts that the cards of all models have: how they were made, how to load and to rebuild them."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path

from evomerge.publishing.lineage import model_name
from evomerge.recipe import Chain, Recipe
from evomerge.recipe import Path as RecipePath


def made(recipe: Recipe | Chain) -> str:
    """How a model was made, in a sentence or two."""
    if isinstance(recipe, Recipe):
        words = _step(recipe)
        return f"{words[0].upper()}{words[1:]}."
    parts = [f"`{step.name}` is {_step(step.recipe)}" for step in recipe.steps[:-1]]
    return f"Made in {len(recipe.steps)} steps: {'; '.join(parts)}; the model is {_step(recipe.final)}."


def _step(recipe: Recipe) -> str:
    path = RecipePath.read(recipe)
    if path is None:
        return f"merged from {len(recipe.merged_models())} models by `{recipe.merge_method}`"
    number = len(path.models)
    return f"a path of {len(path.hops)} layers over those of {number} model{'s' if number > 1 else ''}"


def rebuild_section(recipe: Recipe | Chain, recipe_hash: str) -> str:
    """How to load the model, and to make it again.

    Args:
        recipe_hash: Over the contents of its models.
    """
    yaml_of = "mergekit's" if isinstance(recipe, Recipe) else "mergekit-multi's"
    return f"""## Rebuild it

The checkpoint is a plain one: `transformers` loads it, evomerge is not needed. `recipe.yaml`, beside this file,
rebuilds the weights bit for bit from the same sources (recipe hash `{recipe_hash}`):

```
pip install evomerge
evomerge merge recipe.yaml OUT
```

It is {yaml_of} YAML:

```yaml
{public(recipe).to_yaml().rstrip()}
```"""


def public(recipe: Recipe | Chain) -> Recipe | Chain:
    """A recipe with folders by their last part alone: where they lie on somebody's disk is private."""
    names: dict[str, str] = {}
    for reference in recipe.references():
        name = wanted = model_name(reference)
        count = 2
        while name in names.values():  # two folders of one name are two models
            name, count = f"{wanted}-{count}", count + 1
        names[reference] = name
    renamed = recipe.with_references(names)
    if isinstance(renamed, Recipe):
        return _without_folders(renamed)
    steps = tuple(replace(step, recipe=_without_folders(step.recipe)) for step in renamed.steps)
    return replace(renamed, steps=steps)


def _without_folders(recipe: Recipe) -> Recipe:
    """The same for folders of statistics, which have content hashes too."""
    extras = recipe.evomerge
    folders = {f: Path(f).name or f for f in extras.statistics.values()}
    sources = {folders.get(r, r): content for r, content in extras.sources.items()}
    return recipe.with_extras(sources=sources, statistics={m: folders[f] for m, f in extras.statistics.items()})


def table_line(cells: Iterable[str]) -> str:
    """A row of a Markdown table."""
    return f"| {' | '.join(c.replace('|', chr(92) + '|') for c in cells)} |"
