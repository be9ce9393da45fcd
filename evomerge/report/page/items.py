"""Item by item on the test items: what the winner gained against each model, and what it lost."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from evomerge.report.page.blocks import Block, Example, Examples, Section, Table, Text
from evomerge.report.page.svg import GREEN, MUTED, ORANGE, PAPER, label, picture
from evomerge.report.result import rows
from evomerge.score import TaskScore
from evomerge.study.outcome import Outcome
from evomerge.study.record import Record

if TYPE_CHECKING:
    from matplotlib.figure import Figure

# Items shown of each kind and source, and characters of each.
SHOWN, LONGEST = 3, 700
# Models times tasks that are drawn.
MOST_BARS = 24


@dataclass(frozen=True)
class Texts:
    """What models were shown of items, by id; and where it is not known, why.

    Attributes:
        by_item: Of each task.
        unknown: In words; empty where it is known.
    """

    by_item: Mapping[str, Mapping[str, str]]
    unknown: str = ""


@dataclass(frozen=True)
class Agreement:
    """Winner and one other model on the same items of one task.

    Attributes:
        ours, theirs: Results of the items that both have, higher is better.
        binary: Whether they are right or wrong; else they are compared.
    """

    model: str
    role: str
    task: str
    items: tuple[str, ...]
    ours: np.ndarray
    theirs: np.ndarray
    binary: bool
    flipped: bool

    @property
    def gained(self) -> np.ndarray:
        """Where the winner is better."""
        return self.ours > self.theirs

    @property
    def lost(self) -> np.ndarray:
        """Where it is worse."""
        return self.ours < self.theirs

    @property
    def alike(self) -> tuple[int, int, int]:
        """As good, better, worse."""
        gained, lost = int(self.gained.sum()), int(self.lost.sum())
        return len(self.items) - gained - lost, gained, lost

    @property
    def counts(self) -> tuple[int, int, int, int]:
        """Both right, gained, lost, both wrong."""
        alike, gained, lost = self.alike
        right = int(((self.ours == self.theirs) & (self.ours > 0)).sum())
        return right, gained, lost, alike - right


def items(record: Record, texts: Texts) -> Section | None:
    """The section; None where no task has results by item that a winner could be compared by."""
    if record.outcome is None:
        return None
    found = agreements(record.outcome)
    if not found:
        return None
    return Section("items", "Gained and lost, item by item", tuple(_blocks(found, texts)))


def agreements(outcome: Outcome) -> list[Agreement]:
    """Of every model and task, those that count first."""
    found = []
    tasks = sorted(outcome.winner.test.tasks, key=lambda t: not t.weight)
    for mine in tasks:
        if not mine.by_item or len(mine.items) != len(mine.results):
            continue
        for row, measured in zip(rows(outcome), outcome.measured, strict=True):
            theirs = measured.test.task(mine.task)
            if row.difference is not None and theirs is not None and theirs.by_item:
                made = _agreement(row.name, row.role, mine, theirs)
                if made is not None:
                    found.append(made)
    return found


def _agreement(model: str, role: str, mine: TaskScore, theirs: TaskScore) -> Agreement | None:
    at = {item: i for i, item in enumerate(theirs.items)}
    pairs = [(i, at[item]) for i, item in enumerate(mine.items) if item in at]
    if not pairs:
        return None
    left, right = (list(side) for side in zip(*pairs, strict=True))
    a, b = mine.results[left], theirs.results[right]
    binary = bool(np.isin(a, (0.0, 1.0)).all() and np.isin(b, (0.0, 1.0)).all())
    return Agreement(model, role, mine.task, tuple(mine.items[i] for i in left), a, b, binary, mine.flipped)


def _blocks(found: list[Agreement], texts: Texts) -> Iterator[Block]:
    several = len({a.task for a in found}) > 1
    drawn = found[:MOST_BARS]
    binary = all(a.binary for a in found)
    words = ("both right", "gained", "lost", "both wrong") if binary else ("as good", "better", "worse")
    counts = {(a.model, a.task): a.counts if binary else a.alike for a in found}
    made = tuple((a.model, a.task, *(f"{c:,}" for c in counts[a.model, a.task]), f"{len(a.items):,}") for a in found)
    table = Table("Items of test", ("model", "task", *words, "items"), made, words=2)
    yield picture(
        "items-picture",
        "The winner against each model, item by item",
        " ".join(
            f"{a.model} ({a.task}): "
            + ", ".join(f"{c} {w}" for c, w in zip(counts[a.model, a.task], words, strict=True))
            + "."
            for a in drawn
        ),
        lambda figure, narrow: _draw(figure, narrow, drawn, [counts[a.model, a.task] for a in drawn], words, several),
        (table,),
        (74.0 + 24.0 * len(drawn), 92.0 + 24.0 * len(drawn)),
    )
    if len(found) > len(drawn):
        yield Text(f"Drawn are {len(drawn)} of {len(found)} comparisons; all are in the table.", "note")
    said = "Gained: the winner has it and the model has not. Lost: the other way round."
    yield Text(f"{said} Items are shown with their right answers." if texts.by_item else said, "note")
    if texts.unknown:
        yield Text(f"Items go by their ids here: {texts.unknown}", "note")
    counted = [a for a in found if a.role == "source"] or found
    first = counted[0].task
    for a in counted:
        if a.task == first:
            yield from _examples(a, texts)


def _examples(a: Agreement, texts: Texts) -> Iterator[Block]:
    for what, where in (("gained", a.gained), ("lost", a.lost)):
        at = np.flatnonzero(where)
        if not len(at):
            continue
        known = texts.by_item.get(a.task, {})
        chosen = tuple(
            Example(
                a.task,
                a.items[i],
                _shortened(known.get(a.items[i])),
                (("winner", _result(a, a.ours[i])), (a.model, _result(a, a.theirs[i]))),
            )
            for i in at[:SHOWN]
        )
        count = f"{len(at):,} item{'' if len(at) == 1 else 's'}"
        shown = f": {len(chosen)} of them" if len(at) > len(chosen) else ""
        yield Examples(f"{what.capitalize()} against {a.model}, {count}{shown}", chosen)


def _result(a: Agreement, value: float) -> str:
    if a.binary:
        return "right" if value else "wrong"
    return f"{-value if a.flipped else value:.4g}"


def _shortened(text: str | None) -> str | None:
    if text is None or len(text) <= LONGEST:
        return text
    return f"{text[:LONGEST]} … ({len(text):,} characters)"


def _draw(
    figure: Figure,
    narrow: bool,
    found: list[Agreement],
    counts: list[tuple[int, ...]],
    words: tuple[str, ...],
    several: bool,
) -> None:
    from matplotlib.patches import Patch

    axes = figure.add_subplot()
    # The hatch differs too: for those who see no colours, and in print.
    looks = ((MUTED, ""), (GREEN, "//"), (ORANGE, "xx"), (PAPER, ""))[: len(words)]
    names, between = [], "\n" if narrow else ", "
    for y, (a, bars) in enumerate(reversed(list(zip(found, counts, strict=True)))):
        left, total = 0.0, len(a.items) or 1
        for count, (colour, hatch) in zip(bars, looks, strict=True):
            share = count / total
            axes.barh(
                y,
                share,
                left=left,
                height=0.66,
                color=colour,
                edgecolor=MUTED if colour == PAPER else PAPER,
                hatch=hatch,
                linewidth=0.8,
            )
            if share > (0.11 if narrow else 0.05):
                axes.text(
                    left + share / 2,
                    y,
                    f"{count:,}",
                    ha="center",
                    va="center",
                    fontsize=8,
                    bbox={"facecolor": PAPER, "edgecolor": "none", "pad": 1.4},
                )
            left += share
        names.append(f"{label(a.model)}{between}{label(a.task)}" if several else label(a.model))
    axes.set_yticks(range(len(names)), names)
    axes.set_xlim(0, 1)
    axes.set_ylim(-0.55, len(names) - 0.45)
    axes.set_xticks([0, 0.25, 0.5, 0.75, 1], ["0", "25 %", "50 %", "75 %", "100 %"])
    axes.tick_params(axis="y", length=0)
    axes.spines["left"].set_visible(False)
    axes.set_xlabel("share of the test items")
    handles = [
        Patch(facecolor=c, edgecolor=MUTED if c == PAPER else PAPER, hatch=h, label=w)
        for (c, h), w in zip(looks, words, strict=True)
    ]
    figure.legend(handles=handles, loc="outside upper left", ncols=2 if narrow else 4)
