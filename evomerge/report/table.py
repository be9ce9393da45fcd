"""The table at the end of a search, and the one sentence that says what it shows."""

from __future__ import annotations

import math
import shutil
import sys
from typing import TYPE_CHECKING

from evomerge.comparison import Difference
from evomerge.evaluation.goals import DEPTH
from evomerge.report.result import rows
from evomerge.score import Interval
from evomerge.study.goals import shown as value_of
from evomerge.study.outcome import Outcome

if TYPE_CHECKING:
    from rich.table import Table

HEADER = 10  # characters of a header before it is folded


def table(outcome: Outcome, *, target_columns: bool = True, task_columns: bool = True) -> Table:
    """A rich table: one row per measured model, the winner last.

    Args:
        target_columns: Show the target skill (weighted score on the test items) with its 95 % interval, and the paired
            difference of the winner minus the model with its interval and its p-value, corrected for all of them.
        task_columns: Show the value of every other task.
    """
    from rich.table import Table

    shown = rows(outcome)
    target, others = columns(outcome)
    title = f"{outcome.study}: {shown[-1].test.items:,} held-out items" if target_columns else "other tasks"
    words = "\n".join([caption(outcome), *uncontrolled(outcome)]) if target_columns else None
    made = Table(title=title, caption=words, title_justify="left", caption_justify="left")
    made.add_column("model", no_wrap=True)
    headers = [_folded(target), "95 %", "best\nminus it", "95 %", "p"] if target_columns else []
    for header in (*headers, *map(_folded, others if task_columns else [])):
        made.add_column(header, justify="right", no_wrap=True)
    for row in shown:
        cells = [number(row.test.mean), span(row.test), *against(row.difference)]
        tasks = [number(row.tasks[t].mean) if t in row.tasks else "" for t in others]
        cells = (cells if target_columns else []) + (tasks if task_columns else [])
        made.add_row(row.name, *cells, style="bold" if row.role == "best" else None, end_section=row is shown[-2])
    return made


def table_text(outcome: Outcome, width: int | None = None) -> str:
    """The table as plain text; two tables, the target skill's and the other tasks', where one is too wide.

    Args:
        width: In characters, default that of the terminal, or 140 where there is none. A table that still needs more
            gets it: lines that the terminal wraps are ugly, figures cut off are wrong.
    """
    if width is None:
        width = shutil.get_terminal_size().columns if sys.stdout.isatty() else 140
    one = table(outcome)
    if _needs(one) <= width or not columns(outcome)[1]:
        return _text(one, width)
    others = _text(table(outcome, target_columns=False), width)
    return f"{others}\n\n{_text(table(outcome, task_columns=False), width)}"


def front_text(outcome: Outcome) -> list[str]:
    """Those that no other candidate beats in all objectives (of paths: with as few layers), on the search items."""
    front, aims = outcome.aims.front, outcome.aims
    lines = []
    if len(aims.goals.objectives) > 1:
        names, volume = ", ".join(aims.goals.objectives), aims.hypervolume[-1][1] if aims.hypervolume else 0.0
        lines = [f"front of {len(front)} by {names}, on the search items (hypervolume {number(volume)}):"]
        lines += [f"  candidate {t.number}: {', '.join(map(number, aims.values[t.number]))}" for t in front]
    elif len(front) > 1:
        shown = [f"{t.attributes[DEPTH]} layers {number(t.value or 0.0)} (candidate {t.number})" for t in front]
        lines = [f"best with as few layers, on the search items: {', '.join(shown)}"]
    for limit in aims.limits.get("test", aims.goals.limits):
        found = value_of(limit.of, outcome.winner.test, outcome.best.attributes)
        lines.append(f"{limit.words}: {number(found)} on the test items{', not kept' if limit.missed(found) else ''}")
    return lines


def archive_text(outcome: Outcome) -> list[str]:
    """In a line, what a search that keeps different candidates ends with; none of others."""
    archive = outcome.archive
    if archive is None:
        return []
    count, grid = len(archive.members), archive.grid
    if grid is not None:
        words = (
            f"{count} of {math.prod(grid.cells)} cells (coverage {number(grid.coverage)}), QD score "
            f"{number(grid.qd_score)} (normalised {number(grid.norm_qd_score)}, offset {number(grid.offset)})"
        )
    else:
        scores = [m.trial.value or 0.0 for m in archive.members]
        shares = [m.fitness or 0.0 for m in archive.members]
        words = f"{count} candidates"
        if scores:
            words += f" of {number(min(scores))} to {number(max(scores))}"
            words += f", shared fitness {number(min(shares))} to {number(max(shares))} items"
    if any(m.trial.violation for m in archive.members):
        words += ", all of which miss the constraints"
    return [f"archive of {archive.sampler}, on the search items: {words}; each is in result.json"]


def _needs(made: Table) -> int:
    from rich.console import Console
    from rich.measure import Measurement

    console = Console(width=10_000, color_system=None, force_terminal=False)
    return Measurement.get(console, console.options, made).maximum


def _text(made: Table, width: int) -> str:
    from rich.console import Console

    console = Console(width=max(width, _needs(made)), color_system=None, force_terminal=False)
    with console.capture() as capture:
        console.print(made)
    return "\n".join(line.rstrip() for line in capture.get().rstrip().splitlines())


def _folded(task: str) -> str:
    """A task's name on several lines, broken after underscores, so that a column is little wider than its figures."""
    lines = [""]
    for part in task.replace("_", "_ ").split():
        if lines[-1] and len(lines[-1]) + len(part) > HEADER:
            lines.append("")
        lines[-1] += part
    return "\n".join(lines)


def columns(outcome: Outcome) -> tuple[str, list[str]]:
    """Header of the target skill, and the tasks that get a column of their own.

    With one weighted task the score is that task's value, so it is not shown twice.
    """
    tasks = outcome.winner.test.tasks
    weighted = outcome.winner.test.weighted
    if len(weighted) == 1 and not weighted[0].flipped:
        return weighted[0].task, [t.task for t in tasks if not t.weight]
    return "score", [t.task for t in tasks]


def caption(outcome: Outcome) -> str:
    """What the table shows, in words."""
    words = [verdict(outcome), *shrinkage(outcome), *shared_items(outcome)]
    if outcome.looks > 1:
        words.append(looks(outcome))
    return "\n".join(words)


def looks(outcome: Outcome) -> str:
    """How often the held-out items have been read; each look makes the figures a little too good."""
    return f"The test items of this study have been read {outcome.looks} times: its figures are a little too good."


def verdict(outcome: Outcome) -> str:
    """One or two honest sentences: whom the winner beats beyond chance, whom it does not, who beats it.

    By the paired tests, whose p-values are corrected for all comparisons (Holm): with ten models to compare with,
    single intervals at 95 % would call a winner out of luck more often than not.
    """
    others = [(r.name, r.difference) for r in rows(outcome) if r.difference is not None]
    beaten = [name for name, d in others if d.proven and d.mean > 0]
    better = [name for name, d in others if d.proven and d.mean < 0]
    open_ = [name for name, _ in others if name not in beaten and name not in better]
    if not others:
        return "Nothing was measured next to the best found."
    tests = sum(d.p is not None for _, d in others)
    corrected = f", corrected for {tests} tests" if tests > 1 else ""
    if len(beaten) == len(others):
        return f"The best found beats every model here beyond chance (each p at most .05{corrected})."
    words = [f"The best found beats {_list(beaten)}." if beaten else "The best found beats none of the models here."]
    if open_:
        words.append(f"Not beyond chance, either way (p above .05{corrected}, or no test): {_list(open_)}.")
    if better:
        words.append(f"It is worse than {_list(better)}.")
    return " ".join(words)


def uncontrolled(outcome: Outcome) -> list[str]:
    """In a sentence, what a search without controls leaves open; none where it had some."""
    roles = {m.role for m in outcome.measured}
    if "control" in roles or "uniform" not in roles:
        return []
    return ["Uniform: equal weights. Not measured: what each source alone, or random search, comes to (--controls)."]


def shrinkage(outcome: Outcome) -> list[str]:
    """In a sentence, how much of the winner's score on the search items was luck there; none where it is not known."""
    found, score = outcome.shrinkage.get("search"), outcome.winner.search or outcome.best.score
    if found is None or score is None:
        return []
    test = outcome.winner.test.value
    words = f"Overfitting: {number(score.value)} on the search items, {number(test)} on the test items, shrinkage "
    words += signed(found)
    if found.low is None or found.high is None:
        return [f"{words} (no interval)."]
    verdict = "too much for chance" if found.low > 0 else "no sign of it" if found.mean <= 0 else "may be chance"
    return [f"{words} ({span(found, sign=True)}): {verdict}."]


def shared_items(outcome: Outcome) -> list[str]:
    """In a sentence, which test items are elsewhere too; none where there are none, or nobody looked."""
    found = [o for o in (outcome.overlaps or {}).get("found", ()) if o["split"] == "test"]
    parts = []
    for o in sorted(found, key=lambda o: -o["exact"] - o["near"])[:3]:
        counts = [f"{o[kind]:,} {words}" for kind, words in (("exact", "exactly"), ("near", "nearly")) if o[kind]]
        whose = f" of {o['also_task']}" if o["also_task"] not in (None, o["task"]) else ""
        parts.append(f"{' and '.join(counts)} of {o['items']:,} of {o['task']} in {o['also']}{whose}")
    more = "; more in result.json" if len(found) > 3 else ""
    return [f"Test items that are elsewhere too: {'; '.join(parts)}{more}."] if parts else []


def _list(names: list[str]) -> str:
    return names[0] if len(names) == 1 else f"{', '.join(names[:-1])} and {names[-1]}"


def number(value: float) -> str:
    """Three decimals; significant digits instead where those would hide the value (below 0.001) or drown it."""
    return f"{value:.3f}" if value == 0 or 1e-3 <= abs(value) < 1000 else f"{value:.3g}"


def signed(value: Interval | None) -> str:
    """A difference with its sign; nothing for the winner itself."""
    return "" if value is None else _signed(value.mean)


def against(found: Difference | None) -> list[str]:
    """Cells of a difference: mean, interval, corrected p-value; empty ones for the winner itself."""
    return [signed(found), span(found, sign=True), probability(None if found is None else found.holm)]


def probability(p: float | None) -> str:
    """A p-value in three decimals; nothing where there is none."""
    return "" if p is None else "<.001" if p < 0.001 else f"{p:.3f}".removeprefix("0")


def span(value: Interval | None, sign: bool = False) -> str:
    """`low .. high`, or nothing where there is no interval."""
    if value is None or value.low is None or value.high is None:
        return ""
    form = _signed if sign else number
    return f"{form(value.low)} .. {form(value.high)}"


def _signed(value: float) -> str:
    return ("+" if value >= 0 else "-") + number(abs(value))
