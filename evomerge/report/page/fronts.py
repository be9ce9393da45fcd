"""Several objectives: who is not beaten, and how the volume grew. And what a search keeps that keeps different ones."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from itertools import combinations
from typing import TYPE_CHECKING, Any

from evomerge.evaluation.goals import DEPTH, SCORE
from evomerge.report.page.blocks import Block, Section, Table, Text, exact, limited
from evomerge.report.page.course import thinned
from evomerge.report.page.svg import BLUE, GRID, INK, MUTED, ORANGE, label, look, picture
from evomerge.report.table import number
from evomerge.study.goals import is_minimised, shown
from evomerge.study.record import Record

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

Point = tuple[float, ...]
# Pairs of objectives that are drawn; of more all are in the table.
MOST_PAIRS = 3


def front(record: Record) -> Section | None:
    """The section; None where a single objective counts and candidates are no paths of several depths."""
    aims = record.aims
    several = len(aims.goals.objectives) > 1
    if not aims.front or not (several or len(aims.front) > 1):
        return None
    names = aims.goals.objectives if several else (DEPTH, SCORE)
    scored = [t for t in record.ended if t.score is not None and (DEPTH in t.attributes or DEPTH not in names)]
    points = {t.number: tuple(shown(n, t.score, t.attributes) for n in names) for t in scored if t.score is not None}
    models: dict[str, Point] = {}
    if DEPTH not in names:  # which is only paths'
        models = {n: tuple(shown(o, s, {}) for o in names) for n, (_, s) in record.lines.items()}
    rows = [(str(t.number), *(exact(v) for v in points[t.number])) for t in aims.front if t.number in points]
    made, note = limited(rows, "candidates of the front")
    pairs = list(combinations(range(len(names)), 2))[:MOST_PAIRS]
    tables = [Table("The front", ("candidate", *names), made, note=note)]
    if models:
        tables.append(Table("For comparison", ("model", *names), tuple((n, *map(exact, v)) for n, v in models.items())))
    best = ", ".join(f"{n} {number(v)}" for n, v in zip(names, points[aims.front[-1].number], strict=True))
    drawn = picture(
        "front-picture",
        "The front, on the search items",
        f"{len(aims.front)} of {len(points)} candidates are beaten by no other ({', '.join(names)}). The last: {best}.",
        lambda figure, narrow: _draw(figure, narrow, record, names, pairs, points, models),
        tuple(tables),
        (320 if len(pairs) == 1 else 240, 300.0 * len(pairs)),
    )
    blocks: list[Block] = [
        Text(
            "No other candidate is at least as good in every objective and better in one. Each can be written as a "
            "checkpoint: evomerge export STUDY OUT --trial NUMBER."
        ),
        drawn,
        *_volume(record),
    ]
    return Section("front", "Front of the objectives", tuple(blocks))


def _draw(
    figure: Figure,
    narrow: bool,
    record: Record,
    names: Sequence[str],
    pairs: Sequence[tuple[int, int]],
    points: Mapping[int, Point],
    models: Mapping[str, Point],
) -> None:
    shape = (len(pairs), 1) if narrow else (1, len(pairs))
    on_front = [t.number for t in record.aims.front if t.number in points]
    others = thinned([t for t in record.ended if t.number in points and t.number not in on_front], set())
    for axes, (a, b) in zip(figure.subplots(*shape, squeeze=False).flat, pairs, strict=True):
        axes.grid(color=GRID)
        axes.plot(
            [points[t.number][a] for t in others],
            [points[t.number][b] for t in others],
            "o",
            markersize=3.5,
            color=MUTED,
            markeredgewidth=0,
            alpha=0.6,
            label="candidates",
        )
        for name, point in models.items():
            role = record.lines[name][0]
            colour, marker, _ = look(role, [n for n, (r, _) in record.lines.items() if r == role].index(name))
            axes.plot(
                [point[a]],
                [point[b]],
                marker,
                color=colour,
                markersize=6,
                markeredgecolor=INK,
                markeredgewidth=0.6,
                label=label(name),
            )
        mine = sorted((points[n][a], points[n][b]) for n in on_front)
        axes.plot(
            *zip(*mine, strict=True),
            "-o" if len(names) == 2 else "o",
            color=BLUE,
            markersize=5.5,
            linewidth=1,
            markeredgecolor=INK,
            markeredgewidth=0.5,
            label="front",
        )
        best = record.best
        if best is not None and best.number in points:
            axes.plot(
                [points[best.number][a]],
                [points[best.number][b]],
                "*",
                color=ORANGE,
                markersize=12,
                markeredgecolor=INK,
                markeredgewidth=0.7,
                label="winner" if record.won else "best so far",
            )
        _name(axes, names[a], names[b])
    handles, labels = figure.axes[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside upper left", ncols=2 if narrow else 5)


def _name(axes: Axes, x: str, y: str) -> None:
    from matplotlib.ticker import MaxNLocator

    words = {True: " (less is better)", False: ""}
    if x == DEPTH:
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.set_xlabel(label(x, 40) + words[is_minimised(x)])
    axes.set_ylabel(label(y, 40) + words[is_minimised(y)])


def _volume(record: Record) -> Iterator[Block]:
    aims = record.aims
    if not aims.hypervolume:
        return
    points = list(aims.hypervolume)
    made, note = limited([(f"{c:.4g}", exact(v)) for c, v in points], "steps")
    reference = ", ".join(f"{n} {number(v)}" for n, v in zip(aims.goals.objectives, aims.reference, strict=True))
    end = max(sum(t.cost for t in record.ended), points[-1][0])

    def draw(figure: Figure, narrow: bool) -> None:
        axes = figure.add_subplot()
        axes.grid(axis="y")
        axes.step(
            [0.0, *(c for c, _ in points), end], [0.0, *(v for _, v in points), points[-1][1]], where="post", color=BLUE
        )
        axes.set_xlabel("candidates' worth of items")
        axes.set_ylabel("hypervolume")
        axes.set_ylim(bottom=0)

    yield picture(
        "volume-picture",
        "Hypervolume of the front",
        f"It ends at {number(points[-1][1])}, measured from {reference}.",
        draw,
        (Table("Hypervolume", ("candidates' worth of items", "hypervolume"), made, words=0, note=note),),
        (210, 220),
    )
    yield Text(
        f"The hypervolume is what the front dominates above the worst of base, sources and uniform ({reference}).",
        "note",
    )


def archive(record: Record) -> Section | None:
    """What the search kept beside its winner, where result.json has it."""
    found = (record.result or {}).get("archive")
    if not isinstance(found, dict) or not found.get("elites"):
        return None
    elites: list[dict[str, Any]] = list(found["elites"])
    tasks = list(elites[0]["tasks"])
    extra = [k for k in ("cell", "fitness", "violation") if k in elites[0]]
    rows = [
        (
            str(e["trial"]),
            exact(e["search"]),
            *(exact(e["tasks"][t]) for t in tasks),
            *(_extra(e.get(k)) for k in extra),
        )
        for e in elites
    ]
    words = {"cell": "cell", "fitness": "shared fitness", "violation": "misses constraints by"}
    made, note = limited(rows, "candidates of the archive")
    table = Table("The archive", ("candidate", "score", *tasks, *(words[k] for k in extra)), made, note=note)
    blocks: list[Block] = [Text(_kept(found, elites))]
    if len(tasks) > 1:
        blocks.append(
            picture(
                "archive-picture",
                f"What {found['sampler']} kept, by its values in two tasks",
                f"{len(elites)} candidates; the best scores {number(elites[0]['search'])}.",
                lambda figure, narrow: _draw_archive(figure, narrow, elites, tasks, found.get("grid")),
                (table,),
                (330, 320),
            )
        )
    else:
        blocks.append(table)
    return Section("archive", "Archive of different candidates", tuple(blocks))


def _extra(value: Any) -> str:
    return ", ".join(map(str, value)) if isinstance(value, list) else exact(value)


def _kept(found: Mapping[str, Any], elites: Sequence[Mapping[str, Any]]) -> str:
    words = (
        f"{found['sampler']} ends with {len(elites)} different candidates, the best of each kind, on the search items."
    )
    if "coverage" in found:
        words += f" Coverage {number(found['coverage'])}, QD score {number(found['qd_score'])}."
    return words


def _draw_archive(
    figure: Figure,
    narrow: bool,
    elites: Sequence[Mapping[str, Any]],
    tasks: Sequence[str],
    grid: Mapping[str, Any] | None,
) -> None:
    from matplotlib import colormaps
    from matplotlib.colors import ListedColormap, Normalize

    axes = figure.add_subplot()
    values = [e["search"] for e in elites]
    low, high = min(values), max(values)
    colours = ListedColormap([colormaps["cividis"](k / 47) for k in range(48)])
    norm = Normalize(low, high if high > low else low + 1e-9)
    a, b = tasks[:2]
    points = axes.scatter(
        [e["tasks"][a] for e in elites],
        [e["tasks"][b] for e in elites],
        c=values,
        cmap=colours,
        norm=norm,
        s=34,
        edgecolors=INK,
        linewidths=0.6,
        zorder=3,
    )
    if grid is not None:
        for task, line, bound in ((a, axes.axvline, axes.set_xlim), (b, axes.axhline, axes.set_ylim)):
            axis = grid[task]
            width = (axis["high"] - axis["low"]) / axis["cells"]
            for k in range(axis["cells"] + 1):
                line(axis["low"] + k * width, color=GRID, linewidth=0.7)
            bound(axis["low"] - 0.2 * width, axis["high"] + 0.2 * width)
    else:
        axes.grid(color=GRID)
    axes.set_xlabel(label(a, 40))
    axes.set_ylabel(label(b, 40))
    bar = figure.colorbar(points, ax=axes, fraction=0.05, pad=0.02)
    bar.outline.set_edgecolor(MUTED)
    bar.set_label("score")
