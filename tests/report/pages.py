"""A report as its reader's browser takes it apart: elements, ids, text."""

from __future__ import annotations

from dataclasses import dataclass, field
from html.parser import HTMLParser

VOID = {"meta", "link", "img", "br", "hr", "input"}


@dataclass
class Element:
    """One element with all that is in it."""

    tag: str
    attributes: dict[str, str]
    children: list[Element | str] = field(default_factory=list)

    @property
    def text(self) -> str:
        """All text in it, spaces evened."""
        parts = [c if isinstance(c, str) else c.text for c in self.children]
        return " ".join(" ".join(parts).split())

    def all(self, tag: str) -> list[Element]:
        """Every element of that kind in it, in order."""
        found = []
        for child in self.children:
            if isinstance(child, Element):
                found += [child] if child.tag == tag else []
                found += child.all(tag)
        return found

    def every(self) -> list[Element]:
        """Every element in it."""
        inside = [c for c in self.children if isinstance(c, Element)]
        return [e for c in inside for e in (c, *c.every())]

    def section(self, id_: str) -> Element:
        """The section whose heading has that id."""
        (found,) = [s for s in self.all("section") if s.attributes.get("aria-labelledby") == id_]
        return found

    def table(self, caption: str) -> list[list[str]]:
        """Rows of the table of that caption, its header first."""
        (found,) = [t for t in self.all("table") if t.all("caption")[0].text == caption]
        return [[c.text for c in row.children if isinstance(c, Element)] for row in found.all("tr")]


class _Builder(HTMLParser):
    def __init__(self) -> None:
        super().__init__()
        self.root = Element("root", {})
        self.open = [self.root]

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        made = Element(tag, {k: v or "" for k, v in attrs})
        self.open[-1].children.append(made)
        if tag not in VOID:
            self.open.append(made)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.open[-1].children.append(Element(tag, {k: v or "" for k, v in attrs}))

    def handle_endtag(self, tag: str) -> None:
        if tag in VOID:
            return
        assert self.open[-1].tag == tag, f"</{tag}> closes <{self.open[-1].tag}>"
        self.open.pop()

    def handle_data(self, data: str) -> None:
        self.open[-1].children.append(data)


def parse(text: str) -> Element:
    """The page; what is not closed in order fails."""
    builder = _Builder()
    builder.feed(text)
    builder.close()
    assert len(builder.open) == 1, [e.tag for e in builder.open]
    return builder.root


def check_page(text: str) -> Element:
    """What every report must be: one file that needs nothing, with a table behind every picture."""
    root = parse(text)
    assert text.startswith("<!DOCTYPE html>") and root.all("html")[0].attributes["lang"] == "en"
    for element in root.every():
        assert element.tag not in ("script", "link", "img", "iframe", "object", "embed", "base", "form"), element.tag
        for name, value in element.attributes.items():
            assert not name.startswith("on"), (element.tag, name)
            if name in ("src", "href", "xlink:href", "action", "srcset", "data"):
                assert value.startswith("#"), (element.tag, name, value)
            assert "url(" not in value or "url(#" in value, value
    style = root.all("style")[0].text
    assert "url(" not in style and "@import" not in style and "http" not in style
    policy = next(m for m in root.all("meta") if m.attributes.get("http-equiv") == "Content-Security-Policy")
    assert policy.attributes["content"].startswith("default-src 'none'")
    ids = [e.attributes["id"] for e in root.every() if "id" in e.attributes]
    assert len(ids) == len(set(ids)), sorted(i for i in set(ids) if ids.count(i) > 1)
    referred = [v[1:] for e in root.every() for n, v in e.attributes.items() if n == "href"]
    assert set(referred) <= set(ids), set(referred) - set(ids)
    figures = root.all("figure")
    assert len(root.all("svg")) == 2 * len(figures)
    for figure in figures:
        assert figure.all("details")[0].all("td"), "a picture without its numbers"
        for svg in figure.all("svg"):
            assert svg.attributes["role"] == "img" and svg.all("title")[0].text and svg.all("desc")[0].text
            named = {svg.all("title")[0].attributes["id"], svg.all("desc")[0].attributes["id"]}
            assert set(svg.attributes["aria-labelledby"].split()) == named
            assert svg.all("text"), "letters are no text"
    contents = [a.attributes["href"][1:] for a in root.all("nav")[0].all("a")]
    assert contents == [h.attributes["id"] for h in root.all("main")[0].all("h2")]
    assert len(root.all("h1")) == 1 and root.all("a")[0].attributes == {"class": "skip", "href": "#content"}
    return root
