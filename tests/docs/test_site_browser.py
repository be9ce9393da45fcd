"""The site in a real browser, opened as files without a server: nothing cut off, nothing fetched, search and equations.

With EVOMERGE_SCREENSHOTS=FOLDER each page is left there as PNG.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from _generate.pages import DOCS, ROOT, stage

from tests.browser import MARKS, WIDTHS, chromium

pytestmark = MARKS
PAGES = (
    "index", "guides/two-fine-tunes", "how-it-works", "results", "methods", "reference/space", "reference/commands",
    "troubleshooting", "decisions",
)  # fmt: skip
# What sticks out of the page's text, and is in no box that scrolls by itself. Menus that are closed lie outside.
CUT_OFF = """() => [...document.querySelectorAll('.md-header *, article, article *')].filter(e => {
  if (e.closest('.md-typeset__scrollwrap, pre, math, svg, [hidden], .md-search, .md-clipboard')) return false;
  const box = e.getBoundingClientRect(), style = getComputedStyle(e);
  if (!box.width || style.visibility == 'hidden' || style.position == 'absolute') return false;
  return box.right > document.documentElement.clientWidth + 1 || box.left < -1;
}).map(e => e.tagName + '.' + e.className + ': ' + e.textContent.slice(0, 50))"""
# Boxes that are wider inside than outside, and do not scroll.
STUCK = """() => [...document.querySelectorAll('article :is(table, pre > code, math[display=block])')].filter(e => {
  let box = e;
  while (box && box.tagName != 'ARTICLE') {
    const scrolls = ['auto', 'scroll'].includes(getComputedStyle(box).overflowX);
    if (scrolls && box.scrollWidth > box.clientWidth + 1) return false;
    box = box.parentElement;
  }
  return e.getBoundingClientRect().right > document.documentElement.clientWidth + 1;
}).map(e => e.tagName + ': ' + e.textContent.slice(0, 50))"""


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("site")
    shutil.copyfile(ROOT / "mkdocs.yml", folder / "mkdocs.yml")
    stage(folder / "build" / "pages")
    env = {**os.environ, "PYTHONPATH": f"{DOCS}{os.pathsep}{ROOT}"}
    subprocess.run([sys.executable, "-m", "zensical", "build", "--strict"], cwd=folder, env=env, check=True)
    return folder / "build" / "site"


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    with chromium() as opened:
        yield opened


@pytest.fixture
def opened(browser: Any, site: Path) -> Iterator[Any]:
    """Opens a page; what went over the network or to the console is its `trouble`."""
    pages = []

    def show(name: str, width: int, scheme: str = "light") -> Any:
        page = browser.new_page(viewport={"width": width, "height": 900}, color_scheme=scheme)
        page.trouble = []
        page.on("console", lambda message: page.trouble.append(message.text))
        page.on("pageerror", lambda error: page.trouble.append(str(error)))
        page.on("request", lambda asked: page.trouble.append(asked.url) if asked.url.startswith("http") else None)
        page.goto((site / f"{name}.html").as_uri())
        pages.append(page)
        return page

    yield show
    for page in pages:
        page.close()


@pytest.mark.parametrize("width", WIDTHS)
@pytest.mark.parametrize("name", PAGES)
def test_a_page_is_whole(opened: Any, name: str, width: int) -> None:
    page = opened(name, width)
    page.wait_for_selector("article h1")
    if folder := os.environ.get("EVOMERGE_SCREENSHOTS"):
        page.screenshot(path=Path(folder) / f"{name.replace('/', '-')}-{width}.png")
    assert page.trouble == []
    assert page.evaluate("document.documentElement.scrollWidth <= window.innerWidth")
    assert page.evaluate(CUT_OFF) == []
    assert page.evaluate(STUCK) == []
    broken = "[...document.images].filter(i => i.complete && !i.naturalWidth).map(i => i.src)"
    assert page.evaluate(broken) == []


@pytest.mark.parametrize("width", WIDTHS)
@pytest.mark.parametrize(
    ("words", "title"),
    [("gpus-per-worker", "Workers, GPUs and clusters"), ("greedy_likelihood", "tasks: (each entry)"),
     ("is a git-lfs pointer", "Models: files and downloads")],
)  # fmt: skip
def test_search_finds_an_option_a_key_and_a_message(opened: Any, words: str, title: str, width: int) -> None:
    """From files, without a server: the index comes as a script."""
    page = opened("index", width)
    page.keyboard.press("/")
    page.keyboard.type(words)
    page.get_by_text(re.compile(r"^\d+ results?$")).wait_for(timeout=20_000)
    if folder := os.environ.get("EVOMERGE_SCREENSHOTS"):
        page.screenshot(path=Path(folder) / f"search-{words.replace(' ', '-')}-{width}.png")
    page.get_by_text(title).filter(visible=True).first.wait_for(timeout=5_000)
    assert page.trouble == []


def test_equations_are_drawn(opened: Any) -> None:
    page = opened("how-it-works", 1440)
    sizes = page.evaluate(
        "[...document.querySelectorAll('math[display=block]')].map(m => [m.clientWidth, m.scrollHeight,"
        " m.querySelectorAll('mfrac, msub, munder, munderover, mo').length])"
    )
    assert len(sizes) >= 25 and all(w > 100 and h > 15 and parts for w, h, parts in sizes)
    # A fraction is two lines high: MathML is laid out, not shown as a row of letters.
    fraction = page.locator("math[display=block] mfrac").first.bounding_box()
    letter = page.locator("math[display=block] mi").first.bounding_box()
    assert fraction["height"] > 1.5 * letter["height"]


def test_dark_colours_are_dark(opened: Any) -> None:
    page = opened("index", 1440, scheme="dark")
    colour = page.evaluate("getComputedStyle(document.body).backgroundColor")
    light = [float(x) for x in colour.strip("rgba()").split(",")[:3]] if colour.startswith("rgb") else None
    assert light is None or sum(light) < 3 * 90, colour
    if folder := os.environ.get("EVOMERGE_SCREENSHOTS"):
        page.screenshot(path=Path(folder) / "index-dark.png")
