"""The live view of a search on a terminal: a few lines that are drawn anew four times a second, at any width."""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from rich.cells import cell_len
from rich.progress_bar import ProgressBar
from rich.segment import Segment
from rich.text import Text

from evomerge.watching.tally import Tally

if TYPE_CHECKING:
    from rich.console import Console, ConsoleOptions, RenderableType, RenderResult

GAP = "   "
RECIPE_LINES = 2
ENDING = "ending: what is under way is finished and recorded (Ctrl-C again: ends at once)"


@dataclass
class Measuring:
    """Models that are being scored on a split."""

    split: str
    waiting: list[str]
    total: int
    since: float = field(default_factory=time.monotonic)

    def words(self) -> list[str]:
        """`test items: 3 of 6 models scored`, and which are left."""
        done = self.total - len(self.waiting)
        return [
            f"{self.split} items: {done} of {self.total} models scored, {duration(time.monotonic() - self.since)}",
            f"still to score: {', '.join(self.waiting)}",
        ]


class View:
    """What the screen shows; rich draws it from a thread of its own.

    Attributes:
        tally: Of the search that is under way, or was the last.
        measuring: What is scored beside it, if anything.
        recipe: The best candidate in words.
        ending: Whether the search was asked to end.
    """

    def __init__(self) -> None:
        self.tally: Tally | None = None
        self.measuring: Measuring | None = None
        self.recipe = ""
        self.ending = False

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        width = options.max_width
        yield from self._lines(width)

    def _lines(self, width: int) -> Iterator[RenderableType | Segment]:
        tally, measuring = self.tally, self.measuring
        scoring = measuring is not None and bool(measuring.waiting)
        if tally is not None:
            yield from packed(_head(tally, scoring), width, "bold")
            # One column less: a terminal may put a full line's end on the next one.
            yield ProgressBar(total=1.0, completed=tally.share, width=max(1, width - 1))
            yield Segment.line()
            yield from packed(_scores(tally), width)
            yield from packed(_counts(tally, scoring), width)
            if self.recipe:
                yield from _folded(f"recipe {self.recipe}", width)
        if measuring is not None and scoring:
            yield from packed(measuring.words(), width, "cyan")
        if self.ending:
            yield from packed([ENDING], width, "yellow")


def _head(tally: Tally, scoring: bool) -> Iterator[str]:
    budget = tally.beginning.budget
    yield tally.beginning.name
    if budget.candidates is not None:
        yield f"{tally.units:.1f} of {budget} spent" if tally.units % 1 else f"{tally.units:.0f} of {budget} spent"
    else:
        yield f"{duration(tally.seconds)} of {budget}"
    yield f"{tally.share:.0%}"
    left = None if scoring else tally.left
    if left is not None:
        yield f"about {duration(left)} left"


def _scores(tally: Tally) -> Iterator[str]:
    best, goal = tally.best, tally.beginning.goal
    if best is not None and best.value is not None:
        misses = " (misses a constraint)" if best.violation else ""
        yield f"best {best.value:.3f} (candidate {best.number}){misses}"
    if goal is not None:
        name, found = goal
        span = f" ({found.low:.3f} .. {found.high:.3f})" if found.low is not None and found.high is not None else ""
        yield f"best source {name} {found.mean:.3f}{span}"


def _counts(tally: Tally, scoring: bool) -> Iterator[str]:
    yield f"{tally.running} running"
    yield f"{tally.complete} complete"
    if tally.pruned:
        yield f"{tally.pruned} stopped early"
    if tally.failed:
        yield f"{tally.failed} failed"
    rates = None if scoring else tally.rates
    if rates is not None:
        yield f"{rates[0]:,.0f} candidates/min"
        if tally.beginning.items:
            yield f"{rates[1]:,.0f} items/s"


def packed(pieces: Iterator[str] | list[str], width: int, style: str = "") -> Iterator[Text]:
    """Pieces side by side, as many on a line as fit; one that is too long by itself is cut."""
    line = ""
    for piece in pieces:
        if line and cell_len(line) + len(GAP) + cell_len(piece) > width - 1:
            yield _cut(line, width, style)
            line = ""
        line = f"{line}{GAP}{piece}" if line else piece
    if line:
        yield _cut(line, width, style)


def _cut(line: str, width: int, style: str) -> Text:
    text = Text(line, style=style, no_wrap=True, overflow="ellipsis")
    text.truncate(max(1, width - 1), overflow="ellipsis")
    return text


def _folded(words: str, width: int) -> Iterator[Text]:
    """At most `RECIPE_LINES` lines."""
    line, lines = "", 0
    left = words.split(" ")
    while left:
        word = left[0]
        if line and cell_len(line) + 1 + cell_len(word) > width - 1:
            lines += 1
            if lines == RECIPE_LINES:
                yield _cut(f"{line} {' '.join(left)}", width, "dim")
                return
            yield _cut(line, width, "dim")
            line = "  "
        line = f"{line} {word}" if line.strip() else line + word
        left.pop(0)
    yield _cut(line, width, "dim")


def duration(seconds: float) -> str:
    """`40 s`, `3 min 05 s`, `2 h 10 min`."""
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60:02d} s"
    return f"{whole // 3600} h {whole % 3600 // 60:02d} min"
