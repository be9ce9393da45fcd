"""Matplotlib's pictures as SVG that may stand in a page: text as text, colours by its scheme, ids of their own."""

from __future__ import annotations

import io
import re
import warnings
from collections.abc import Callable
from typing import TYPE_CHECKING, Any
from xml.etree import ElementTree

from markupsafe import Markup

from evomerge.report.page.blocks import Picture, Table

if TYPE_CHECKING:
    from matplotlib.figure import Figure

# Colours that follow the page's scheme, light or dark, stand in a picture as values that nothing else has.
INK, MUTED, GRID, PAPER = "#010203", "#010204", "#010205", "#010206"
# Okabe and Ito's colours, which people with any colour vision tell apart. What they stand for has another mark or
# dash too. Each has a variable of the page, for a dark ground needs lighter ones.
BLUE, ORANGE, GREEN, PURPLE, RED, SKY = "#0072b2", "#e69f00", "#009e73", "#cc79a7", "#d55e00", "#56b4e9"
_COLOURS = (GREEN, PURPLE, RED, SKY)
_MARKERS = ("s", "^", "D", "v", "P", "X", "<", ">")
_DASHES = ((0, (5, 2)), (0, (1, 1)), (0, (3, 1)), (0, (4, 1, 1, 1, 1, 1)), (0, (8, 3)))
# What stands for the base, the uniform merge, the winner: colour, mark, dash.
_ROLES = {
    "base": (MUTED, "o", (0, (1, 1.5))),
    "uniform": (BLUE, "h", (0, (6, 2, 1, 2))),
    "best": (ORANGE, "*", "-"),
}
_VARIABLES = {
    INK: "ink",
    MUTED: "muted",
    GRID: "grid",
    PAPER: "paper",
    BLUE: "blue",
    ORANGE: "orange",
    GREEN: "green",
    PURPLE: "purple",
    RED: "red",
    SKY: "sky",
}
_SVG, _XLINK = "http://www.w3.org/2000/svg", "{http://www.w3.org/1999/xlink}href"
# Points of the two sizes, and what text they have: a picture is shown as wide as the page, so that the narrow one on a
# telephone has letters of about 11 px, as the wide one has on a desk.
WIDE, NARROW = 620.0, 285.0
FONT = {True: 8.6, False: 9.0}
_POINTS = 72.0


def look(role: str, place: int) -> tuple[str, str, Any]:
    """Colour, mark and dash of a model, the same in every picture.

    Args:
        role: As in `Measured`.
        place: Among those that have its role.
    """
    if role in _ROLES:
        return _ROLES[role]
    place += 4 if role == "control" else 0
    return _COLOURS[place % len(_COLOURS)], _MARKERS[place % len(_MARKERS)], _DASHES[place % len(_DASHES)]


def label(name: str, longest: int = 22) -> str:
    """A name in a picture: short, in one line, and without what XML cannot hold or a legend leaves out."""
    clean = re.sub(r"[\x00-\x1f\x7f-\x9f\ud800-\udfff\ufffe\uffff]+", " ", name).strip()
    clean = clean if len(clean) <= longest else f"{clean[: longest - 1]}…"
    return f"\u200b{clean}" if clean.startswith("_") else clean


Draw = Callable[["Figure", bool], None]


def picture(
    id_: str,
    title: str,
    description: str,
    draw: Draw,
    tables: tuple[Table, ...],
    heights: tuple[float, float] = (300, 300),
) -> Picture:
    """Draw a picture in both sizes.

    Args:
        id_: Unlike every other picture's of the page.
        draw: Draws into an empty figure; told whether it is the narrow one.
        tables: All numbers of the picture.
        heights: In points: of the wide, and of the narrow one.
    """
    made = [
        _svg(f"{id_}-{size}", title, description, draw, width, height, size == "narrow")
        for size, width, height in (("wide", WIDE, heights[0]), ("narrow", NARROW, heights[1]))
    ]
    return Picture(id_, title, description, made[0], made[1], tables)


def _svg(id_: str, title: str, description: str, draw: Draw, width: float, height: float, narrow: bool) -> Markup:
    from matplotlib import rc_context
    from matplotlib.backends.backend_svg import FigureCanvasSVG
    from matplotlib.figure import Figure

    settings: dict[Any, Any] = {
        "svg.fonttype": "none",
        "svg.hashsalt": id_,
        "font.family": "sans-serif",
        "font.size": FONT[narrow],
        "axes.edgecolor": MUTED,
        "axes.labelcolor": INK,
        "text.color": INK,
        "xtick.color": MUTED,
        "ytick.color": MUTED,
        "xtick.labelcolor": INK,
        "ytick.labelcolor": INK,
        "grid.color": GRID,
        "grid.linewidth": 0.7,
        "axes.facecolor": "none",
        "figure.facecolor": "none",
        "savefig.facecolor": "none",
        "legend.frameon": False,
        "axes.spines.top": False,
        "axes.spines.right": False,
        "axes.axisbelow": True,
        "axes.linewidth": 0.8,
        "legend.fontsize": FONT[narrow],
        "hatch.linewidth": 0.6,
        "text.parse_math": False,  # a dollar in a name is a dollar
    }
    with rc_context(settings), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of letters that matplotlib's font lacks; the reader's browser has its own
        figure = Figure(figsize=(width / _POINTS, height / _POINTS), layout="constrained")
        FigureCanvasSVG(figure)
        draw(figure, narrow)
        out = io.StringIO()
        figure.savefig(out, format="svg", dpi=_POINTS, metadata={"Date": None, "Creator": None})
    return Markup(_inlined(out.getvalue(), id_, title, description))  # our own drawing; its texts are escaped as XML


def _inlined(text: str, id_: str, title: str, description: str) -> str:
    """An SVG file as an element of a page."""
    ElementTree.register_namespace("", _SVG)
    root = ElementTree.fromstring(text)
    for parent in list(root.iter()):
        for child in list(parent):
            # Matplotlib's style sheet is a rule for `*`, which would hold for the page: the page has it for pictures.
            if child.tag in (f"{{{_SVG}}}metadata", f"{{{_SVG}}}style"):
                parent.remove(child)
    used: set[str] = set()
    for element in root.iter():
        if _XLINK in element.attrib:
            element.set("href", element.attrib.pop(_XLINK))
        found = [m for value in element.attrib.values() for m in re.findall(r"^#(.+)$|url\(#(.+?)\)", value)]
        used |= {name for pair in found for name in pair if name}
    for element in root.iter():
        _own(element, used, id_)
    _share_styles(root)
    for key in ("width", "height", "version"):
        root.attrib.pop(key, None)
    root.attrib |= {"role": "img", "aria-labelledby": f"{id_}-title {id_}-desc", "focusable": "false"}
    for tag, words in (("desc", description), ("title", title)):
        element = ElementTree.Element(f"{{{_SVG}}}{tag}", {"id": f"{id_}-{tag}"})
        element.text = words
        root.insert(0, element)
    out = ElementTree.tostring(root, encoding="unicode")
    for colour, name in _VARIABLES.items():
        out = out.replace(f": {colour}", f": var(--{name})")
    return re.sub(r">\s+<", "><", out)


def _own(element: ElementTree.Element, used: set[str], id_: str) -> None:
    """Ids that are referred to get the picture's name in front, the others go; numbers lose what no eye can see."""
    for key, value in list(element.attrib.items()):
        if key == "id":
            if value in used:
                element.set(key, f"{id_}-{value}")
            else:
                del element.attrib[key]
        elif key in ("href", "clip-path") or "url(#" in value:
            element.set(key, re.sub(r"^#|(?<=url\()#", f"#{id_}-", value))
        elif key in ("d", "x", "y", "points", "transform"):
            element.set(key, re.sub(r"(\d+\.\d\d)\d+", r"\1", value).strip())
        elif key == "style":
            element.set(key, re.sub(r"font: ([^;]*?px) [^;]*", r"font: \1 system-ui, sans-serif", value))


def _share_styles(root: ElementTree.Element) -> None:
    """A thousand equal marks say once, and not a thousand times, how they look."""
    for group in root.iter(f"{{{_SVG}}}g"):
        marks = [child for child in group if child.tag == f"{{{_SVG}}}use"]
        styles = {child.get("style") for child in marks}
        alike = len(styles) == 1 and None not in styles and len(marks) == len(group) > 1
        if alike and "style" not in group.attrib:
            group.set("style", str(marks[0].get("style")))
            for child in marks:
                del child.attrib["style"]
