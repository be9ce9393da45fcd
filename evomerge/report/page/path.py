"""The winner's path over layers, with the table of its hops."""

from __future__ import annotations

from typing import TYPE_CHECKING

from evomerge.recipe import Path
from evomerge.report.page.blocks import Block, Section, Table, Text, exact, limited
from evomerge.report.page.svg import BLUE, GREEN, GRID, INK, MUTED, ORANGE, PURPLE, RED, SKY, label, picture
from evomerge.report.path import MARKERS, path_text, places, short_name
from evomerge.study.record import Record

if TYPE_CHECKING:
    from matplotlib.figure import Figure

# Hops from which scales stand in the table alone: on a wide picture, and on a narrow one.
CROWDED, CROWDED_NARROW = 24, 10
COLOURS = (BLUE, ORANGE, GREEN, PURPLE, RED, SKY)


def path(record: Record) -> Section | None:
    """The section; None where the best is no path."""
    found = record.path
    if found is None:
        return None
    depth = max([*(h.layer + 1 for h in found.hops), *(record.depths.get(m, 0) for m in found.models), *_deep(record)])
    drawn = picture(
        "path-picture",
        "Which layer of which source follows which",
        path_text(found, record.names),
        lambda figure, narrow: _draw(figure, narrow, found, record, depth),
        (_hops(found, record),),
        (min(190.0 + 9.0 * depth, 420.0), min(210.0 + 9.0 * depth, 430.0)),
    )
    words = (
        "From left to right the layers as the residual stream passes them, each at the height of its layer in its "
        "source. A number beside a mark is what the residual stream is multiplied by there."
    )
    blocks: list[Block] = [Text(f"{path_text(found, record.names)}."), drawn, Text(words, "note")]
    if record.outcome is not None and record.outcome.layers is not None and record.outcome.layers[0]:
        asked, ran = record.outcome.layers
        blocks.append(
            Text(f"Layers evaluated in the whole search: {ran:,} of {asked:,}; {asked - ran:,} were known already.")
        )
    return Section("path", "Data-flow path", tuple(blocks))


def _deep(record: Record) -> list[int]:
    return list(record.num_layers.values()) if isinstance(record.num_layers, dict) else []


def _hops(found: Path, record: Record) -> Table:
    rows = [("embeddings", short_name(found.embeddings, record.names), "", "", "")]
    for k, (hop, scale) in enumerate(zip(found.hops, found.scales, strict=True)):
        rows.append((str(k), short_name(hop.model, record.names), str(hop.layer), exact(scale), exact(hop.factor)))
    rows.append(("norm, head", short_name(found.head, record.names), "", "", ""))
    made, note = limited(rows, "hops")
    return Table(
        "Hops", ("hop", "source", "its layer", "scale of the stream", "outputs times"), made, words=2, note=note
    )


def _draw(figure: Figure, narrow: bool, found: Path, record: Record, top: int) -> None:
    axes = figure.add_subplot()
    marks = list(places(found, top))
    count = len(found.hops)
    axes.plot([x for _, x, _ in marks], [y for _, _, y in marks], "-", color=MUTED, linewidth=1, zorder=1)
    size = (6.0 if count <= CROWDED else 4.0) if narrow else (8.0 if count <= 40 else 5.0)
    for i, model in enumerate(found.models):
        mine = [(x, y) for m, x, y in marks if m == model]
        axes.plot(
            *zip(*mine, strict=True),
            marker=MARKERS[i % len(MARKERS)],
            markersize=size,
            color=COLOURS[i % len(COLOURS)],
            markeredgecolor=INK,
            markeredgewidth=0.5,
            linestyle="none",
            label=label(short_name(model, record.names)),
            zorder=2,
        )
    if count <= (CROWDED_NARROW if narrow else CROWDED):
        for x, (hop, scale) in enumerate(zip(found.hops, found.scales, strict=True)):
            if f"{scale:.2f}" != "1.00":
                above = (0, size / 2 + 3)
                axes.annotate(
                    f"{scale:.2f}", (x, hop.layer), above, textcoords="offset points", ha="center", va="bottom"
                )
    step = max(1, -(-top // (12 if narrow else 16)))
    layers = list(range(0, top, step))
    axes.set_yticks([-1, *layers, top], ["embeddings", *map(str, layers), "norm, head"])
    hops = range(0, count, max(1, -(-count // (8 if narrow else 25))))
    axes.set_xticks(list(hops), [str(x) for x in hops])
    axes.set_xlim(-1.6, count + 0.6)
    axes.set_ylim(-1.6, top + 0.6 + 0.04 * top)
    axes.set_xlabel("layer of the path")
    axes.set_ylabel("layer of its source")
    axes.grid(axis="y", color=GRID)
    figure.legend(loc="outside upper left", ncols=2 if narrow else 4)
