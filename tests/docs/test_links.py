"""Links of the Markdown files as they stand in the repository, where GitHub shows them: files and anchors.

Links to other sites are only looked at; `make links` fetches them too.
"""

from __future__ import annotations

import http.client
import http.server
import os
import re
import socket
import threading
import urllib.error
import urllib.request
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


def gone(url: str) -> str | None:
    """Why a page is not there; None: it is, or its site will not tell (a login, too many questions, its own fault)."""
    asked = urllib.request.Request(url.partition("#")[0], headers={"User-Agent": "Mozilla/5.0 (evomerge: make links)"})
    try:
        with urllib.request.urlopen(asked, timeout=30):
            return None
    except urllib.error.HTTPError as e:
        return f"{e.code} {e.reason}" if e.code in (400, 404, 410) else None
    except (OSError, http.client.HTTPException) as e:
        return str(e)


@pytest.mark.skipif("EVOMERGE_LINKS" not in os.environ, reason="asks other sites: make links")
@pytest.mark.timeout(1800)
def test_other_sites_have_what_is_linked() -> None:
    try:
        socket.create_connection(("github.com", 443), timeout=10).close()
    except OSError as e:
        pytest.skip(f"no network here: {e}")
    found = {link for path in FILES for link in links(path) if link.startswith("https://")}
    assert len(found) > 20
    assert {url: why for url in sorted(found) if (why := gone(url)) is not None} == {}


def test_a_page_that_is_gone_is_told_from_one_that_is_shy(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("no_proxy", "127.0.0.1")

    class Site(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(int(self.path[1:]))
            self.end_headers()

        def log_message(self, *_: object) -> None: ...

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Site) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        at = f"http://127.0.0.1:{server.server_port}"
        told = {code: gone(f"{at}/{code}#part") for code in (200, 403, 404, 410, 429, 500)}
        server.shutdown()
    assert told == {200: None, 403: None, 404: "404 Not Found", 410: "410 Gone", 429: None, 500: None}
    assert "refused" in str(gone(f"{at}/200"))


def test_the_checker_sees_what_is_wrong(tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    page.write_text("# One `two`: three\n\n[a](other.md#x) ![b](c.png)\n\n| [d](e.md) |\n|---|\n\n## One two three\n")
    assert list(links(page)) == ["other.md#x", "c.png", "e.md"]
    assert anchors(page) == {"one-two-three", "one-two-three-1"}
