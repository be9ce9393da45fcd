"""A study's page in Optuna's dashboard: what it is, what was found, how to rebuild it, and pictures.

Written by the search at its end, and by `evomerge dashboard` of one that was cut off, from what the database holds.
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from evomerge.comparison import difference, interval
from evomerge.recipe import Chain, Recipe
from evomerge.recipe import Path as RecipePath
from evomerge.report.history import write_history_png
from evomerge.report.path import path_text, write_path_png
from evomerge.report.recipe_picture import coefficients, write_recipe_png
from evomerge.report.words import recipe_words
from evomerge.score import Score, State, Trial
from evomerge.study.candidates import best
from evomerge.study.database import shown
from evomerge.study.display import FOLDER, Display
from evomerge.study.outcome import Outcome
from evomerge.study.store import Store, Study

# Letters that mean something in a cell of Markdown's tables.
_CELL = str.maketrans({"|": r"\|", "\n": " "})


@dataclass(frozen=True)
class Candidate:
    """The candidate that is shown: the winner, or the best so far.

    Attributes:
        recipe: How it is made; None where that cannot be told here (its sources are gone).
        names: Short names of the sources by reference.
        depths: Their numbers of layers.
        path: Where it is a path over layers.
    """

    number: int
    recipe: Recipe | Chain | None = None
    names: Mapping[str, str] | None = None
    depths: Mapping[str, int] | None = None
    path: RecipePath | None = None

    @classmethod
    def of(cls, outcome: Outcome) -> Candidate:
        """The winner of a search."""
        return cls(outcome.best.number, outcome.recipe, outcome.names, outcome.depths, outcome.path)


@dataclass(frozen=True)
class _Course:
    """What the history picture is drawn from."""

    study: str
    seed: int
    trials: Sequence[Trial]
    lines: Mapping[str, float]
    best: Trial | None


def publish(store: Store, name: str, out: Path, candidate: Candidate | None = None) -> None:
    """Write the page of a study. Done again, it changes only what has changed.

    Args:
        out: Its output folder; pictures are kept in `out`/artifacts.
        candidate: The winner, or the best so far, where its recipe is known.
    """
    study = store.open(name)
    trials = study.trials()
    chosen = study.notes().get("winner")
    ranked = best(trials)
    number = chosen if chosen is not None else ranked[0].number if ranked else None
    shown_one = next((t for t in trials if t.number == number), None)
    if candidate is not None and candidate.number != number:
        candidate = None
    display = Display(store, study, out / FOLDER)
    with tempfile.TemporaryDirectory(prefix="evomerge-") as folder:
        files = _pictures(Path(folder), study, trials, shown_one, candidate)
        paths = display.pictures(files)
    words = _words(candidate, shown_one)
    display.note("\n".join(_note(store, study, trials, shown_one, chosen is not None, words, paths, out)))
    if chosen is not None and shown_one is not None:
        display.mark(shown_one.number, f"**The winner** of {name}.\n\n{words}\n")


def _pictures(
    folder: Path, study: Study, trials: Sequence[Trial], one: Trial | None, candidate: Candidate | None
) -> list[Path]:
    lines = {
        s.partition("/")[2]: score.value
        for s, score in study.scores.read("search").items() if not s.startswith("trial/")
    }  # fmt: skip
    files = [folder / "history.png"]
    write_history_png(_Course(study.name, int(study.fingerprint["seed"]), trials, lines, one), files[0])
    if candidate is None or candidate.recipe is None:
        return files
    names, depths = candidate.names or {}, candidate.depths or {}
    if candidate.path is not None:
        files.append(folder / "path.png")
        write_path_png(candidate.path, names, depths, files[-1])
        return files
    recipe = candidate.recipe.final if isinstance(candidate.recipe, Chain) else candidate.recipe
    found = coefficients(recipe, names, depths)
    if found is not None:
        files.append(folder / "recipe.png")
        write_recipe_png(found, f"{study.name}, candidate {candidate.number}: {recipe.merge_method}", files[-1])
    return files


def _words(candidate: Candidate | None, one: Trial | None) -> str:
    """The shown candidate in words; nothing where its recipe is not known."""
    if candidate is None or candidate.recipe is None or one is None:
        return ""
    names = candidate.names or {}
    if candidate.path is not None:
        return path_text(candidate.path, names)
    recipe = candidate.recipe.final if isinstance(candidate.recipe, Chain) else candidate.recipe
    return recipe_words(recipe, one.params, names)


def _note(
    store: Store, study: Study, trials: Sequence[Trial], one: Trial | None, final: bool, words: str,
    paths: Mapping[str, str], out: Path,
) -> Iterator[str]:  # fmt: skip
    sampler, seed = study.fingerprint["sampler"]["name"], study.fingerprint["seed"]
    space = study.notes().get("space") or {}
    yield f"# {study.name}"
    yield ""
    yield (
        f"A search of evomerge for the best merge: space **{space.get('name', '?')}**, optimizer **{sampler}**, seed "
        f"{seed}, {_counts(trials)}. Scores are on the search items unless a table says otherwise; higher is better."
    )
    yield ""
    if one is not None and one.value is not None:
        what = "The winner" if final else "The best so far (no winner has been chosen yet)"
        yield f"**{what}: trial {one.number}**, {one.value:.4f} on the search items."
        if words:
            yield f"`{words}`"
        yield ""
    yield from _table(study, one)
    for name in ("recipe.png", "path.png", "history.png"):
        if name in paths:
            yield f"![{name}]({paths[name]})"
            yield ""
    yield "## Rebuild it"
    yield ""
    where = "" if store.engine.dialect.name == "sqlite" else f" --storage {shown(store.url)}"
    asked = study.name if where else str(out)
    yield "```"
    if final:
        yield f"evomerge merge {out / 'recipe.yaml'} OUT"
        yield f"evomerge export {asked} OUT{where}"
    elif one is not None:
        yield f"evomerge export {asked} OUT --trial {one.number}{where}"
    yield f"evomerge status {asked}{where}"
    yield "```"


def _counts(trials: Sequence[Trial]) -> str:
    states = [t.state for t in trials]
    words = ((State.COMPLETE, "complete"), (State.PRUNED, "stopped early"), (State.FAIL, "failed"))
    found = [f"{n} {word}" for state, word in words if (n := states.count(state))]
    return f"{len(trials)} candidates ({', '.join(found)})" if found else f"{len(trials)} candidates"


def _table(study: Study, one: Trial | None) -> Iterator[str]:
    """The held-out table, where the test items have been looked at."""
    scores = study.scores.read("test")
    mine = scores.get(f"trial/{one.number}") if one is not None else None
    if mine is None:
        return
    subjects = [s for s in scores if not s.startswith("trial/")]
    yield "| on the test items | score | 95 % | best minus it |"
    yield "|---|---|---|---|"
    for subject in subjects:
        yield _row(subject.partition("/")[2], scores[subject], _signed(difference(mine, scores[subject]).mean))
    yield _row("**best**", mine, "")
    yield ""


def _row(name: str, score: Score, against: str) -> str:
    found = interval(score)
    span = f"{found.low:.3f} .. {found.high:.3f}" if found.low is not None and found.high is not None else ""
    return f"| {name.translate(_CELL)} | {found.mean:.3f} | {span} | {against} |"


def _signed(value: float) -> str:
    return f"{value:+.3f}"
