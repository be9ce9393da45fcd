"""The dashboard of a study that a search has just made, in a real browser: every view, and what is ours in them.

With EVOMERGE_SCREENSHOTS=FOLDER each view is left there as PNG.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from types import SimpleNamespace
from typing import Any

import pytest

from evomerge.cli.dashboard_server import open_server
from evomerge.study.display import FOLDER
from tests.browser import MARKS, WIDTHS, chromium, keep, watched
from tests.faults import cheap

pytestmark = MARKS
# Every view of a study, and words that it shows.
VIEWS = {
    "": "Hyperparameter Importance",
    "/analytics": "Slice",
    "/trials": "Trial 0",
    "/note": "The winner: trial",
}
# What sticks out of the window and lies in no box that scrolls; inside pictures Plotly has its own ways.
CUT_OFF = """() => [...document.querySelectorAll('body *')].filter(e => {
  const scrolls = x => x && (/auto|scroll/.test(getComputedStyle(x).overflowX) || scrolls(x.parentElement));
  if (e.closest('svg, .js-plotly-plot') || scrolls(e.parentElement)) return false;
  const box = e.getBoundingClientRect();
  return box.width && (box.right > document.documentElement.clientWidth + 1 || box.left < -1);
}).map(e => e.tagName + '.' + e.className)"""
# Nothing comes from another machine.
OURS = ("http://127.0.0.1:", "data:", "blob:")


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    with chromium() as opened:
        yield opened


@pytest.fixture(scope="module")
def dashboard(here: Callable, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    """A raced study: its address, and its result."""
    folder = tmp_path_factory.mktemp("dashboard")
    file, out = cheap.evaluator(folder), folder / "out"
    done = here(*cheap.asked(file, out, 24, "--workers", 0, "--fidelity", "race", "--population", 6))
    with open_server(f"sqlite:///{out / 'study.db'}", "127.0.0.1", 0, [out / FOLDER]) as server:
        thread = threading.Thread(target=server.serve_forever, daemon=True)
        thread.start()
        root = f"http://127.0.0.1:{server.server_port}/dashboard"
        yield SimpleNamespace(root=root, study=f"{root}/studies/1", result=done.result)
        server.shutdown()
        thread.join()


@pytest.fixture
def opened(browser: Any) -> Iterator[Callable[[str, int], Any]]:
    """Opens an address; what goes to the console as an error fails the test, and so does what is not found."""
    with watched(browser, OURS) as show:
        yield lambda address, width: show(address, width, 1000)


def wait(page: Any, view: str) -> None:
    """Until a view has its data; before, its parts are there and empty."""
    ready = (
        "w => document.querySelector('header')?.innerText.includes('s (id=1)') && "
        "document.querySelector('main')?.innerText.includes(w)"
    )
    page.wait_for_function(ready, arg=VIEWS[view], timeout=60_000)
    page.wait_for_load_state("networkidle")


@pytest.mark.parametrize("width", WIDTHS)
@pytest.mark.parametrize("view", VIEWS, ids=lambda v: v.strip("/") or "study")
def test_a_view_is_whole(opened: Callable[[str, int], Any], dashboard: Any, view: str, width: int) -> None:
    """On a phone Optuna's own pages are wider than it, and scroll: the first one is 755 to 972 pixels wide."""
    page = opened(f"{dashboard.study}{view}", width)
    wait(page, view)
    keep(page, f"dashboard-{view.strip('/') or 'study'}-{width}")
    if width == WIDTHS[1]:
        across = page.evaluate("[document.documentElement.scrollWidth, document.documentElement.clientWidth]")
        assert across[0] <= across[1] == width
        assert page.evaluate(CUT_OFF) == []


@pytest.mark.parametrize("width", WIDTHS)
def test_the_note_shows_the_pictures(opened: Callable[[str, int], Any], dashboard: Any, width: int) -> None:
    """Whole: a phone scrolls to their right edge."""
    page = opened(f"{dashboard.study}/note", width)
    wait(page, "/note")
    assert f"The winner: trial {dashboard.result['best']['trial']}" in page.locator("main").inner_text()
    page.wait_for_function("document.images.length && [...document.images].every(i => i.complete)", timeout=60_000)
    pictures = page.evaluate(
        "[...document.images].map(i => [i.alt, i.naturalWidth, i.getBoundingClientRect().right + scrollX])"
    )
    across = page.evaluate("document.documentElement.scrollWidth")
    assert sorted(alt for alt, _, _ in pictures) == ["history.png", "recipe.png"]
    assert [p for p in pictures if p[1] <= 300 or p[2] > across + 1] == [], across


def test_clicks_lead_through_every_view(opened: Callable[[str, int], Any], dashboard: Any) -> None:
    """From the list of studies by its card, then by the links of the side."""
    page = opened(f"{dashboard.root}/", WIDTHS[1])
    for view in ["", *(v for v in VIEWS if v), ""]:
        page.locator(f'a[href$="/studies/1{view}"]').first.click(timeout=60_000)
        page.wait_for_url(f"{dashboard.study}{view}")
        wait(page, view)
