"""Pages in a real browser: Debian's own Chromium, driven by Playwright; what their tests share."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

# Whoever imports this is skipped without it.
sync_api = pytest.importorskip("playwright.sync_api", reason="needs Playwright: pip install playwright")
# Playwright's download of browsers is neither needed nor wanted.
CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
MARKS = [
    pytest.mark.slow,
    pytest.mark.timeout(600),
    pytest.mark.skipif(CHROMIUM is None, reason="needs Chromium: apt-get install chromium"),
    pytest.mark.xdist_group("browser"),
]
# A phone and a desk, in pixels.
WIDTHS = (390, 1440)
# What sticks out of the page to the left or right, and is in no box that scrolls by itself.
CUT_OFF = """() => [...document.querySelectorAll('body *')].filter(e => {
  if (e.closest('.scroll, pre, .skip, .hidden') && !e.matches('.scroll, pre')) return false;
  if (e.closest('svg') && !e.matches('svg')) return false;
  const box = e.getBoundingClientRect();
  return box.width && (box.right > document.documentElement.clientWidth + 1 || box.left < -1);
}).map(e => e.tagName + '.' + e.className)"""


@contextmanager
def chromium() -> Iterator[Any]:
    """A browser."""
    with sync_api.sync_playwright() as playwright:
        # Chromium will not run as root inside its own sandbox; what it opens here is our own page.
        arguments = ["--no-sandbox"] if os.geteuid() == 0 else []
        opened = playwright.chromium.launch(executable_path=CHROMIUM, args=arguments)
        yield opened
        opened.close()


@contextmanager
def watched(browser: Any, ours: str | tuple[str, ...], silent: bool = False) -> Iterator[Callable[..., Any]]:
    """What opens an address in a page of some height; at the end none of them may have had any trouble.

    Trouble is what goes to the console as an error, what is not found, and what comes from somewhere else.

    Args:
        ours: How addresses begin that a page may ask for.
        silent: Whether anything in the console is trouble.
    """
    pages = []

    def show(address: str, width: int, height: int, **options: Any) -> Any:
        page = browser.new_page(viewport={"width": width, "height": height}, **options)
        page.trouble = []
        page.on("console", lambda m: page.trouble.append(m.text) if silent or m.type == "error" else None)
        page.on("pageerror", lambda e: page.trouble.append(str(e)))
        page.on("response", lambda r: page.trouble.append(f"{r.status} {r.url}") if r.status >= 400 else None)
        page.on("request", lambda r: page.trouble.append(r.url) if not r.url.startswith(ours) else None)
        page.goto(address)
        pages.append(page)
        return page

    yield show
    for page in pages:
        assert page.trouble == []
        page.close()


def keep(page: Any, name: str) -> None:
    """A picture of the page, in the folder that EVOMERGE_SCREENSHOTS names."""
    folder = os.environ.get("EVOMERGE_SCREENSHOTS")
    if folder:
        Path(folder).mkdir(parents=True, exist_ok=True)
        page.screenshot(path=Path(folder) / f"{name}.png", full_page=True)
