"""What goes on, on stderr: a live line on a terminal, plain lines elsewhere. stdout holds the result alone."""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from evomerge.score import Trial
    from evomerge.study.budget import Budget

PLAIN_EVERY = 10


def say(args: argparse.Namespace, text: str) -> None:
    """One line of progress on stderr (the same with and without `--json`)."""
    print(text, file=sys.stderr, flush=True)


class Progress:
    """Shows a search: what it does now, candidates done, best so far against the best source, time left.

    Use it as a context manager, so that the live line is taken down however the search ends.
    """

    def __init__(self) -> None:
        from rich.console import Console

        self._console = Console(stderr=True, highlight=False)
        self._bar: Any = None
        self._name = ""
        self._done = self._failed = 0
        self._best: tuple[float, int] | None = None
        self._goal: tuple[str, float] | None = None
        self._budget: Budget | None = None
        self._started = 0.0
        self._stopped = self._fresh = 0
        self._units = self._fresh_units = 0.0
        self._before = 0.0
        self._first = 0.0

    def __enter__(self) -> Progress:
        return self

    def __exit__(self, *_: object) -> None:
        self._stop()

    def say(self, text: str) -> None:
        """What is done now, or a fact worth a line."""
        self._stop()
        self._console.print(text, markup=False, soft_wrap=True)

    def begin(self, name: str, budget: Budget, lines: Mapping[str, float], spent: float) -> None:
        """A search begins; see `Watcher`."""
        self._stop()
        self._name, self._budget, self._best = name, budget, None
        self._done = self._failed = self._stopped = self._fresh = 0
        self._units = self._fresh_units = 0.0
        self._started, self._before = time.monotonic(), spent
        sources = {k: v for k, v in lines.items() if k not in ("base", "uniform")}
        if lines:
            shown = ", ".join(f"{k} {v:.3f}" for k, v in lines.items())
            self._console.print(f"{name}: {budget}; on the same items: {shown}", markup=False, soft_wrap=True)
        if sources:
            top = max(sources, key=lambda k: sources[k])
            self._goal = (top, sources[top])
        if self._console.is_terminal:
            self._start_bar()

    def finished(self, trial: Trial, replayed: bool) -> None:
        """A candidate ended; see `Watcher`."""
        self._done += 1
        self._fresh += not replayed
        self._units += trial.cost
        if self._fresh == 1 and not replayed:
            self._first = time.monotonic()
        elif not replayed:
            self._fresh_units += trial.cost
        if trial.stopped is not None:
            self._stopped += 1
        elif trial.value is None:
            self._failed += 1
            self._line(f"candidate {trial.number} failed: {trial.reason}")
        elif self._best is None or trial.value > self._best[0]:
            self._best = (trial.value, trial.number)
            if not replayed and self._bar is None:
                self._console.print(f"  {self._words()}", markup=False, soft_wrap=True)
                return
        if self._bar is not None:
            self._bar.update(self._task, completed=self._share() * 100, words=self._short())
        elif not replayed and self._done % PLAIN_EVERY == 0:
            self._console.print(f"  {self._words()}", markup=False, soft_wrap=True)

    def _share(self) -> float:
        return self._budget.share(self._units, self._before + time.monotonic() - self._started) if self._budget else 0.0

    def _words(self) -> str:
        count = f"{self._done} candidate" + ("" if self._done == 1 else "s")
        also = [f"{n} {what}" for n, what in ((self._stopped, "stopped early"), (self._failed, "failed")) if n]
        words = [count + (f" ({', '.join(also)})" if also else "")]
        if self._stopped and self._budget is not None and self._budget.candidates is not None:
            words.append(f"{self._units:.1f} of {self._budget.candidates:g} spent")
        if self._best is not None:
            words.append(f"best {self._best[0]:.3f} (candidate {self._best[1]})")
        if self._goal is not None:
            words.append(f"best source {self._goal[0]} {self._goal[1]:.3f}")
        left = self._left()
        if left:
            words.append(f"about {_time(left)} left")
        return ", ".join(words)

    def _short(self) -> str:
        """The same for the live line, which must fit a terminal of 80 columns."""
        words = f"{self._done} done" + (f", {self._failed} failed" if self._failed else "")
        if self._best is not None:
            words += f", best {self._best[0]:.3f}"
        if self._goal is not None:
            words += f" ({self._goal[0]} {self._goal[1]:.3f})"
        left = self._left()
        return f"{words}, {_time(left)} left" if left else words

    def _left(self) -> float | None:
        """Seconds left, from the candidates of this run; None before the first ones are done."""
        if self._budget is None or self._fresh < 2:
            return None
        spent = time.monotonic() - self._started
        if self._budget.candidates is not None:
            # From the first answer on: before it, workers were still starting.
            if not self._fresh_units:
                return None
            pace = (time.monotonic() - self._first) / self._fresh_units
            return pace * max(0.0, self._budget.candidates - self._units)
        return max(0.0, (self._budget.seconds or 0.0) - self._before - spent)

    def _line(self, text: str) -> None:
        (self._bar.console if self._bar is not None else self._console).print(f"  {text}", markup=False, soft_wrap=True)

    def _start_bar(self) -> None:
        from rich.progress import BarColumn, SpinnerColumn, TextColumn
        from rich.progress import Progress as Bar

        self._bar = Bar(
            SpinnerColumn(), TextColumn(self._name), BarColumn(bar_width=16), TextColumn("{task.fields[words]}"),
            console=self._console, transient=True,
        )  # fmt: skip
        self._task = self._bar.add_task(self._name, total=100, words="starting")
        self._bar.start()

    def _stop(self) -> None:
        if self._bar is not None:
            self._bar.stop()
            self._console.print(f"{self._name}: {self._words()}", markup=False, soft_wrap=True)
            self._bar = None


def _time(seconds: float) -> str:
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    return (
        f"{whole // 60} min {whole % 60:02d} s" if whole < 3600 else f"{whole // 3600} h {whole % 3600 // 60:02d} min"
    )
