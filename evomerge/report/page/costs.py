"""What the search cost, and what failed and why."""

from __future__ import annotations

import re
from collections.abc import Iterator

from evomerge.report.page.blocks import Block, Section, Table, Text, limited
from evomerge.report.table import number
from evomerge.score import State, Trial, cost
from evomerge.study.record import Record

# Candidates named beside a reason.
NAMED = 8


def costs(record: Record) -> Section:
    """The section on cost."""
    return Section("cost", "Cost", tuple(_costs(record)))


def _costs(record: Record) -> Iterator[Block]:
    ended = record.ended
    states = [t.state for t in ended]
    spent = float(record.notes.get("seconds", 0.0))
    rows = [
        ("candidates", f"{len(ended):,}"),
        ("complete", f"{states.count(State.COMPLETE):,}"),
        ("stopped early", f"{states.count(State.PRUNED):,}"),
        ("failed", f"{states.count(State.FAIL):,}"),
        ("budget spent, in candidates on all search items", f"{cost(ended):.6g}"),
        ("results of items behind these scores", f"{_items(ended):,}"),
        ("time of the search, all runs together", duration(spent)),
    ]
    steps = _steps(ended)
    for step, seconds in steps.items():
        each = f"{number(seconds / max(len(ended), 1))} s a candidate"
        rows.append((f"{step}, all workers together", f"{duration(seconds)} ({each})"))
    worked = sum(steps.values())
    if spent > 0 and worked > 0:
        rows.append(("workers at work, on average", f"{worked / spent:.2f}"))
    if record.outcome is not None and record.outcome.first_stage:
        rows.append(("candidates of the first stage before", f"{record.outcome.first_stage:,}"))
    for name, trials in record.stages.items():
        ended_there = [t for t in trials if t.state is not State.RUNNING]
        rows.append((f"beside it: {name}", f"{len(ended_there):,} candidates for {cost(ended_there):.6g}"))
    yield Table("What it took", ("what", "how much"), tuple(rows))
    if spent > 0 and worked > 0:
        yield Text(
            "Workers at work is the time that they built and scored candidates, over the time of the search: it stays "
            "below their number where they waited, or candidates were known already.",
            "note",
        )


def _items(trials: tuple[Trial, ...]) -> int:
    """Results of items that were had for candidates, those known from earlier ones included."""
    scores = [s for t in trials if (s := t.score or t.part) is not None]
    return sum(len(t.results) for score in scores for t in score.tasks)


def _steps(trials: tuple[Trial, ...]) -> dict[str, float]:
    found: dict[str, float] = {}
    for trial in trials:
        for step, seconds in trial.seconds.items():
            found[step] = found.get(step, 0.0) + float(seconds)
    return found


def duration(seconds: float) -> str:
    """A time in words."""
    if seconds < 90:
        return f"{seconds:.1f} s"
    if seconds < 5400:
        return f"{seconds / 60:.1f} min"
    return f"{seconds / 3600:.1f} h"


def failures(record: Record) -> Section:
    """The section on what failed."""
    failed = [t for t in record.ended if t.state is State.FAIL]
    if not failed:
        return Section("failures", "Failures", (Text("No candidate failed."),))
    kinds: dict[str, list[Trial]] = {}
    for trial in failed:
        kinds.setdefault(kind(trial.reason), []).append(trial)
    rows = []
    for trials in sorted(kinds.values(), key=lambda found: -len(found)):
        numbers = ", ".join(str(t.number) for t in trials[:NAMED]) + (", ..." if len(trials) > NAMED else "")
        rows.append((_short(trials[0].reason), numbers, f"{len(trials):,}"))
    made, note = limited(rows, "reasons", 50)
    share = f"{len(failed):,} of {len(record.ended):,} candidates failed; each was told to the optimizer as the worst."
    table = Table("Why", ("reason, of the first", "candidates", "how many"), made, words=2, note=note)
    return Section("failures", "Failures", (Text(share), table))


def kind(reason: str | None) -> str:
    """What reasons of one kind have in common: their words without their numbers."""
    return re.sub(r"\d+(\.\d+)?(e[+-]?\d+)?", "#", (reason or "").splitlines()[0] if reason else "")


def _short(reason: str | None) -> str:
    text = (reason or "no reason given").strip()
    return text if len(text) <= 400 else f"{text[:400]} …"
