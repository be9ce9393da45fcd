"""A candidate of a finished or running study as a plain checkpoint."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from evomerge.errors import EvoMergeError, StudyError
from evomerge.pipeline.models import opened, shape_of
from evomerge.pipeline.plan import SPACE_NOTE, STEPS_NOTE, chained
from evomerge.pipeline.seeing import seeing
from evomerge.recipe import Chain, Recipe, load_chain
from evomerge.recipe import Path as RecipePath
from evomerge.sources import Source
from evomerge.sources.diffusion import holds_model
from evomerge.space import DataflowConfig, HybridConfig, SpaceConfig, stored_space
from evomerge.study.finding import no_candidate
from evomerge.study.store import Study

RECIPE = "recipe.yaml"
# Small files by name: the file to copy, or the text to write.
Beside = Callable[[], Mapping[str, Path | str]]


@dataclass(frozen=True)
class Rebuilt:
    """What a candidate is made by, and from.

    Attributes:
        plain: Its recipe.
        signed: The same with where it is from; a chain that ends in it, where an earlier stage made one of its sources.
        sources: The models by reference.
        path: The candidate as a path over layers; None for a merge.
        names: Short names of its sources by reference.
    """

    number: int
    plain: Recipe
    signed: Recipe | Chain
    sources: Mapping[str, Source]
    path: RecipePath | None
    names: Mapping[str, str]

    @property
    def depths(self) -> dict[str, int]:
        """Number of layers of each source, by reference."""
        return {r: s.num_layers for r, s in self.sources.items()}

    def write(self, out: Path, *, overwrite: bool = False, beside: Beside | None = None) -> None:
        """Build it into a folder.

        Args:
            beside: Gives more small files to write with it, by name: the file to copy, or the text to write (a card).

        Raises:
            InputError: the sources have changed, or the folder cannot be written.
        """
        write_checkpoint(self.sources, self.plain, self.signed, out, overwrite, beside)

    def lies_in(self, out: Path) -> bool:
        """Whether a folder holds this very candidate, whole: checkpoints get their names when they are complete."""
        try:
            chain = load_chain(out / RECIPE)
        except (EvoMergeError, OSError):
            return False
        signed = self.signed if isinstance(self.signed, Recipe) else self.signed.final
        same = chain.hash() == self.signed.hash() and chain.final.evomerge.provenance == signed.evomerge.provenance
        return same and holds_model(out)


def rebuilt(study: Study, trial: int | None = None) -> Rebuilt:
    """How a candidate of a study is made; the winner, where none is named. Nothing is written.

    Raises:
        InputError: no such candidate, no winner yet, or the sources are gone.
    """
    notes, fingerprint = study.notes(), study.fingerprint
    number = trial if trial is not None else notes.get("winner")
    if number is None:
        raise StudyError(
            f'study "{study.name}": has no winner yet; finish the search, or name a candidate by --trial N'
        )
    trials = {t.number: t for t in study.trials()}
    if number not in trials:
        raise no_candidate(study.name, number, trials)
    config = stored_space(notes[SPACE_NOTE])
    assert not isinstance(config, HybridConfig)
    steps: Mapping[str, Mapping[str, Any]] = notes.get(STEPS_NOTE, {})
    sources = _sources(config, steps)
    config = seeing(config, sources)
    space = config.bind_models({r: shape_of(sources[r]) for r in config.references()})
    contents = contents_of(fingerprint["sources"], config)
    seed = fingerprint["seed"]
    plain = space.decode(trials[number].params, seed=seed)
    recipe: Recipe | Chain = plain.signed(contents, {"study": study.name, "trial": number, "seed": seed})
    for model, step in steps.items():
        assert isinstance(recipe, Recipe)
        recipe = chained(recipe, model, step["name"], Recipe.model_validate(step["recipe"]))
    path = RecipePath.read(plain) if isinstance(config, DataflowConfig) else None
    return Rebuilt(int(number), plain, recipe, sources, path, {s.model: s.name for s in config.sources})


def contents_of(stored: Mapping[str, Any], config: SpaceConfig | DataflowConfig) -> dict[str, str]:
    """The content hashes of a study's models, by reference."""
    if "named" not in stored:  # the first versions kept them so
        return {r: stored[r] for r in config.references()}
    contents = {s.model: stored["named"][s.name] for s in config.sources}
    if config.base_model:
        contents[config.base_model] = stored["base"]
    if isinstance(config, SpaceConfig) and config.into and config.into not in contents:
        contents[config.into] = stored["into"]
    return contents


def _sources(config: SpaceConfig | DataflowConfig, steps: Mapping[str, Mapping[str, Any]]) -> dict[str, Source]:
    """The models of a study's space.

    Raises:
        InputError: one cannot be opened, or an earlier stage's winner (a key of `steps`) is gone.
    """
    gone = [model for model in steps if not Path(model).is_dir()]
    if gone:
        name = steps[gone[0]]["name"]
        raise StudyError(
            f"{gone[0]}: the first stage's winner (\"{name}\") is gone, and this study's paths run through it; "
            "the same `evomerge search` command writes it again"
        )
    return opened(config, None)


def write_checkpoint(
    sources: Mapping[str, Source], recipe: Recipe, signed: Recipe | Chain, out: Path, overwrite: bool,
    beside: Beside | None = None,
) -> None:  # fmt: skip
    """Build a recipe into a folder.

    Args:
        signed: What its recipe.yaml is to say: the recipe with where it is from, or a chain that ends in it.
        beside: See `Rebuilt.write`.
    """
    from evomerge.merging.engine import Engine

    engine = Engine({r: sources[r] for r in recipe.references() if r in sources})
    # A card is made from the signed recipe, which has the contents.
    more = (lambda _: beside()) if beside is not None else None
    if isinstance(signed, Recipe):
        engine.write(signed, out, overwrite=overwrite, beside=more)
    else:
        engine.write(recipe, out, overwrite=overwrite, recipe_text=lambda _: signed.to_yaml(), beside=more)
