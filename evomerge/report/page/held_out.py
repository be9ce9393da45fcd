"""The held-out comparison: scores and paired differences on the test items, shrinkage, overlaps."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

from evomerge.report.page.blocks import Block, Section, Table, Text, exact
from evomerge.report.page.svg import INK, label, look, picture
from evomerge.report.result import Row, rows
from evomerge.report.table import against, columns, number, signed, span
from evomerge.study.outcome import Outcome
from evomerge.study.record import Record

if TYPE_CHECKING:
    from matplotlib.figure import Figure

SPLIT_WORDS = {"search": "search to test", "select": "select to test"}


def held_out(record: Record) -> Section | None:
    """The section; None where nothing was measured on the test items."""
    outcome = record.outcome
    return None if outcome is None else Section("held-out", "Held-out comparison", tuple(_blocks(outcome)))


def _blocks(outcome: Outcome) -> Iterator[Block]:
    found = rows(outcome)
    yield _table(outcome, found)
    yield Text(
        "Differences are the winner minus the model, paired item by item; p is corrected for all comparisons (Holm). "
        "docs/statistics.md says how each figure is computed.",
        "note",
    )
    height = 92.0 + 19.0 * len(found)
    yield picture(
        "held-out-picture",
        "Scores on the test items, and by how much the winner differs",
        _description(found),
        lambda figure, narrow: _draw(figure, narrow, found),
        (_exact(found),),
        (height, height * 1.75),
    )
    yield from _tasks(outcome, found)
    yield from _shrinkage(outcome)
    yield from _overlaps(outcome)


def _table(outcome: Outcome, found: list[Row]) -> Table:
    target, _ = columns(outcome)
    header = ("model", target, "95 %", "best minus it", "95 %", "p", "gained", "lost")
    made = []
    for r in found:
        d = r.difference
        flips = ("", "") if d is None or d.gained is None else (str(d.gained), str(d.lost))
        made.append((r.name, number(r.test.mean), span(r.test), *against(d), *flips))
    drop = all(not row[6] for row in made)
    cut = 6 if drop else 8
    items = f"{found[-1].test.items:,} test items" if found[-1].test.items else "the test items"
    return Table(f"On {items}", header[:cut], tuple(row[:cut] for row in made), strong=frozenset({len(found) - 1}))


def _exact(found: list[Row]) -> Table:
    header = ("model", "score", "95 % from", "to", "difference", "95 % from", "to", "p", "p, corrected", "test")
    made = []
    for r in found:
        d, t = r.difference, r.test
        left = (r.name, exact(t.mean), exact(t.low), exact(t.high))
        right: tuple[str, ...] = ("",) * 6
        if d is not None:
            right = (exact(d.mean), exact(d.low), exact(d.high), exact(d.p), exact(d.holm), d.test or "none")
        made.append((*left, *right))
    return Table("Scores and differences", header, tuple(made))


def _description(found: list[Row]) -> str:
    best = found[-1]
    words = [f"{best.name}: {number(best.test.mean)} ({span(best.test)})."]
    for r in found[:-1]:
        if r.difference is not None:
            gap = f"{signed(r.difference)} ({span(r.difference, sign=True)})"
            words.append(f"{r.name}: {number(r.test.mean)}; best minus it {gap}.")
    return " ".join(words)


def _draw(figure: Figure, narrow: bool, found: list[Row]) -> None:
    scores, gaps = figure.subplots(2, 1) if narrow else figure.subplots(1, 2, sharey=True)
    for y, row in enumerate(reversed(found)):
        colour, marker, _ = look(row.role, [r.name for r in found if r.role == row.role].index(row.name))
        for axes, span_ in ((scores, row.test), (gaps, row.difference)):
            if span_ is None:
                continue
            if span_.low is not None and span_.high is not None:
                axes.plot([span_.low, span_.high], [y, y], color=colour, linewidth=1.8)
            axes.plot(
                [span_.mean],
                [y],
                marker,
                color=colour,
                markersize=10 if marker == "*" else 6.5,
                markeredgecolor=INK,
                markeredgewidth=0.6,
                zorder=3,
            )
    names = [label(r.name) for r in reversed(found)]
    for axes in (scores, gaps):
        axes.set_yticks(range(len(names)), names)
        axes.set_ylim(-0.6, len(names) - 0.4)
        axes.grid(axis="x")
        axes.tick_params(axis="y", length=0)
        axes.spines["left"].set_visible(False)
    if not narrow:
        gaps.tick_params(axis="y", labelleft=False)
    gaps.axvline(0, color=INK, linewidth=1)
    scores.set_xlabel("score, 95 % interval")
    gaps.set_xlabel("best minus it, 95 % interval")


def _tasks(outcome: Outcome, found: list[Row]) -> Iterator[Block]:
    """Every task by itself, each with its interval: so that forgetting shows."""
    metrics = {t.task: t.metric for t in outcome.winner.test.tasks}
    weights = {t.task: t.weight for t in outcome.winner.test.tasks}
    if len(metrics) < 2:
        return
    made = tuple(
        (task, metrics[task], r.name, exact(r.tasks[task].mean), span(r.tasks[task]), f"{r.tasks[task].items:,}")
        for task in metrics
        for r in found
        if task in r.tasks
    )
    header = ("model", *(f"{t}{'' if weights[t] else ' (not searched for)'}" for t in metrics))
    flat = tuple((r.name, *(number(r.tasks[t].mean) if t in r.tasks else "" for t in metrics)) for r in found)
    yield Table(
        "Each task by itself",
        header,
        flat,
        strong=frozenset({len(found) - 1}),
        note="The metric as its authors report it: of an error rate less is better.",
    )
    yield Table(
        "Each task with its interval", ("task", "metric", "model", "value", "95 %", "items"), made, words=3, folded=True
    )


def _shrinkage(outcome: Outcome) -> Iterator[Block]:
    if not outcome.shrinkage:
        return
    scores = {"search": outcome.winner.search or outcome.best.score, "select": outcome.winner.select}
    made = tuple(
        (SPLIT_WORDS[split], number(s.value), number(outcome.winner.test.value), signed(found), span(found, sign=True))
        for split, found in outcome.shrinkage.items()
        if (s := scores[split]) is not None
    )
    header = ("from", "score there", "on test", "shrinkage", "95 %")
    yield Table("Overfitting: how much of the winner's score was luck", header, made)


def _overlaps(outcome: Outcome) -> Iterator[Block]:
    shared = outcome.overlaps
    if shared is None:
        yield Text("Nobody looked for items that the splits have in common (a study of an early version).", "note")
        return
    found = shared.get("found", ())
    if not found:
        yield Text("No item of one split was found in another, nor in a text that a fused source learned from.", "note")
        return
    made = tuple(
        (
            str(o["split"]),
            str(o["task"]),
            str(o["also"]),
            str(o.get("also_task") or ""),
            f"{o['exact']:,}",
            f"{o['near']:,}",
            f"{o['items']:,}",
        )
        for o in found
    )
    header = ("split", "task", "also in", "of task", "exactly", "nearly", "of items")
    yield Table("Items that are elsewhere too", header, made, words=4)
