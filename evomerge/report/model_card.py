"""The model card of a search's winner: README.md of the merged checkpoint, with Hugging Face's YAML front matter."""

from __future__ import annotations

from typing import TYPE_CHECKING

from evomerge import __version__
from evomerge.comparison import BOOTSTRAP, MCNEMAR
from evomerge.publishing.front import front_matter, result
from evomerge.publishing.lineage import Lineage, lineage
from evomerge.publishing.sections import library_of, made, rebuild_section, table_line, task_of
from evomerge.recipe import Chain, Recipe
from evomerge.recipe import Path as RecipePath
from evomerge.report.path import path_text
from evomerge.report.result import Row, rows
from evomerge.report.table import against, archive_text, caption, columns, number, span
from evomerge.score import Score, State
from evomerge.study.outcome import Outcome

if TYPE_CHECKING:
    from collections.abc import Mapping

    from huggingface_hub import EvalResult

# Candidates of an archive that a card lists.
SHOWN = 12


def model_card(outcome: Outcome, of: Lineage | None = None) -> str:
    """The card's text: YAML front matter, then Markdown.

    Front matter: `base_model` (the Hub's models among its sources), `base_model_relation: merge`, `license` (only where
    every source states the same one), `tags`, and `model-index` with the held-out result of each task.

    Args:
        of: Where its sources come from; default: as far as the files on this machine tell.
    """
    of = of or lineage(outcome.recipe)
    name = outcome.study
    made_of = outcome.recipe
    results = held_out_results(outcome.winner.test, made_of)
    front = front_matter(of, name=name, results=results, library=library_of(made_of), task=task_of(made_of))
    counts = [t.state for t in outcome.trials]
    ended = [(counts.count(State.PRUNED), "stopped early"), (counts.count(State.FAIL), "failed")]
    also = ", ".join(f"{n} of them {what}" for n, what in ended if n)
    notes = "\n\n".join(caption(outcome).splitlines())
    candidates = f"{len(counts)} candidates" + (f" ({also})" if also else "")
    if outcome.first_stage:
        candidates = f"{outcome.first_stage} candidates for the first stage, then {candidates}"
    chosen = "by its score on the search items"
    if outcome.winner.select is not None:
        chosen = "by its score on items kept for this choice, neither the search's nor the held-out ones"
    evaluator = f"evaluator `{outcome.evaluator}`, " if outcome.evaluator else ""
    stopped = f"; ended by: {outcome.stopped}" if outcome.stopped else ""
    return f"""{front}
# {name}

{made(outcome.recipe)} The recipe was found by evolutionary search (evomerge {__version__}).{_control(name)}
{path_section(outcome.recipe, outcome.names, picture=outcome.path is not None)}
## Held-out results

On {outcome.winner.test.items:,} items that the search never saw; in the same run, on the same items, its sources.
Intervals are 95 %; the difference is this model minus the other, paired by item; p by {_tests(outcome)}.

{_markdown(outcome)}

{notes}

{of.section()}

{rebuild_section(outcome.recipe, outcome.recipe_hash)}

## How it was found

- search space `{outcome.space}`, {evaluator}seed {outcome.seed}
- {candidates} in {_duration(outcome.seconds)}{stopped}
- chosen: candidate {outcome.best.number}, {chosen}
{_archive_section(outcome)}"""


def held_out_results(test: Score, recipe: Recipe | Chain) -> list[EvalResult]:
    """Results on the test items of what a recipe makes, as `model-index` has them."""
    kind = task_of(recipe)
    return [result(t.task, t.metric, t.shown, f"{t.task} (held-out items)", "test", kind=kind) for t in test.tasks]


def _control(study: str) -> str:
    """That a search was made for comparison alone, where it was."""
    main, _, which = study.partition("/")
    if not which:
        return ""
    return (
        f" It is the winner of a control, `{which}`: searched at the same budget as `{main}`, to compare that study's "
        "winner with."
    )


def _archive_section(outcome: Outcome) -> str:
    """The candidates that the search keeps, the first of them in a table; nothing where it keeps none."""
    archive = outcome.archive
    if archive is None or not archive.members:
        return ""
    head = ["candidate", "score", *archive.tasks, "shared fitness" if archive.grid is None else "cell"]
    lines = [table_line(head), table_line(["---:"] * len(head))]
    for m in archive.members[:SHOWN]:
        place = number(m.fitness or 0.0) if m.cell is None else ", ".join(map(str, m.cell))
        lines.append(table_line([str(m.trial.number), *map(number, (m.trial.value or 0.0, *m.tasks.values())), place]))
    more = len(archive.members) - SHOWN
    return f"""
## What else was kept

{"".join(f"{line[0].upper()}{line[1:]}." for line in archive_text(outcome))}
The search chose them by these values, so that they are too good, the best ones most.
`evomerge export STUDY OUT --trial N` writes any of them.

{chr(10).join(lines)}{f"{chr(10)}{chr(10)}and {more} more" if more > 0 else ""}
"""


def _tests(outcome: Outcome) -> str:
    """The tests that the p-values are of."""
    names = {MCNEMAR: "McNemar's exact test", BOOTSTRAP: "the paired bootstrap"}
    used = dict.fromkeys(names[d.test] for d in outcome.differences if d is not None and d.test is not None)
    return f"{' or '.join(used) or 'no test'}, corrected for all comparisons (Holm)"


def path_section(recipe: Recipe | Chain, names: Mapping[str, str], *, picture: bool) -> str:
    """The path in words; nothing for a merge of weights.

    Args:
        names: Short names of its sources by reference.
        picture: Whether path.png lies beside the card.
    """
    path = RecipePath.read(recipe if isinstance(recipe, Recipe) else recipe.final)
    if path is None:
        return ""
    words = path_text(path, names)
    shown = "\n![the path, by layer and source](path.png)\n" if picture else ""
    return f"""
## The path

Layers in the order in which the residual stream passes them; x is what it is multiplied by where a step begins. The
scales are folded into the weights: the checkpoint is a plain model of this architecture.

`{words}`
{shown}"""


def _markdown(outcome: Outcome) -> str:
    shown: list[Row] = rows(outcome)
    target, others = columns(outcome)
    head = ["model", target, "95 %", "best minus it", "95 %", "p", *others]
    lines = [table_line(head), table_line(["---"] + ["---:"] * (len(head) - 1))]
    for r in shown:
        cells = [r.name, number(r.test.mean), span(r.test), *against(r.difference)]
        cells += [number(r.tasks[t].mean) if t in r.tasks else "" for t in others]
        lines.append(table_line([f"**{c}**" if r.role == "best" and c else c for c in cells]))
    return "\n".join(lines)


def _duration(seconds: float) -> str:
    whole = round(seconds)
    if whole < 60:
        return f"{seconds:.1f} s"
    hours, minutes = whole // 3600, whole % 3600 // 60
    return f"{hours} h {minutes:02d} min" if hours else f"{minutes} min {whole % 60:02d} s"
