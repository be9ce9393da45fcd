"""The winner's parameters where they stand in the model: over layers, modules and sources."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

from evomerge.errors import SpaceError
from evomerge.report.page.blocks import Block, Section, Table, Text, exact, limited
from evomerge.report.page.svg import GRID, INK, MUTED, NARROW, WIDE, label, picture
from evomerge.report.table import number
from evomerge.score import Value
from evomerge.space import SpaceConfig
from evomerge.study.record import Record

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

    from evomerge.space.space import Gene, Space

# Points of a panel's parts: a module's column, a row, the room for the names of rows, of columns.
COLUMN, ROW, NAMES, HEAD, BAR = 44.0, 17.0, 74.0, 46.0, 52.0
TALLEST = 620.0
# What lies beside the layers.
EDGES = ("embeddings", "head")
# Cells of a picture from which no number stands in them.
CROWDED = 72


@dataclass(frozen=True)
class Field:
    """One parameter of the method over the model.

    Attributes:
        rows: Names of the places along depth, the input first; embeddings and head are places of their own.
        parts: Names of the modules.
        panels: Of each source (or "all sources"), the value of each (row, part).
        low, high: The bounds that were searched.
    """

    name: str
    rows: tuple[str, ...]
    parts: tuple[str, ...]
    panels: Mapping[str, Mapping[tuple[str, str], float]]
    low: float
    high: float

    def values(self) -> Iterator[tuple[str, str, str, float]]:
        """Source, place along depth, module and value, each number once: embeddings and head have no modules."""
        for source, cells in self.panels.items():
            for (row, part), value in cells.items():
                edge = row in EDGES
                if not (edge and part != self.parts[0]):
                    yield source, row, "all" if edge or not part else part, value


def coefficients(record: Record) -> Section | None:
    """The section; None where no candidate is complete."""
    best = record.best
    if best is None:
        return None
    title = "The winner's parameters" if record.won else "Parameters of the best so far"
    blocks: list[Block] = []
    fields, single = fields_of(record)
    if fields:
        blocks.append(
            Text(
                "Each cell is one searched value: where in the model (the input at the bottom, the output on top), in "
                "which module, for which source. The colours run over what was allowed."
            )
        )
    blocks += [_picture(i, f) for i, f in enumerate(fields)]
    if record.path is not None:
        blocks.append(Text("These are the optimizer's own numbers, which the path above is made of."))
    if single:
        made, note = limited([(n, _value(v)) for n, v in single.items()], "parameters")
        caption = "Other parameters" if fields else "Parameters"
        blocks.append(
            Table(caption, ("parameter", "value"), made, note=note, folded=len(made) > 20 or record.path is not None)
        )
    if not blocks:
        blocks.append(Text("There is nothing to choose in this space: it has no parameters."))
    return Section("parameters", title, tuple(blocks))


def _value(value: Value) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def fields_of(record: Record) -> tuple[list[Field], dict[str, Value]]:
    """The best candidate's parameters that lie over the model, and those that do not."""
    assert record.best is not None
    params: dict[str, Value] = dict(record.best.params)
    if not isinstance(record.config, SpaceConfig) or not isinstance(record.num_layers, int):
        return [], params
    from evomerge.space.space import Space

    try:
        space = record.config.bind(record.num_layers)
        assert isinstance(space, Space)
        method = space.method_of(params)
    except (SpaceError, KeyError):  # a space of a version before
        return [], params
    found = []
    for gene in space.genes.values():
        if not method.parameter(gene.parameter):  # the method that was chosen does not take it: it changes nothing
            for name in [n for n in params if n == gene.parameter or n.startswith(f"{gene.parameter}.")]:
                params.pop(name)
            continue
        if gene.axes:
            field = _field(space, gene, params)
            if field is not None:
                found.append(field)
    return found, params


def _field(space: Space, gene: Gene, params: dict[str, Value]) -> Field | None:
    """A parameter's values, which are taken out of `params`."""
    grid, bounds = space.grid, gene.range
    sources = space.names if "source" in gene.axes else ("all sources",)
    groups = range(len(grid.groups))
    parts = grid.parts if "modules" in gene.axes and grid.modules else ("",)
    edge = [p for p in grid.positions(gene.axes) if p in EDGES]
    rows = [*(e for e in edge if e == "embeddings"), *(_label(space, g, params, gene) for g in groups)]
    rows += [e for e in edge if e == "head"]
    rows = list(dict.fromkeys(rows))
    panels: dict[str, dict[tuple[str, str], float]] = {}
    taken: set[str] = set()
    for source in sources:
        cells = panels.setdefault(source, {})
        for part in parts:
            for g in groups:
                name = gene.name(source, grid.position(gene.axes, g, part or grid.parts[0]))
                if name in params:
                    cells[_label(space, g, params, gene), part] = float(params[name])
                    taken.add(name)
            for e in edge:
                name = gene.name(source, e)
                if name in params:
                    cells[e, part] = float(params[name])
                    taken.add(name)
    for name in taken:
        params.pop(name)
    if not any(panels.values()):
        return None
    assert bounds.low is not None and bounds.high is not None
    return Field(gene.parameter, tuple(rows), tuple(parts), panels, bounds.low, bounds.high)


def _label(space: Space, group: int, params: Mapping[str, Value], gene: Gene) -> str:
    """What a layer group is called; of one whose ends are searched, with its layers."""
    if "layers" not in gene.axes or len(space.grid.groups) == 1:
        return "layers" if space.grid.edges != "layers" else "all"
    cut = space.grid.groups[group]
    points = sorted(int(v) for n, v in params.items() if n.startswith("split."))
    if points and len(points) == len(space.grid.groups) - 1:
        edges = [0, *points, space.num_layers]
        first, end = edges[group], edges[group + 1]
        inside = f"layers {first}-{end - 1}" if end - first > 1 else f"layer {first}" if end > first else "no layer"
        return f"{group + 1}: {inside}"
    return cut.name.replace("_", " ")


def _picture(index: int, field: Field) -> Block:
    count = len(field.rows) * len(field.parts) * len(field.panels)
    table_rows = [(source, row, part, exact(v)) for source, row, part, v in field.values()]
    made, note = limited(table_rows, "values")
    table = Table(field.name, ("source", "where", "module", field.name), made, words=3, note=note)
    heights = tuple(_height(field, width) for width in (WIDE, NARROW))
    return picture(
        f"parameters-{index}",
        f"{field.name}, from {field.low:g} to {field.high:g}",
        _description(field),
        lambda figure, narrow: _draw(figure, NARROW if narrow else WIDE, field, count <= CROWDED),
        (table,),
        (heights[0], heights[1]),
    )


def _description(field: Field) -> str:
    words = []
    for source in field.panels:
        cells = {(row, part): value for of, row, part, value in field.values() if of == source}
        low, high = min(cells, key=lambda k: cells[k]), max(cells, key=lambda k: cells[k])
        mean = sum(cells.values()) / len(cells)
        words.append(
            f"{source}: mean {number(mean)}, least {number(cells[low])} at {_at(low)}, most {number(cells[high])} at "
            f"{_at(high)}."
        )
    return f"A heatmap of {field.name}. " + " ".join(words)


def _at(place: tuple[str, str]) -> str:
    row, part = place
    return row if part == "all" else f"{row} {part}"


def _layout(field: Field, width: float) -> tuple[int, int, float]:
    """Panels in a row, rows of panels, points of a panel's width."""
    room = width - NAMES - BAR
    wanted = max(COLUMN * len(field.parts), 70.0 if len(field.panels) > 1 else 110.0)
    beside = max(1, min(len(field.panels), int(room // (wanted + 10))))
    return beside, -(-len(field.panels) // beside), min(wanted, room / beside - 10)


def _height(field: Field, width: float) -> float:
    _, down, _ = _layout(field, width)
    row = min(ROW, max(TALLEST / (len(field.rows) * down), 5.0))
    return down * (HEAD + row * len(field.rows)) + 14.0


def _draw(figure: Figure, width: float, field: Field, numbered: bool) -> None:
    from matplotlib import colormaps
    from matplotlib.cm import ScalarMappable
    from matplotlib.colors import LinearSegmentedColormap, ListedColormap, Normalize

    diverging = field.low < 0 < field.high
    bound = max(abs(field.low), abs(field.high))
    norm = Normalize(-bound, bound) if diverging else Normalize(field.low, field.high)
    # Both are even to the eye and keep their order for colour-blind people; the bar is cut into as many steps.
    name = "PuOr_r" if diverging else "cividis"
    full = colormaps[name]
    steps = ListedColormap([full(k / 47) for k in range(48)], name="steps")
    assert isinstance(full, LinearSegmentedColormap | ListedColormap)
    beside, down, _ = _layout(field, width)
    grid = figure.subplots(down, beside, squeeze=False, sharex=True, sharey=True)
    panels = list(field.panels.items())
    for k, axes in enumerate(grid.flat):
        if k >= len(panels):
            axes.set_visible(False)
            continue
        _panel(axes, panels[k][0], panels[k][1], field, full, norm, numbered)
    bar = figure.colorbar(ScalarMappable(norm, steps), ax=list(grid.flat), fraction=0.05, aspect=26, pad=0.02)
    bar.outline.set_edgecolor(MUTED)
    bar.set_label(field.name)


def _panel(
    axes: Axes,
    source: str,
    cells: Mapping[tuple[str, str], float],
    field: Field,
    colours: object,
    norm: object,
    numbered: bool,
) -> None:
    from matplotlib.patches import Rectangle

    for y, row in enumerate(field.rows):
        edge = row in EDGES
        for x, part in enumerate(field.parts):
            value = cells.get((row, part))
            if value is None or (edge and x):
                continue
            colour = colours(norm(value))  # type: ignore[operator]
            wide = len(field.parts) if edge else 1  # embeddings and head have no modules
            axes.add_patch(Rectangle((x, y), wide, 1, facecolor=colour, edgecolor=GRID, linewidth=0.8))
            if numbered:
                light = 0.2126 * colour[0] + 0.7152 * colour[1] + 0.0722 * colour[2] > 0.45
                axes.text(
                    x + wide / 2,
                    y + 0.5,
                    f"{value:.2f}",
                    ha="center",
                    va="center",
                    fontsize=7.5,
                    color="#000000" if light else "#ffffff",
                )
    axes.set_xlim(0, len(field.parts))
    axes.set_ylim(0, len(field.rows))
    step = max(1, -(-len(field.rows) // 40))
    axes.set_yticks([y + 0.5 for y in range(0, len(field.rows), step)], field.rows[::step])
    if field.parts != ("",):
        turned = 90 if max(map(len, field.parts)) > 9 or len(field.parts) > 4 else 0
        axes.set_xticks(
            [x + 0.5 for x in range(len(field.parts))], [label(p, 16) for p in field.parts], rotation=turned
        )
    else:
        axes.set_xticks([])
    axes.tick_params(length=0)
    axes.set_title(label(source, 16), fontsize="medium", color=INK)
    for spine in axes.spines.values():
        spine.set_visible(False)
