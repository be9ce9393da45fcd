"""What is shown of a fusion: rates and times left, on a terminal and elsewhere."""

from __future__ import annotations

import io

import pytest
from rich.console import Console

from evomerge.watching import fusing
from evomerge.watching.fusing import Fusing


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    now = [0.0]
    monkeypatch.setattr(fusing.time, "monotonic", lambda: now[0])
    return now


def shown(watcher: Fusing, terminal: bool) -> io.StringIO:
    stream = io.StringIO()
    watcher._console = Console(file=stream, force_terminal=terminal, width=120, highlight=False)
    return stream


def test_plain_lines_say_rate_and_time_left(clock: list[float]) -> None:
    with Fusing() as watcher:
        stream = shown(watcher, terminal=False)
        watcher.begin("passes of the sources", 10_000, "tokens", 2_000)
        clock[0] = 5.0
        watcher.advance(1_000, "tides")  # too soon for a line
        clock[0] = 20.0
        watcher.advance(1_000, "tides")
        clock[0] = 80.0
        watcher.advance(6_000)
        watcher.end()
    lines = stream.getvalue().splitlines()
    assert lines[0] == "passes of the sources: 10,000 tokens, 2,000 of them done before"
    # 2,000 in 20 s; 6,000 are left.
    assert lines[1] == "  passes of the sources: 4,000 of 10,000 tokens, 100 a second, tides, about 1 min 00 s left"
    assert lines[-1] == "passes of the sources: 10,000 tokens in 1 min 20 s, 100 a second"


def test_a_terminal_has_a_bar_that_goes_away() -> None:
    with Fusing() as watcher:
        stream = shown(watcher, terminal=True)
        watcher.begin("passes of the sources", 100, "tokens")
        watcher.advance(40, "roads")
        watcher._bar.refresh()
        watcher.say("a fact [with brackets]")
        watcher.end()
    text = stream.getvalue()
    assert "40 of 100 tokens" in text and "roads" in text and "a fact [with brackets]" in text
    assert watcher._bar is None


def test_an_error_inside_takes_the_bar_away() -> None:
    watcher = Fusing()
    with pytest.raises(RuntimeError), watcher:
        shown(watcher, terminal=True)
        watcher.begin("training fused", 10, "steps")
        raise RuntimeError
    assert watcher._bar is None
