"""The page of a fusion of image models: the matrix of distances as a picture, the grid of pictures, the training."""

from __future__ import annotations

import base64
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml

from evomerge.images.fused import replaced_lines
from evomerge.report.page.blocks import Block, Code, Photo, Section, Table, Text, exact
from evomerge.report.page.render import render
from evomerge.report.page.svg import BLUE, FONT, GRID, INK, ORANGE, label, picture

if TYPE_CHECKING:
    from matplotlib.figure import Figure


def distances_page(data: Mapping[str, Any], rows: Sequence[Sequence[str]], grid: Path, footer: str) -> str:
    """A fusion's report.

    Args:
        data: As its result.json has it.
        rows: Distances as they are printed, with their heads.
        grid: The grid of pictures (PNG); left out where it is not there.
    """
    sections = tuple(_sections(data, rows, grid))
    new = len(data["styles"]) - len(data["old"])
    about = f"One {data['architecture']} with {len(data['styles'])} styles, distilled from {new} teachers"
    if data["old"]:
        about = f"One {data['architecture']} with {len(data['styles'])} styles, {new} of them new"
    return render(str(data["name"]), about, sections, footer)


def _sections(data: Mapping[str, Any], rows: Sequence[Sequence[str]], grid: Path) -> Iterator[Section]:
    yield _found(data, rows)
    if grid.is_file():
        yield _grid(data, grid)
    if data["training"]["history"]:
        yield _training(data)
    yield Section("file", "How it was made", (Code("The file", yaml.safe_dump(data["file"], sort_keys=False)),))


def _found(data: Mapping[str, Any], rows: Sequence[Sequence[str]]) -> Section:
    found = data["distances"]
    matrix, average = found["matrix"], found["average"]
    count = len(found["styles"])
    least = sum(data["least_on_diagonal"])
    worst = max(matrix[i][i] / average[i] for i in range(count) if average[i]) if any(average) else float("nan")
    lead = (
        f"Each style is nearest to its own teacher in {least} of {count} cases. FIDt, the mean distance of a style to "
        f"its teacher, is {found['fidt']:.4f}; the largest is {worst:.0%} of what the average of all weights has."
    )
    head, *body = (tuple(r) for r in rows)
    table = Table(
        "Distances", tuple(head), tuple(body),
        note="The last two rows: the mean of all models' weights (weight average), and each teacher itself with other "
        "noise (teacher again).",
    )  # fmt: skip
    drawn = picture(
        "distances-picture",
        "Distance of each style to each teacher",
        f"Fréchet distances of {count} styles and of the weight average to {len(found['references'])} teachers. {lead}",
        lambda figure, narrow: _draw(figure, narrow, data),
        (table,),
        (90 + 34.0 * (count + 2), 110 + 34.0 * (count + 2)),
    )
    words = Text(
        f"Fréchet distances on {data['images']:,} pictures each, on {features_words(data)}: they "
        "compare these models with each other, and not with published FID. A bar is as wide as the distance's root. "
        + ("The teacher of an old style is the student before, in that style." if data["old"] else ""), "note",
    )  # fmt: skip
    replaced = (Text(f"{line}.", "note") for line in replaced_lines(data.get("replaced", {})))
    return Section("distances", "Styles and teachers", (Text(lead, "lead"), drawn, words, *replaced))


def features_words(data: Mapping[str, Any]) -> str:
    """What pictures were compared by, in words.

    Args:
        data: As a fusion's result.json has it.
    """
    own = data.get("features")
    return "features of fixed random convolutions" if own is None else f"features of {own}"


def _draw(figure: Figure, narrow: bool, data: Mapping[str, Any]) -> None:
    """Bars as wide as the root of the distance, their numbers beside them; the diagonal told without colour too."""
    found = data["distances"]
    rows = [*found["matrix"], found["average"], found["floor"]]
    names = [*found["styles"], *(("average", "again") if narrow else ("weight average", "teacher again"))]
    most = max((v for row in rows for v in row), default=1.0) or 1.0
    axes = figure.subplots()
    longest = 9 if narrow else 18
    for i, row in enumerate(rows):
        for j, value in enumerate(row):
            own = i < len(found["styles"]) and i == j
            side = 0.4 * (value / most) ** 0.5
            colour = ORANGE if own else BLUE if i < len(found["styles"]) else GRID
            axes.barh(
                i, side, height=0.62, left=j - 0.42, color=colour, hatch="///" if own else None,
                edgecolor=INK if own else "none", linewidth=0.6,
            )  # fmt: skip
            axes.text(j + 0.45, i, f"{value:.3f}", ha="right", va="center", fontsize=FONT[narrow], color=INK)
    axes.set_xlim(-0.5, len(found["references"]) - 0.5)
    axes.set_ylim(len(rows) - 0.5, -0.5)
    axes.set_xticks(range(len(found["references"])), [label(n, longest) for n in found["references"]])
    axes.set_yticks(range(len(rows)), [label(n, longest if narrow else 22) for n in names])
    axes.xaxis.tick_top()
    axes.tick_params(length=0)
    for side_ in ("left", "bottom"):
        axes.spines[side_].set_visible(False)


def _grid(data: Mapping[str, Any], grid: Path) -> Section:
    """The grid of pictures, inside the page."""
    shown = ", ".join(str(p) for p in data["prompts"][: data.get("grid")])
    words = "Each teacher above the student in its style; last, half of the first style and half of the last."
    made = Photo(
        "grid-picture", "What they make", f"Rows: {words} Columns: {shown}.",
        base64.b64encode(grid.read_bytes()).decode("ascii"),
    )  # fmt: skip
    return Section("grid", "Pictures", (made, Text(f"{words} All rows begin with the same noise.", "note")))


def _training(data: Mapping[str, Any]) -> Section:
    history = data["training"]["history"]
    columns = ("step", "score", "features", "old", "variance", "loss")
    names = tuple(c for c in columns if any(c in line for line in history) and (c != "old" or data["old"]))
    rows = tuple(tuple(f"{line[c]:.0f}" if c == "step" else exact(line.get(c)) for c in names) for line in history)
    blocks: list[Block] = [
        Text(f"{data['pictures']:,} pictures, {data['training']['seconds']:.0f} s."),
        Table("Mean losses since the row before", names, rows, words=0),
    ]
    return Section("training", "The training", tuple(blocks))
