"""What a search shows while it runs: on terminals of any width, in plain lines, and in a real pseudo-terminal."""

from __future__ import annotations

import io
import re
import signal

import numpy as np
import pytest
from rich.console import Console

from evomerge.recipe import InputModel, Recipe
from evomerge.score import Interval, Score, State, TaskScore, Trial
from evomerge.study.budget import Budget
from evomerge.study.status import status
from evomerge.study.store import Store
from evomerge.study.watcher import Beginning
from evomerge.watching.live import ENDING, Measuring, View
from evomerge.watching.progress import PLAIN_SECONDS, Progress
from evomerge.watching.tally import Tally
from tests.cli.terminals import Terminal

NAMES = {"zoo:maths": "maths", "zoo:kovesh": "kovesh"}


class Clock:
    """Seconds that pass when they are told to."""

    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


def decode(params):
    models = [InputModel(model=r, parameters={"weight": params[f"weight.{n}"]}) for r, n in NAMES.items()]
    return Recipe(merge_method="linear", models=models)


def beginning(budget="100", workers=1, items=200):
    lines = {
        "base": Interval(0.2, None, None, items), "maths": Interval(0.5, 0.45, 0.55, items),
        "kovesh": Interval(0.4, None, None, items), "uniform": Interval(0.45, None, None, items),
    }  # fmt: skip
    return Beginning(
        "search", "s", Budget.parse(budget), lines, ("maths", "kovesh"), items, 0.0, workers, decode, NAMES
    )


def trial(number, value=None, state=State.COMPLETE, **attributes):
    score = None if value is None else Score((TaskScore("t", "m", value, 1.0, ("i",), np.array([value], np.float32)),))
    params = {"weight.maths": 0.25, "weight.kovesh": 0.75}
    return Trial(number, params, state, score, "broken" if state is State.FAIL else None, {}, attributes)


def drawn(view, width):
    stream = io.StringIO()
    Console(file=stream, width=width, force_terminal=True, color_system=None).print(view)
    return stream.getvalue().splitlines()


def full_view(clock):
    tally = Tally(beginning(), clock)
    for number in range(30):
        tally.started(number, {})
        clock.now += 1.0
        tally.scored(200)
        ended = State.FAIL if number == 3 else State.PRUNED if number % 2 else State.COMPLETE
        found = trial(number, 0.4 + number / 100 if ended is State.COMPLETE else None, ended)
        tally.finished(found, False)
    tally.started(30, {})
    view = View()
    view.tally, view.recipe = tally, "linear: maths 0.25, kovesh 0.75, " + "another-long-name 0.10, " * 12
    view.measuring = None
    view.ending = True
    return view


@pytest.mark.parametrize("width", [40, 41, 60, 80, 100, 140, 200])
def test_it_fits_every_width_and_says_the_same(width):
    lines = drawn(full_view(Clock()), width)
    assert max(map(len, lines)) < width
    text = re.sub(r"\s+", " ", " ".join(lines))
    for words in (
        "30 of 100 candidates spent", "30%", "best 0.680 (candidate 28)", "best source maths 0.500", "1 running",
        "15 complete", "14 stopped early", "1 failed", "60 candidates/min", "200 items/s", "recipe linear: maths 0.25",
        "about 1 min 10 s left",
    ):  # fmt: skip
        assert words in text, (words, text)
    assert "(0.450 .. 0.550)" in text or width == 40
    assert ENDING[:30] in text
    assert sum("another" in line for line in lines) <= 2


def test_what_is_scored_and_how_far():
    view = full_view(Clock())
    view.measuring = Measuring("test", ["uniform", "candidate 28"], 6)
    text = re.sub(r"\s+", " ", " ".join(drawn(view, 80)))
    assert "test items: 4 of 6 models scored" in text and "still to score: uniform, candidate 28" in text
    assert "candidates/min" not in text and "about" not in text  # the search is over


def test_no_time_left_is_told_before_there_is_something_to_tell_it_from():
    clock = Clock()
    tally = Tally(beginning(workers=4), clock)
    for number in range(40):
        tally.finished(trial(number, 0.1, cost=0.0), False)  # known already: takes no time
    assert tally.left is None
    clock.now += 60.0  # workers start
    for number in range(12):
        clock.now += 1.0
        tally.scored(10)
        tally.finished(trial(number, 0.1, cost=0.05), False)
        assert tally.left is None, number  # too few answers, too few seconds, too small a share of the budget
    for number in range(40):
        clock.now += 10.0
        tally.scored(200)
        tally.finished(trial(number, 0.1), False)
    # 0.6 + 40 of 100 spent; the first answers were quick and cheap, and the last take 10 s each.
    assert tally.left == pytest.approx(10.0 * (100 - 40.6), rel=0.05)
    clock.now += 30.0
    assert tally.left == pytest.approx(10.0 * (100 - 40.6) - 30, rel=0.05)


def test_time_as_a_budget_is_left_from_the_first():
    clock = Clock()
    tally = Tally(beginning("10m"), clock)
    clock.now += 60.0
    assert tally.left == 540.0 and tally.share == pytest.approx(0.1)


def test_candidates_of_an_earlier_run_are_counted_and_make_no_pace():
    clock = Clock()
    tally = Tally(beginning(), clock)
    for number in range(50):
        tally.finished(trial(number, 0.1), True)
    assert (tally.ended, tally.units, tally.share) == (50, 50.0, 0.5)
    for number in range(50, 62):
        clock.now += 5.0
        tally.scored(200)
        tally.finished(trial(number, 0.1), False)
    assert tally.left == pytest.approx(38 * 5.0, rel=0.01) and tally.rates == (pytest.approx(12), pytest.approx(40))


def plain(progress):
    stream = io.StringIO()
    progress._console = Console(file=stream, force_terminal=False, width=300, highlight=False)
    return stream


def test_plain_lines_are_seconds_apart():
    clock = Clock()
    progress = Progress(clock)
    stream = plain(progress)
    with progress:
        progress.begin(beginning())
        for number in range(100):
            clock.now += 0.25
            progress.started(number, {})
            progress.scored(200)
            progress.finished(trial(number, 0.3 + number / 1000), False)
        progress.end()
    lines = stream.getvalue().splitlines()
    told = [line for line in lines if "best source" in line]
    # 25 seconds of ever better ones: one every five, and the last.
    assert 25 / PLAIN_SECONDS <= len(told) <= 25 / PLAIN_SECONDS + 2, lines
    assert "100 candidates, best 0.399 (candidate 99), best source maths 0.500" in told[-1]
    assert "\x1b" not in stream.getvalue()


def test_plain_lines_tell_failures_and_what_is_scored():
    clock = Clock()
    progress = Progress(clock)
    stream = plain(progress)
    with progress:
        progress.begin(beginning())
        for number in range(100):
            progress.finished(trial(number, None, State.FAIL), False)
        progress.measuring("test", ["base", "maths", "candidate 0"])
        for name in ("base", "maths", "candidate 0"):
            clock.now += 4.0
            progress.measured("test", name, trial(0, 0.5).score, False)
    text = stream.getvalue()
    assert "candidate 0 failed: broken" in text and text.count("broken") == 1
    assert "test items: 2 of 3 models scored (maths: 0.500)" in text and text.count("models scored") == 1


@pytest.mark.parametrize("term", ["dumb", "unknown"])
def test_a_terminal_that_cannot_redraw_gets_plain_lines(monkeypatch, term):
    monkeypatch.setenv("TERM", term)
    progress = Progress()
    progress._console = Console(file=io.StringIO(), force_terminal=True, highlight=False)
    assert not progress.animated and not progress.shows_ending()


def test_the_cursor_is_there_while_it_runs_and_after_an_error():
    progress = Progress()
    stream = io.StringIO()
    progress._console = Console(file=stream, force_terminal=True, width=80, highlight=False)
    progress._console._environ = {"TERM": "xterm"}
    with pytest.raises(RuntimeError), progress:
        progress.begin(beginning())
        assert stream.getvalue().rindex("\x1b[?25h") > stream.getvalue().rindex("\x1b[?25l")
        assert progress.shows_ending()
        raise RuntimeError
    assert progress._live is None
    assert stream.getvalue().rindex("\x1b[?25h") > stream.getvalue().rindex("\x1b[?25l")


def search(evaluator, out, *more, budget=14):
    return (
        "search", "--evaluator", evaluator, "--budget", budget, "--study", "s", "--workers", 0, "--out", out, *more,
    )  # fmt: skip


def words(screen):
    return re.sub(r"\s+", " ", " ".join(screen))


@pytest.mark.slow
def test_a_real_search_in_a_terminal_shows_what_the_study_holds(small_evaluator, tmp_path):
    out = tmp_path / "out"
    terminal = Terminal(*search(small_evaluator, out), columns=90, OMP_NUM_THREADS="1")
    terminal.until(lambda screen: any("running" in line for line in screen))
    terminal.resize(64)
    terminal.until()
    assert terminal.process.returncode == 0, terminal.text
    found = status(Store(f"sqlite:///{out / 'study.db'}"), "s")
    running = [s for s in map(words, terminal.screens) if " running " in s]
    written = re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", terminal.raw.decode())
    assert set(re.findall(r"(\w+) items: \d+ of \d+ models", written)) == {"search", "select", "test"}
    # The counts never fall, and end with the study's.
    complete = [int(re.search(r"(\d+) complete", s)[1]) for s in running]
    assert complete == sorted(complete) and complete[-1] == found.counts["complete"] == 14
    best = found.best
    name, value = max(((n, v) for n, v in found.sources.items() if n not in ("base", "uniform")), key=lambda p: p[1])
    assert f"best {best.value:.3f} (candidate {best.number})" in running[-1]
    assert f"best source {name} {value:.3f} (" in running[-1]
    assert "14 of 14 candidates spent" in running[-1] and "100%" in running[-1]
    assert "recipe task_arithmetic: maths " in running[-1]
    # Nothing of the view is left, the cursor is there, and what is printed at the end is whole.
    assert not terminal.cursor_hidden
    assert " complete" not in terminal.text and "held-out items" in terminal.text
    assert "model/, recipe.yaml" in re.sub(r"\s+", " ", terminal.text)


@pytest.mark.slow
@pytest.mark.parametrize("times", [1, 2])
def test_interrupted_in_a_terminal(small_evaluator, tmp_path, times):
    out = tmp_path / "out"
    terminal = Terminal(*search(small_evaluator, out, budget=500), columns=90, OMP_NUM_THREADS="1")
    terminal.until(lambda screen: any(" complete" in line and "0 complete" not in line for line in screen))
    for _ in range(times):
        terminal.process.send_signal(signal.SIGINT)
        if times == 2:
            terminal.until(lambda screen: any(line.startswith("ending:") for line in screen), 20)
    terminal.until()
    assert terminal.process.returncode == 130
    assert not terminal.cursor_hidden
    text = re.sub(r"\s+", "", terminal.text)
    assert "thesamecommandgoesonfromthere" in text and "Traceback" not in text
    assert status(Store(f"sqlite:///{out / 'study.db'}"), "s").standing == "interrupted"


@pytest.mark.slow
def test_without_colours_and_on_a_dumb_terminal(small_evaluator, tmp_path):
    terminal = Terminal(*search(small_evaluator, tmp_path / "a", budget=3), NO_COLOR="1", OMP_NUM_THREADS="1")
    terminal.until()
    assert terminal.process.returncode == 0
    assert not re.search(rb"\x1b\[[0-9;]*3[0-9]m", terminal.raw)  # no colour; the view itself is there
    assert any("running" in line for screen in terminal.screens for line in screen)
    terminal = Terminal(*search(small_evaluator, tmp_path / "b", budget=3), TERM="dumb", OMP_NUM_THREADS="1")
    terminal.until()
    assert terminal.process.returncode == 0
    assert b"\x1b" not in terminal.raw and b"best source" in terminal.raw


def test_words_of_a_recipe():
    from evomerge.report.words import params_words

    params = {
        "weight.a.1.layers_0-1.attention": 0.2, "weight.a.1.layers_0-1.mlp": 0.6,
        "weight.a.1.layers_2-3.attention": 0.4, "weight.a.1.layers_2-3.mlp": 0.8,
        "weight.b": 0.5, "density.a.1": 0.3, "density.b": 0.7, "method": "ties",
    }  # fmt: skip
    assert params_words(params, "ties", ["a.1", "b"]) == (
        "ties: a.1 0.50 (attention 0.30, mlp 0.70), b 0.50, density 0.3 to 0.7"
    )
    assert params_words({}, "linear", ["a"]) == "linear"


