"""A candidate of a finished or running study as a plain checkpoint."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from evomerge.errors import StudyError
from evomerge.recipe import Recipe
from evomerge.sources import Source, open_sources
from evomerge.space import SpaceConfig
from evomerge.study.store import Study


def export(study: Study, out: Path, trial: int | None = None, *, overwrite: bool = False) -> int:
    """Write a candidate of a study as a plain checkpoint; the winner, where none is named. Returns its number.

    Raises:
        InputError: no such candidate, no winner yet, or the sources are gone or have changed.
    """
    notes, fingerprint = study.notes(), study.fingerprint
    number = trial if trial is not None else notes.get("winner")
    if number is None:
        raise StudyError(
            f'study "{study.name}": has no winner yet; finish the search, or name a candidate by --trial N'
        )
    trials = {t.number: t for t in study.trials()}
    if number not in trials:
        raise StudyError(f'study "{study.name}": no candidate {number}; it has 0 to {len(trials) - 1}')
    config = SpaceConfig.model_validate(notes["space"])
    sources = open_sources(config.references())
    model = sources[config.base_model or config.sources[0].model]
    space = config.bind(model.num_layers, list(model.tensors))
    stored = fingerprint["sources"]
    contents = {s.model: stored["named"][s.name] for s in config.sources}
    if config.base_model:
        contents[config.base_model] = stored["base"]
    seed = fingerprint["seed"]
    recipe = space.decode(trials[number].params, seed=seed)
    recipe = recipe.signed(contents, {"study": study.name, "trial": number, "seed": seed})
    write_checkpoint(sources, recipe, out, overwrite)
    return int(number)


def write_checkpoint(sources: Mapping[str, Source], recipe: Recipe, out: Path, overwrite: bool) -> None:
    """Build a recipe into a folder."""
    from evomerge.merging.engine import Engine

    Engine({r: sources[r] for r in recipe.references() if r in sources}).write(recipe, out, overwrite=overwrite)
