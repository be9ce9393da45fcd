"""The model card of any candidate of a study: the winner's evidence; of others, what their scores are and are not."""

from __future__ import annotations

from dataclasses import replace

from evomerge import __version__
from evomerge.comparison import interval
from evomerge.publishing.front import front_matter
from evomerge.publishing.lineage import Lineage
from evomerge.publishing.sections import library_of, made, rebuild_section, table_line, task_of
from evomerge.recipe import Chain, Recipe
from evomerge.recipe import Path as RecipePath
from evomerge.report.model_card import held_out_results, model_card, path_section
from evomerge.report.table import number, span
from evomerge.score import Score, State, Trial
from evomerge.study.record import Record

_SEARCH = (
    "The search score is no held-out evidence: candidates were proposed and selected by their results on these very "
    "items, so that it is too good, the best candidates' most."
)
_SELECT = "The select items chose the winner among the best few: what was not chosen may look a little too bad there."
_NO_TEST = "It was not measured on the test items: nothing here tells what it is worth on items that had no part in it."


def candidate_card(
    record: Record, trial_number: int, recipe: Recipe | Chain, path: RecipePath | None, of: Lineage,
    test: Score | None = None,
) -> str:  # fmt: skip
    """README.md of a candidate; of the winner that is the search's own card, from what the study keeps.

    Args:
        record: The study.
        trial_number: Which candidate.
        recipe: How it is made, with the content of its sources.
        path: It as a path over layers; None for a merge.
        of: Where its sources come from.
        test: Its result on the test items, where the study has one though it is no winner (any more).
    """
    outcome = record.outcome
    if outcome is not None and record.won and outcome.best.number == trial_number:
        return model_card(replace(outcome, recipe=recipe, recipe_hash=recipe.hash(), path=path), of)
    trial = next(t for t in record.trials if t.number == trial_number)
    name = f"{record.name}, candidate {trial_number}"
    select = record.finalists.get(trial_number)
    front = front_matter(
        of, name=name, results=held_out_results(test, recipe) if test is not None else (), library=library_of(recipe),
        task=task_of(recipe),
    )
    return f"""{front}
# {name}

{made(recipe)} {_standing(record, trial)} Made by evomerge {__version__}.
{path_section(recipe, record.names, picture=path is not None)}
## Scores

{_table(record, trial, select, test)}

{_words(record, trial, select, test)}

{of.section()}

{rebuild_section(recipe, recipe.hash())}
"""


def _standing(record: Record, trial: Trial) -> str:
    """What the candidate is to its study."""
    winner = record.best.number if record.won and record.best is not None else None
    study, _, which = record.name.partition("/")
    if winner == trial.number:
        if which and record.phase == "chosen":
            return (
                f"It is the winner of `{which}`, a stage of the search `{study}`, which goes on from it: chosen on the "
                "select items, and not measured on the test items, which are for the last stage's winner."
            )
        return f"It was chosen as the winner of the search `{record.name}`, and not measured on the test items yet."
    kind = f"the control `{which}` of the search `{study}`" if which else f"the search `{study}`"
    if which and record.phase == "chosen":
        kind = f"`{which}`, a stage of the search `{study}`"
    if winner is None:
        return f"It is candidate {trial.number} of {kind}, which has no winner yet."
    return f"It is candidate {trial.number} of {kind}, and not its winner, which is candidate {winner}."


def _table(record: Record, trial: Trial, select: Score | None, test: Score | None) -> str:
    """Its scores, and on the search items those of what it was made from."""
    search = trial.score or trial.part
    known = [s for s in (search, select, test) if s is not None]
    tasks = list(dict.fromkeys(t.task for s in known for t in s.tasks))
    if len(tasks) == 1:
        tasks = []
    lines = [table_line(["", "items", "score", "95 %", *tasks]), table_line(["---"] + ["---:"] * (3 + len(tasks)))]

    def row(name: str, score: Score, spread: str = "") -> str:
        found = {t.task: number(t.shown) for t in score.tasks}
        return table_line([name, f"{score.items:,}", number(score.value), spread, *(found.get(t, "") for t in tasks)])

    if search is not None:
        lines.append(row("**this model**, search items", search))
    lines += [row(f"{name}, search items", score) for name, (_, score) in record.lines.items()]
    if select is not None:
        lines.append(row("**this model**, select items", select))
    if test is not None:
        lines.append(row("**this model**, test items", test, span(interval(test))))
    return "\n".join(lines)


def _words(record: Record, trial: Trial, select: Score | None, test: Score | None) -> str:
    """What these scores are, and what they are not."""
    words = []
    if trial.state is State.FAIL:
        words.append(f"The candidate failed when it was scored: {trial.reason}.")
    elif trial.state is State.PRUNED:
        words.append("It was stopped early: its score is of the items that it had, and the others' of all of them.")
    elif trial.state is State.RUNNING:
        words.append("It has not been scored to its end.")
    words.append(_SEARCH)
    if select is not None:
        winner = record.won and record.best is not None and record.best.number == trial.number
        chosen = "It is the best of a few on the select items, by which it was chosen: a little too good there too."
        words.append(chosen if winner else _SELECT)
    if test is None:
        words.append(_NO_TEST)
    else:
        words.append(
            "The test items were read for it when it was the winner; the search has gone on since. Its sources on the "
            "same items stand in the card of the study's winner."
        )
    return "\n\n".join(words)
