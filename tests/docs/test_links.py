"""Links of the Markdown files as they stand in the repository, where GitHub shows them: files and anchors."""

from __future__ import annotations

import re
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path

import pytest
from _generate.pages import generated
from markdown_it import MarkdownIt

ROOT = Path(__file__).parents[2]
FILES = [*sorted(ROOT.glob("*.md")), *sorted((ROOT / "docs").rglob("*.md"))]
# Pages that are made when the site is built, so that nothing lies in docs/ (tests/docs/test_site.py has their links).
MADE = {ROOT / "docs" / name for name in generated()}


def links(path: Path) -> Iterator[str]:
    """What a file links to, pictures included."""
    for block in MarkdownIt("commonmark").enable("table").parse(path.read_text(encoding="utf-8")):
        for token in block.children or ():
            target = token.attrGet("href") if token.type == "link_open" else token.attrGet("src")
            if token.type in ("link_open", "image") and target:
                yield str(target)


def anchors(path: Path) -> set[str]:
    """The anchors of a file's headings, as GitHub makes them."""
    found: dict[str, int] = {}
    out: set[str] = set()
    blocks = MarkdownIt("commonmark").enable("table").parse(path.read_text(encoding="utf-8"))
    for opening, inline in pairwise(blocks):
        if opening.type == "heading_open":
            words = "".join(t.content for t in inline.children or () if t.type in ("text", "code_inline"))
            slug = re.sub(r"[^\w\- ]", "", words.lower()).replace(" ", "-")
            out.add(slug if slug not in found else f"{slug}-{found[slug]}")
            found[slug] = found.get(slug, 0) + 1
    return out


@pytest.mark.parametrize("path", FILES, ids=lambda p: str(p.relative_to(ROOT)))
def test_links_lead_somewhere(path: Path) -> None:
    for link in links(path):
        if re.match(r"[a-z]+:", link):
            assert link.startswith("https://"), f"{path.name}: {link}: expected https"
            continue
        file, _, anchor = link.partition("#")
        target = (path.parent / file).resolve() if file else path
        if target in MADE and not target.is_file():
            continue
        assert target.exists(), f"{path.name}: {link}: no such file"
        assert target.is_relative_to(ROOT), f"{path.name}: {link} leads out of the repository"
        if anchor:
            assert anchor in anchors(target), f"{path.name}: {link}: no such heading"


def test_the_checker_sees_what_is_wrong(tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    page.write_text("# One `two`: three\n\n[a](other.md#x) ![b](c.png)\n\n| [d](e.md) |\n|---|\n\n## One two three\n")
    assert list(links(page)) == ["other.md#x", "c.png", "e.md"]
    assert anchors(page) == {"one-two-three", "one-two-three-1"}
