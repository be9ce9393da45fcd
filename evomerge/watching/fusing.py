"""What goes on in a fusion, on stderr: a bar on a terminal, plain lines elsewhere."""

from __future__ import annotations

import time
from typing import Any

from evomerge.hiding import hidden

# Seconds between two plain lines of one thing.
PLAIN_EVERY = 15.0


class Fusing:
    """Shows how far a fusion is: what it does, how much of it is done, how fast, and how long it will take."""

    def __init__(self) -> None:
        from rich.console import Console

        self._console = Console(stderr=True, highlight=False, force_jupyter=False)
        self._bar: Any = None
        self._what = self._unit = ""
        self._total = self._done = self._before = 0
        self._began = self._said = 0.0

    def __enter__(self) -> Fusing:
        return self

    def __exit__(self, *_: object) -> None:
        self._stop()

    def say(self, text: str) -> None:
        """A fact worth a line."""
        console = self._bar.console if self._bar is not None else self._console
        console.print(hidden(text), markup=False, soft_wrap=True)

    def begin(self, what: str, total: int, unit: str, done: int = 0) -> None:
        """Something that takes time begins; see `evomerge.fusion.workers.Watcher`."""
        self._stop()
        self._what, self._unit, self._total, self._done, self._before = what, unit, total, done, done
        self._began = self._said = time.monotonic()
        if not self._console.is_terminal:
            self.say(f"{what}: {total:,} {unit}" + (f", {done:,} of them done before" if done else ""))
            return
        from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

        self._bar = Progress(
            TextColumn("{task.description}"), BarColumn(bar_width=20), TextColumn("{task.fields[words]}"),
            TimeRemainingColumn(), console=self._console, transient=True,
        )  # fmt: skip
        self._task = self._bar.add_task(what, total=total, completed=done, words="")
        self._bar.start()

    def advance(self, count: int, note: str = "") -> None:
        """So many more are done."""
        self._done = min(self._done + count, self._total)
        words = self._words(note)
        if self._bar is not None:
            self._bar.update(self._task, completed=self._done, words=words)
        elif time.monotonic() - self._said >= PLAIN_EVERY:
            self._said = time.monotonic()
            self.say(f"  {self._what}: {words}{self._left()}")

    def end(self) -> None:
        """It has ended."""
        if self._what and self._done > self._before:
            seconds = time.monotonic() - self._began
            self._stop()
            done = f"{self._done:,}" + (f" of {self._total:,}" if self._done < self._total else "")
            self.say(f"{self._what}: {done} {self._unit} in {_time(seconds)}{self._rate()}")
        self._stop()
        self._what = ""

    def _words(self, note: str) -> str:
        return f"{self._done:,} of {self._total:,} {self._unit}{self._rate()}" + (f", {note}" if note else "")

    def _rate(self) -> str:
        seconds = time.monotonic() - self._began
        rate = (self._done - self._before) / seconds if seconds > 0 else 0.0
        if not rate:
            return ""
        if rate < 1:
            return f", {1 / rate:.1f} s each"
        return f", {rate:,.0f} a second" if rate >= 10 else f", {rate:.1f} a second"

    def _left(self) -> str:
        fresh = self._done - self._before
        if not fresh or self._done >= self._total:
            return ""
        seconds = (time.monotonic() - self._began) / fresh * (self._total - self._done)
        return f", about {_time(seconds)} left"

    def _stop(self) -> None:
        if self._bar is not None:
            self._bar.stop()
            self._bar = None


def _time(seconds: float) -> str:
    whole = round(seconds)
    if whole < 60:
        return f"{seconds:.1f} s" if seconds < 10 else f"{whole} s"
    hours, minutes = whole // 3600, whole % 3600 // 60
    return f"{hours} h {minutes:02d} min" if hours else f"{minutes} min {whole % 60:02d} s"
