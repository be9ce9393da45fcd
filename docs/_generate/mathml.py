r"""`$...$` and `$$...$$` in a page as MathML, made when the site is built: nothing is loaded to show an equation.

A Markdown extension (see mkdocs.yml). GitHub shows the same spelling. Code keeps its dollars.
"""

from __future__ import annotations

from typing import Any
from xml.etree.ElementTree import Element, fromstring, tostring

from latex2mathml.converter import convert
from markdown import Extension, Markdown
from markdown.inlinepatterns import InlineProcessor

# Below code in backticks (190) and above backslash escapes (180) in Markdown's order.
PRIORITY = 185


class Equations(InlineProcessor):
    """One equation; the two spellings differ in where it stands."""

    def __init__(self, pattern: str, md: Markdown, display: str) -> None:
        super().__init__(pattern, md)
        self.display = display

    def handleMatch(self, m: Any, data: str) -> tuple[str, int, int]:  # type: ignore[override]
        """Put the equation's MathML in the place of its TeX."""
        tex = " ".join(m.group(1).split())
        return self.md.htmlStash.store(mathml(tex, self.display)), m.start(0), m.end(0)


def mathml(tex: str, display: str = "inline") -> str:
    """An equation as a `<math>` element that names its TeX for who copies it or cannot see it."""
    math = fromstring(convert(tex, display=display))
    math.set("alttext", tex)
    return tostring(_plain(math), encoding="unicode")


def _plain(element: Element) -> Element:
    """The same without XML namespaces: HTML has none."""
    for part in element.iter():
        part.tag = part.tag.rpartition("}")[2]
    return element


class MathExtension(Extension):
    """Registers both spellings."""

    def extendMarkdown(self, md: Markdown) -> None:
        """As Markdown asks its extensions."""
        md.inlinePatterns.register(Equations(r"(?<![\\$])\$\$(.+?)\$\$", md, "block"), "math-block", PRIORITY + 1)
        md.inlinePatterns.register(
            Equations(r"(?<![\\$\w])\$(?=[^\s$])([^$]*?[^\s$\\])\$(?![\w$])", md, "inline"), "math-inline", PRIORITY
        )


def makeExtension(**options: Any) -> MathExtension:
    """What Markdown calls."""
    return MathExtension(**options)
