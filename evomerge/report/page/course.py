"""The course of the search: every candidate's score, the best so far, and what is to be beaten."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from evomerge.comparison import interval
from evomerge.report.history import running_best
from evomerge.report.page.blocks import MOST_ROWS, Block, Section, Table, Text, exact
from evomerge.report.page.svg import BLUE, INK, MUTED, ORANGE, RED, label, look, picture
from evomerge.report.table import number
from evomerge.score import Interval, State, Trial
from evomerge.study.record import Record

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

# Marks of one kind at most: a picture of 10,000 shows no more than one of these.
MOST_MARKS = 1200


def course(record: Record) -> Section:
    """The section."""
    ended = record.ended
    if not ended:
        return Section("course", "Course of the search", (Text("No candidate has ended yet."),))
    spans = {name: interval(score) for name, (_, score) in record.lines.items()}
    if record.best is not None and record.best.score is not None:
        spans["winner" if record.won else "best so far"] = interval(record.best.score)
    drawn = picture(
        "course-picture",
        "Score on the search items, candidate by candidate",
        _description(record, spans),
        lambda figure, narrow: _draw(figure, narrow, record, spans),
        (_models(spans), _candidates(record)),
        (330, 345),
    )
    blocks: list[Block] = [
        drawn,
        Text(
            "These are the items that the search itself chose by: the best of many scores too high there, in part by "
            "luck. What counts is the held-out comparison.",
            "note",
        ),
    ]
    done = sum(t.state is State.COMPLETE for t in ended)
    if done > MOST_MARKS:
        words = f"Drawn are about {MOST_MARKS:,} of {done:,} complete candidates, every new best among them."
        blocks.append(Text(words, "note"))
    return Section("course", "Course of the search", tuple(blocks))


def _description(record: Record, spans: dict[str, Interval]) -> str:
    ended = record.ended
    done = [t for t in ended if t.value is not None]
    words = [f"{len(ended):,} candidates: {len(done):,} complete"]
    words += [
        f"{count:,} {word}"
        for state, word in ((State.PRUNED, "stopped early"), (State.FAIL, "failed"))
        if (count := sum(t.state is state for t in ended))
    ]
    best = max((t.value for t in done if t.value is not None), default=None)
    text = ", ".join(words) + "."
    if best is not None:
        text += f" The highest score is {number(best)}."
    lines = ", ".join(f"{name} {number(span.mean)}" for name, span in spans.items())
    return f"{text} On the same items: {lines}." if lines else text


def thinned(trials: Sequence[Trial], kept: set[int], most: int = MOST_MARKS) -> list[Trial]:
    """As many trials, evenly over the search, those of `kept` among them."""
    if len(trials) <= most:
        return list(trials)
    step = len(trials) / most
    even = {trials[int(k * step)].number for k in range(most)}
    return [t for t in trials if t.number in even or t.number in kept]


def improvements(trials: Sequence[Trial]) -> list[Trial]:
    """The candidates that were better than all before."""
    found: list[Trial] = []
    for t in trials:
        if t.value is not None and (not found or t.value > (found[-1].value or 0.0)):
            found.append(t)
    return found


def _draw(figure: Figure, narrow: bool, record: Record, spans: dict[str, Interval]) -> None:
    from matplotlib.ticker import MaxNLocator

    axes, side = figure.subplots(1, 2, sharey=True, width_ratios=(2.6, 1) if narrow else (4.4, 1))
    ended = record.ended
    done = [t for t in ended if t.state is State.COMPLETE and t.value is not None]
    better = improvements(done)
    size = 3.2 if len(done) > 200 else 4.4
    shown = thinned(done, {t.number for t in better})
    raced = thinned([t for t in ended if t.state is State.PRUNED and t.estimate is not None], set())
    failed = thinned([t for t in ended if t.state is State.FAIL], set())
    axes.grid(axis="y")
    if raced:
        axes.plot(
            [t.number for t in raced],
            [t.estimate for t in raced],
            "v",
            markersize=size,
            markerfacecolor="none",
            markeredgecolor=MUTED,
            markeredgewidth=0.7,
            label="stopped early (estimate)",
        )
    axes.plot(
        [t.number for t in shown],
        [t.value for t in shown],
        "o",
        markersize=size,
        color=BLUE,
        markeredgewidth=0,
        label="complete",
    )
    if failed:  # they have no score: at the bottom edge
        axes.plot(
            [t.number for t in failed],
            [0.015] * len(failed),
            "x",
            markersize=5,
            color=RED,
            label="failed",
            transform=axes.get_xaxis_transform(),
            clip_on=False,
        )
    steps = [*better, ended[-1]]
    if better:
        axes.step(
            [t.number for t in steps],
            [*running_best([t.value or 0.0 for t in better]), better[-1].value or 0.0],
            where="post",
            color=INK,
            linewidth=1.3,
            label="best so far",
        )
    best = record.best
    if best is not None and best.value is not None:
        axes.plot(
            [best.number],
            [best.value],
            "*",
            markersize=12,
            color=ORANGE,
            markeredgecolor=INK,
            markeredgewidth=0.7,
            label="winner" if record.won else "best candidate",
            zorder=4,
        )
    _beside(axes, side, spans, record)
    axes.set_xlabel("candidate")
    axes.set_ylabel("score on the search items")
    axes.xaxis.set_major_locator(MaxNLocator(integer=True, nbins=5 if narrow else 9))
    axes.margins(x=0.02)
    figure.legend(loc="outside upper left", ncols=2 if narrow else 5, handlelength=1.6, columnspacing=1.2)


def _beside(axes: Axes, side: Axes, spans: dict[str, Interval], record: Record) -> None:
    """What is to be beaten: a line through both, and at the side its interval."""
    last = len(spans) - 1
    for i, (name, span) in enumerate(spans.items()):
        own = i == last and name not in record.lines
        role = "best" if own else record.lines[name][0]
        alike = [n for n, (r, _) in record.lines.items() if r == role]
        colour, marker, dash = look(role, 0 if own else alike.index(name))
        if not own:
            for one in (axes, side):
                one.axhline(span.mean, linestyle=dash, linewidth=1.1, color=colour, zorder=1.5)
        if span.low is not None and span.high is not None:
            side.plot([i, i], [span.low, span.high], color=colour, linewidth=1.6)
        side.plot(
            [i],
            [span.mean],
            marker,
            color=colour,
            markersize=10 if own else 6,
            markeredgecolor=INK,
            markeredgewidth=0.6,
            zorder=3,
        )
    side.set_xticks(range(len(spans)), [label(n, 16) for n in spans], rotation=90)
    side.set_xlim(-0.6, last + 0.6)
    side.spines["left"].set_visible(False)
    side.tick_params(axis="y", length=0, labelleft=False)
    side.grid(axis="y")
    side.set_title("95 % intervals", fontsize="medium", loc="left")


def _models(spans: dict[str, Interval]) -> Table:
    rows = tuple((n, exact(s.mean), exact(s.low), exact(s.high), f"{s.items:,}") for n, s in spans.items())
    return Table("On the search items", ("model", "score", "95 % from", "to", "items"), rows)


def _candidates(record: Record) -> Table:
    """Every candidate; of many, those that were a new best and as many others as there is room for."""
    ended = record.ended
    better = {t.number for t in improvements(ended)}
    shown = thinned(ended, better, MOST_ROWS)
    note = (
        f"{len(shown):,} of {len(ended):,} candidates are listed, evenly over the search, and each new best; "
        "all are in trials.parquet (evomerge export STUDY OUT --format parquet)."
        if len(shown) < len(ended)
        else ""
    )
    words = {State.COMPLETE: "complete", State.PRUNED: "stopped early", State.FAIL: "failed"}
    rows = tuple(
        (
            str(t.number),
            words[t.state],
            exact(t.value),
            exact(t.estimate),
            "" if t.seen is None else f"{t.seen:,}",
            f"{t.cost:.3g}",
            "yes" if t.number in better else "",
        )
        for t in shown
    )
    header = ("candidate", "state", "score", "estimate", "items of the race", "cost", "new best")
    best = None if record.best is None else record.best.number
    strong = frozenset(i for i, t in enumerate(shown) if t.number == best)
    return Table("Candidates", header, rows, words=2, note=note, strong=strong)
