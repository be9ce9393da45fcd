"""A path of data-flow space, in words and as a picture: which layer of which source follows which."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path as File
from typing import TYPE_CHECKING

from evomerge.recipe import Path

if TYPE_CHECKING:
    from matplotlib.axes import Axes

DPI = 120
HEIGHT_INCHES = 5.0
# Width by the number of hops, in inches: each needs room for its scale.
WIDTH_INCHES, HOP_INCHES, MOST_INCHES = 5.0, 0.16, 40.0
CROWDED = 24  # hops from which scales are written upwards and small
# Okabe and Ito's colours, which people with any colour vision tell apart; the shape of the mark differs too.
COLOURS = ("#0072B2", "#E69F00", "#009E73", "#CC79A7", "#D55E00", "#56B4E9", "#000000")
MARKERS = ("o", "s", "^", "D", "v", "P", "X", "*")


def path_text(path: Path, names: Mapping[str, str]) -> str:
    """One line: `embeddings A > A 0-1 > B 2-3 x0.9 > head A`.

    Runs of consecutive layers are one step; x is what the residual stream is multiplied by where the step begins.

    Args:
        names: Short name of each model, by reference; those not in it are called by the last part of their reference.
    """
    steps: list[tuple[str, int, int, str]] = []  # model, first and last layer, scale
    for hop, scale in zip(path.hops, path.scales, strict=True):
        times = "" if f"{scale:.3g}" == "1" else f" x{scale:.3g}"
        if steps and not times and steps[-1][0] == hop.model and steps[-1][2] + 1 == hop.layer:
            model, first, _, before = steps[-1]
            steps[-1] = (model, first, hop.layer, before)
        else:
            steps.append((hop.model, hop.layer, hop.layer, times))
    words = [f"embeddings {short_name(path.embeddings, names)}"]
    for model, first, last, times in steps:
        words.append(f"{short_name(model, names)} {first}{'' if first == last else f'-{last}'}{times}")
    return " > ".join([*words, f"head {short_name(path.head, names)}"])


def short_name(reference: str, names: Mapping[str, str]) -> str:
    """What a model is called in words and pictures."""
    last = reference.rstrip("/").replace("\\", "/").rsplit("/", 1)[-1]
    return names.get(reference) or last.removeprefix("zoo:") or reference


def write_path_png(path: Path, names: Mapping[str, str], num_layers: Mapping[str, int], file: File) -> None:
    """Draw a path as a PNG.

    From left to right the layers of the path, each at the height of its layer in its source, coloured by source, with
    the input scale where it is not 1; below all layers the embeddings, above them the head.

    Args:
        names: Short name of each model, by reference (see `path_text`).
        num_layers: Number of layers of each model, by reference; default: as many as the path says there are.
        file: File to write; replaced when it exists.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg  # no pyplot: no global state, no display
    from matplotlib.figure import Figure

    count = len(path.hops)
    top = max([*(h.layer + 1 for h in path.hops), *(num_layers.get(m, 0) for m in path.models)])
    width = min(max(WIDTH_INCHES + HOP_INCHES * count, 7.0), MOST_INCHES)
    figure = Figure(figsize=(width, HEIGHT_INCHES), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    marks = list(places(path, top))
    axes.plot([x for _, x, _ in marks], [y for _, _, y in marks], "-", color="0.6", linewidth=1.2, zorder=1)
    size = 9.0 if count <= CROWDED else 5.5
    for i, model in enumerate(path.models):
        mine = [(x, y) for m, x, y in marks if m == model]
        marker, colour = MARKERS[i % len(MARKERS)], COLOURS[i % len(COLOURS)]
        axes.plot(*zip(*mine, strict=True), marker=marker, markersize=size, color=colour, linestyle="none",
                  label=short_name(model, names), zorder=2)  # fmt: skip
    _write_scales(axes, path, size)
    _name_axes(axes, count, top)
    figure.legend(loc="outside upper right", ncols=min(len(path.models), 4), fontsize="small", frameon=False)
    figure.savefig(file, dpi=DPI, format="png", metadata={"Software": "evomerge"})


def places(path: Path, top: int) -> Iterator[tuple[str, int, int]]:
    """Model and place (hop, layer) of each mark, embeddings and head included."""
    yield path.embeddings, -1, -1
    for x, hop in enumerate(path.hops):
        yield hop.model, x, hop.layer
    yield path.head, len(path.hops), top


def _write_scales(axes: Axes, path: Path, size: float) -> None:
    from matplotlib.patheffects import withStroke

    crowded = len(path.hops) > CROWDED
    for x, (hop, scale) in enumerate(zip(path.hops, path.scales, strict=True)):
        text = f"{scale:.2f}"
        if text != "1.00":
            axes.annotate(text, (x, hop.layer), (0, size / 2 + 3), textcoords="offset points", ha="center", va="bottom",
                          rotation=90 if crowded else 0, fontsize=6.5 if crowded else 9, zorder=3,
                          path_effects=[withStroke(linewidth=2.5, foreground="white")])  # fmt: skip


def _name_axes(axes: Axes, count: int, top: int) -> None:
    step = max(1, -(-top // 16))  # at most 16 layers are named
    layers = list(range(0, top, step))
    axes.set_yticks([-1, *layers, top], ["embeddings", *map(str, layers), "norm, head"])
    hops = range(0, count, max(1, -(-count // 25)))
    axes.set_xticks(list(hops), [str(x) for x in hops])
    axes.set_xlim(-1.6, count + 0.6)
    axes.set_ylim(-1.6, top + 0.6 + 0.03 * top)
    axes.set_xlabel("layer of the path (above a mark: what the residual stream is multiplied by there)")
    axes.set_ylabel("layer of its source")
    axes.grid(axis="y", color="0.92", linewidth=0.8)
    axes.set_axisbelow(True)
