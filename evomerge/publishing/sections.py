"""Parts that the cards of all models have: how they were made, how to load and to rebuild them."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import replace
from pathlib import Path

from evomerge.publishing.front import TASKS, UNTOLD
from evomerge.publishing.lineage import published_reference
from evomerge.recipe import Chain, Recipe
from evomerge.recipe import Path as RecipePath
from evomerge.sources import local_folder
from evomerge.sources.diffusion import PIPELINE, is_diffusion
from evomerge.sources.files import read_object

SEEING = "image-text-to-text"


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
    loader = library_of(recipe)
    yaml_of = "mergekit's" if isinstance(recipe, Recipe) else "mergekit-multi's"
    return f"""## Rebuild it

The checkpoint is a plain one: `{loader}` loads it, evomerge is not needed. `recipe.yaml`, beside this file,
rebuilds the weights bit for bit from the same sources (recipe hash `{recipe_hash}`), where evomerge is installed:

```
evomerge merge recipe.yaml OUT
```

It is {yaml_of} YAML:

```yaml
{public(recipe).to_yaml().rstrip()}
```"""


def library_of(recipe: Recipe | Chain) -> str:
    """What loads a merge, by the Hub's name: "diffusers" where a model of it lies here as one of diffusers'."""
    for reference in recipe.references():
        folder = local_folder(reference, None)
        if folder is not None and is_diffusion(folder):
            return "diffusers"
    return "transformers"


def task_of(recipe: Recipe | Chain) -> str:
    """What a merge is for, by the Hub's name: what its library's models mostly do; but one into which a vision-language
    model went sees, and one of pipelines that read no text is not told what to draw."""
    for reference in recipe.references():
        folder = local_folder(reference, None)
        if folder is not None and (folder / "config.json").is_file():
            config = read_object(folder, "config.json")
            if "vision_config" in config and "text_config" in config:
                return SEEING
        if folder is not None and (folder / PIPELINE).is_file():
            return TASKS["diffusers"] if "text_encoder" in read_object(folder, PIPELINE) else UNTOLD
    return TASKS[library_of(recipe)]


def public(recipe: Recipe | Chain) -> Recipe | Chain:
    """A recipe with folders by their last part alone: where they lie on somebody's disk is private.

    Two folders of one name are two: of models or of statistics, the second is NAME-2. The recipe's hash stays what it
    is, because content hashes go with the names.
    """
    steps = (recipe,) if isinstance(recipe, Recipe) else tuple(step.recipe for step in recipe.steps)
    taken = set() if isinstance(recipe, Recipe) else {step.name for step in recipe.steps if step.name is not None}
    models: dict[str, str] = {}
    for reference in recipe.references():
        models[reference] = _free(published_reference(reference), taken)
    folders: dict[str, str] = {}
    for folder in dict.fromkeys(f for step in steps for f in step.evomerge.statistics.values()):
        # What is a model's folder too has one content hash, under one name.
        folders[folder] = models[folder] if folder in models else _free(Path(folder).name or folder, taken)
    if isinstance(recipe, Recipe):
        return _renamed(recipe, models, folders)
    return replace(recipe, steps=tuple(replace(s, recipe=_renamed(s.recipe, models, folders)) for s in recipe.steps))


def _free(wanted: str, taken: set[str]) -> str:
    """A name that is nobody's yet; it is taken then."""
    name, count = wanted, 2
    while name in taken:
        name, count = f"{wanted}-{count}", count + 1
    taken.add(name)
    return name


def _renamed(recipe: Recipe, models: Mapping[str, str], folders: Mapping[str, str]) -> Recipe:
    """A copy with other names, in which every model and every folder keeps its content hash.

    The names are given in one step: an old name of one may be the new name of another.
    """
    extras = recipe.evomerge
    names = {**folders, **models}
    bare = recipe.with_extras(sources={}, statistics={}).with_references(models)
    return bare.with_extras(
        sources={names.get(r, r): content for r, content in extras.sources.items()},
        statistics={models.get(m, m): folders[f] for m, f in extras.statistics.items()},
    )


def table_line(cells: Iterable[str]) -> str:
    """A row of a Markdown table."""
    return f"| {' | '.join(c.replace('|', chr(92) + '|') for c in cells)} |"
