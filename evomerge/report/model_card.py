"""The model card: README.md of the merged checkpoint, with Hugging Face's YAML front matter."""

from __future__ import annotations

import re
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import yaml

from evomerge import __version__
from evomerge.comparison import BOOTSTRAP, MCNEMAR
from evomerge.recipe import Chain, Recipe
from evomerge.recipe import Path as RecipePath
from evomerge.report.path import path_text
from evomerge.report.result import Row, rows
from evomerge.report.table import against, archive_text, caption, columns, number, span
from evomerge.score import State
from evomerge.study.outcome import Outcome

_HUB_ID = re.compile(r"[\w-][\w.-]*/[\w.-]+")
_FRONT_MATTER = re.compile(r"\A---\n(.*?)\n---\n", re.DOTALL)
OWN_LICENCE = "apache-2.0"  # of the zoo
# Candidates of an archive that a card lists.
SHOWN = 12


def model_card(outcome: Outcome) -> str:
    """The card's text: YAML front matter, then Markdown.

    Front matter: `base_model` (every model of the recipe), `base_model_relation: merge`, `license` (only where every
    source states the same one), `tags`, and `model-index` with the held-out result of each task.
    """
    front = yaml.safe_dump(_front(outcome), sort_keys=False, allow_unicode=True)
    return f"---\n{front}---\n\n{_body(outcome)}"


def _front(outcome: Outcome) -> dict[str, Any]:
    references = outcome.recipe.references()
    front: dict[str, Any] = {
        "base_model": [model_name(r) for r in references],
        "base_model_relation": "merge",
        "library_name": "transformers",
        "pipeline_tag": "text-generation",
        "tags": ["merge", "evomerge", "mergekit"],
    }
    licence = common_licence(references)
    if licence:
        front["license"] = licence
    front["model-index"] = [{"name": outcome.study, "results": _results(outcome)}]
    return front


def _results(outcome: Outcome) -> list[dict[str, Any]]:
    return [
        {
            "task": {"type": "text-generation"},
            "dataset": {"name": f"{task.task} (held-out items)", "type": task.task, "split": "test"},
            "metrics": [{"type": task.metric.split(",")[0], "value": round(task.shown, 6), "name": task.metric}],
        }
        for task in outcome.winner.test.tasks
    ]


def _body(outcome: Outcome) -> str:
    recipe = outcome.recipe
    # Folders by their name alone: where they lie on somebody's disk is private. recipe.yaml has the full paths.
    public = recipe.with_references({r: model_name(r) for r in recipe.references()})
    counts = [t.state for t in outcome.trials]
    ended = [(counts.count(State.PRUNED), "stopped early"), (counts.count(State.FAIL), "failed")]
    also = ", ".join(f"{n} of them {what}" for n, what in ended if n)
    sources = "\n".join(_source_line(outcome, r) for r in recipe.references())
    notes = "\n\n".join(caption(outcome).splitlines())
    candidates = f"{len(counts)} candidates" + (f" ({also})" if also else "")
    if outcome.first_stage:
        candidates = f"{outcome.first_stage} candidates for the first stage, then {candidates}"
    chosen = "by its score on the search items"
    if outcome.winner.select is not None:
        chosen = "by its score on items kept for this choice, neither the search's nor the held-out ones"
    yaml_of = "mergekit's" if isinstance(recipe, Recipe) else "mergekit-multi's"
    return f"""# {outcome.study}

{_made(recipe)} The recipe was found by evolutionary search (evomerge {__version__}).
{_path_section(outcome)}
## Held-out results

On {outcome.winner.test.items:,} items that the search never saw; in the same run, on the same items, its sources.
Intervals are 95 %; the difference is this model minus the other, paired by item; p by {_tests(outcome)}.

{_markdown(outcome)}

{notes}

## Sources

{sources}

The licence of a merge follows from the licences of its sources: all of them apply.

## Rebuild it

`recipe.yaml`, beside this file, rebuilds the weights bit for bit from the same sources (recipe hash
`{outcome.recipe_hash}`):

```
pip install evomerge
evomerge merge recipe.yaml OUT
```

It is {yaml_of} YAML:

```yaml
{public.to_yaml().rstrip()}
```

## How it was found

- search space `{outcome.space}`, evaluator `{outcome.evaluator}`, seed {outcome.seed}
- {candidates} in {_duration(outcome.seconds)}; ended by: {outcome.stopped}
- chosen: candidate {outcome.best.number}, {chosen}
{_archive_section(outcome)}"""


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


def _made(recipe: Recipe | Chain) -> str:
    """How the model was made, in a sentence or two."""
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


def _path_section(outcome: Outcome) -> str:
    """The path in words and, where it is drawn, the picture; nothing for a merge of weights."""
    path = RecipePath.read(_steps(outcome.recipe)[-1])
    if path is None:
        return ""
    words = path_text(path, outcome.names)
    picture = "\n![the path, by layer and source](path.png)\n" if outcome.path is not None else ""
    return f"""
## The path

Layers in the order in which the residual stream passes them; x is what it is multiplied by where a step begins. The
scales are folded into the weights: the checkpoint is a plain model of this architecture.

`{words}`
{picture}"""


def _steps(recipe: Recipe | Chain) -> list[Recipe]:
    return [recipe] if isinstance(recipe, Recipe) else [step.recipe for step in recipe.steps]


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


def table_line(cells: list[str]) -> str:
    """A row of a Markdown table."""
    escaped = [c.replace("|", "\\|") for c in cells]
    return f"| {' | '.join(escaped)} |"


def _source_line(outcome: Outcome, reference: str) -> str:
    steps = _steps(outcome.recipe)
    role = " (base)" if reference in [step.base_model for step in steps] else ""
    content = next((c for step in steps if (c := step.evomerge.sources.get(reference))), None)
    return source_line(reference, role, content)


def source_line(reference: str, role: str, content: str | None) -> str:
    """A model that something was made from, as an item of a list: its role, licence and content."""
    licence = licence_of(reference) or "licence not stated here: see its own page"
    return f"- `{model_name(reference)}`{role}: {licence}" + (f"; content sha256 `{content[:16]}`" if content else "")


def model_name(reference: str) -> str:
    """How a card names a model: a hub id or zoo:NAME as it is, a folder by its last part (paths are private)."""
    path = reference.split("@", 1)[0].split("+", 1)[0]
    if path.startswith("zoo:") or (_HUB_ID.fullmatch(path) and not Path(path).exists()):
        return path
    return Path(path).name or path


def common_licence(references: Iterable[str]) -> str | None:
    """The licence of what is made from models that all state the same one; None where they do not."""
    stated = {licence_of(r) for r in references}
    return next(iter(stated)) if len(stated) == 1 else None


def licence_of(reference: str) -> str | None:
    """The licence that a source states: the zoo's own, or `license:` in the README.md of a folder; None: unknown."""
    path = reference.split("@", 1)[0].split("+", 1)[0]
    if path.startswith("zoo:"):
        return OWN_LICENCE
    try:
        found = _FRONT_MATTER.match((Path(path) / "README.md").read_text(encoding="utf-8"))
        front = yaml.safe_load(found.group(1)) if found else None
    except (OSError, UnicodeDecodeError, yaml.YAMLError):
        return None
    licence = front.get("license") if isinstance(front, dict) else None
    return licence if isinstance(licence, str) else None


def _duration(seconds: float) -> str:
    whole = round(seconds)
    if whole < 60:
        return f"{seconds:.1f} s"
    hours, minutes = whole // 3600, whole % 3600 // 60
    return f"{hours} h {minutes:02d} min" if hours else f"{minutes} min {whole % 60:02d} s"
