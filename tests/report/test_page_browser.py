"""The report in a real browser: nothing cut off, nothing fetched, every part reached by the keyboard, printable.

With EVOMERGE_SCREENSHOTS=FOLDER each page is left there as PNG, as PDF too.
"""

from __future__ import annotations

import os
from pathlib import Path

import pytest
import yaml

from tests.browser import CUT_OFF, MARKS, WIDTHS, chromium, keep, watched
from tests.faults import cheap

pytestmark = MARKS
# Letters of pictures that lie outside of them, or are too small to read.
LETTERS = """() => [...document.querySelectorAll('svg')].filter(s => s.getBoundingClientRect().width).flatMap(s => {
  const all = s.getBoundingClientRect();
  return [...s.querySelectorAll('text')].map(t => [t.textContent, t.getBoundingClientRect(), t]).filter(([, b, t]) => {
    const size = parseFloat(getComputedStyle(t).fontSize) * all.width / s.viewBox.baseVal.width;
    const out = Math.max(all.left - b.left, b.right - all.right, all.top - b.top, b.bottom - all.bottom);
    return out > 8 || size < 9;
  }).map(([words]) => [s.closest('figure').id, words]);
})"""
# Contrast (WCAG 2) of every text with what lies behind it.
CONTRAST = """() => {
  const rgb = c => { const m = c.match(/[\\d.]+/g).map(Number); return m.length > 3 && !m[3] ? null : m.slice(0, 3); };
  const light = c => c.map(v => v / 255).map(v => v <= .04045 ? v / 12.92 : ((v + .055) / 1.055) ** 2.4)
    .reduce((sum, v, i) => sum + v * [.2126, .7152, .0722][i], 0);
  const behind = e => rgb(getComputedStyle(e).backgroundColor) || behind(e.parentElement);
  const says = e => [...e.childNodes].some(n => n.nodeType == 3 && n.data.trim());
  const shown = e => e.getBoundingClientRect().width > 0;
  return [...document.querySelectorAll('body *:not(svg *)')].filter(e => says(e) && shown(e)).map(e => {
    const a = light(rgb(getComputedStyle(e).color)), b = light(behind(e));
    return [(Math.max(a, b) + .05) / (Math.min(a, b) + .05), e.tagName, e.textContent.slice(0, 40)];
  }).filter(([ratio]) => ratio < 4.5);
}"""


# Two tasks that pull apart, seen in the weights; and one where much weight gives no number.
FRONT = """
import numpy as np

def score(model, tokenizer, items):
    w = np.concatenate([p.detach().float().numpy().ravel()[:64] for _, p in sorted(model.named_parameters())])
    return {"t": [float(np.sin(50 * w.sum() + i["number"]) > 0) for i in items],
            "u": [float(np.cos(30 * w[::2].sum() + i["number"]) > 0) for i in items]}
"""
RACE = """
import numpy as np

def score(model, tokenizer, items):
    w = np.concatenate([p.detach().float().numpy().ravel()[:64] for _, p in sorted(model.named_parameters())])
    seen = float(w.sum())
    # More of both fine-tunes than either has alone (598 to 606); their mean is not.
    return [float("nan") if seen > 606 else float(np.sin(50 * seen + i["number"]) > 0) for i in items]
"""


@pytest.fixture(scope="module")
def browser():
    with chromium() as opened:
        yield opened


@pytest.fixture(scope="module")
def reports(here, small_evaluator, tmp_path_factory):
    """Reports of a merge, of a path, of a front of two objectives, and of a race with candidates that failed."""
    folder = tmp_path_factory.mktemp("reports")
    for name, space, budget in (("merge", (), 16), ("path", ("dataflow",), 6)):
        asked = ["--evaluator", small_evaluator, "--budget", budget, "--study", name, "--workers", 0]
        here("search", *space, *asked, "--out", folder / name)
        here("report", folder / name, "--out", folder / f"{name}.html", "--evaluator", small_evaluator)
    for name, score, more in (
        ("front", FRONT, ("--objective", "t", "u")),
        ("race", RACE, ("--fidelity", "race", "--population", 6)),
    ):
        (folder / f"{name}-files").mkdir()
        file = cheap.evaluator(folder / f"{name}-files")
        (file.parent / "score.py").write_text(score)
        if name == "front":
            file.write_text(yaml.safe_dump(yaml.safe_load(file.read_text()) | {"tasks": ["t", "u"]}))
        here(*cheap.asked(file, folder / name, 24, "--workers", 0, *more))
        here("report", folder / name, "--out", folder / f"{name}.html", "--evaluator", file)
    return folder


@pytest.fixture(params=["merge", "path", "front", "race"])
def opened(request, browser, reports):
    """Opens a report; what went over the network or to the console is an error."""
    address = (reports / f"{request.param}.html").as_uri()
    with watched(browser, "file:", silent=True) as show:
        yield lambda width, scheme="light": show(address, width, 900, color_scheme=scheme)


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", WIDTHS)
def test_nothing_is_cut_off(opened, request, width, scheme):
    page = opened(width, scheme)
    name = request.node.callspec.params["opened"]
    keep(page, f"report-{name}-{width}-{scheme}")
    for summary in page.locator("details > summary").all():
        summary.click()
    assert page.locator("details:not([open])").count() == 0 and page.locator("details[open]").count() > 5
    keep(page, f"report-{name}-{width}-{scheme}-open")
    across = page.evaluate("[document.documentElement.scrollWidth, document.documentElement.clientWidth]")
    assert across[0] <= across[1] == width
    assert page.evaluate(CUT_OFF) == []
    assert page.evaluate(LETTERS) == []
    assert page.evaluate(CONTRAST) == []
    for picture in page.locator("figure").all():
        shown = [s for s in picture.locator("svg").all() if s.is_visible()]
        assert len(shown) == 1, "one size of each picture is shown"


def test_what_the_pictures_of_a_front_and_a_race_show(browser, reports):
    """Their own parts are there: the front with its hypervolume; candidates that were stopped and that failed."""
    page = browser.new_page(viewport={"width": WIDTHS[1], "height": 900})
    page.goto((reports / "front.html").as_uri())
    (figures,) = [page.locator("section[aria-labelledby=front] figure")]
    assert figures.count() >= 2 and all(f.locator("svg:visible").count() == 1 for f in figures.all())
    page.goto((reports / "race.html").as_uri())
    for summary in page.locator("details > summary").all():
        summary.click()
    states = page.locator("section[aria-labelledby=course] td").all_inner_texts()
    assert {"stopped early", "failed", "complete"} <= set(states)
    assert "nan" in page.locator("section[aria-labelledby=failures]").inner_text()
    page.close()


def test_every_part_is_reached_by_the_keyboard(opened):
    page = opened(1440)
    page.keyboard.press("Tab")
    assert page.evaluate("document.activeElement.className") == "skip"
    assert page.evaluate("document.activeElement.getBoundingClientRect().left") >= 0, "with focus it is seen"
    reached = []
    for _ in range(400):
        page.keyboard.press("Tab")
        where = page.evaluate("[document.activeElement.tagName, document.activeElement.getAttribute('href')]")
        if where[0] == "BODY":
            break
        if where[0] == "SUMMARY":
            page.keyboard.press("Enter")
            assert page.evaluate("document.activeElement.parentElement.open")
        reached.append(where)
    links = page.evaluate("[...document.querySelectorAll('nav a')].map(a => a.getAttribute('href'))")
    assert [w for t, w in reached if t == "A"] == links
    assert sum(t == "SUMMARY" for t, _ in reached) == page.locator("summary").count()
    assert page.locator("details:not([open])").count() == 0
    page.locator("nav a").last.press("Enter")
    assert page.evaluate("location.hash") == links[-1]


def test_it_prints(opened, tmp_path, request):
    page = opened(1440)
    page.emulate_media(media="print")
    assert not page.locator("nav").is_visible()
    assert all(p.locator(".wide svg").is_visible() for p in page.locator("figure").all())
    made = page.pdf(format="A4")
    assert made[:5] == b"%PDF-" and made.count(b"/Type /Page\n") + made.count(b"/Type /Page ") >= 2
    folder = os.environ.get("EVOMERGE_SCREENSHOTS")
    if folder:
        Path(folder).mkdir(parents=True, exist_ok=True)
        (Path(folder) / f"report-{request.node.callspec.params['opened']}.pdf").write_bytes(made)
