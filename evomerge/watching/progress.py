"""What goes on, on stderr: a live view on a terminal, plain lines elsewhere. stdout holds the result alone."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from evomerge.hiding import hidden

if TYPE_CHECKING:
    from evomerge.evaluation.config import Split
    from evomerge.score import Score, Trial, Value
    from evomerge.study.watcher import Beginning
    from evomerge.watching.live import View
    from evomerge.watching.tally import Tally

# Of plain lines, and of reasons why candidates fail, there is at most one in so many seconds; where nothing is better,
# one line for so many candidates.
PLAIN_SECONDS, PLAIN_EVERY = 5.0, 10


class Progress:
    """Shows a search: what it does now, candidates, best so far against the best source, pace, time left.

    Use it as a context manager, so that the live view is taken down however the search ends. The cursor is never
    hidden: a process that is killed leaves the terminal as it was.

    Args:
        clock: Seconds; another one in tests.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        from rich.console import Console

        self._console = Console(stderr=True, highlight=False, force_jupyter=False)
        self._clock = clock
        self._live: Any = None
        self._view: View | None = None
        self._tally: Tally | None = None
        self._line_at = -PLAIN_SECONDS
        self._line_of = 0
        self._failure_at = -PLAIN_SECONDS
        self._better = False
        self._measured = 0
        self._measuring: tuple[str, int] | None = None

    def __enter__(self) -> Progress:
        return self

    def __exit__(self, *_: object) -> None:
        self._stop()

    @property
    def animated(self) -> bool:
        """Whether stderr is a terminal that can redraw lines."""
        return bool(self._console.is_terminal and not self._console.is_dumb_terminal)

    def shows_ending(self) -> bool:
        """Have the live view say that the search was asked to end; False where there is none. Safe in a handler."""
        if self._live is None or self._view is None:
            return False
        self._view.ending = True
        return True

    def say(self, text: str) -> None:
        """What is done now, or a fact worth a line."""
        self._print(text)

    def begin(self, beginning: Beginning) -> None:
        """A search begins; see `Watcher`."""
        from evomerge.watching.tally import Tally

        self._close_line()
        self._tally = Tally(beginning, self._clock)
        self._line_at, self._line_of, self._better = -PLAIN_SECONDS, 0, False
        if beginning.lines:
            shown = ", ".join(f"{k} {v.mean:.3f}" for k, v in beginning.lines.items())
            self._print(f"{beginning.name}: {beginning.budget}; on the same items: {shown}")
        if self._view is not None:
            self._view.tally, self._view.recipe = self._tally, ""
        self._start()

    def started(self, number: int, params: Mapping[str, Value]) -> None:
        """A candidate is being run."""
        if self._tally is not None:
            self._tally.started(number, params)

    def scored(self, items: int) -> None:
        """A worker's answer came."""
        if self._tally is not None:
            self._tally.scored(items)

    def finished(self, trial: Trial, replayed: bool) -> None:
        """A candidate ended; see `Watcher`."""
        tally = self._tally
        if tally is None:
            return
        better = tally.finished(trial, replayed)
        if trial.reason is not None and not replayed and self._clock() - self._failure_at >= PLAIN_SECONDS:
            self._failure_at = self._clock()
            self._print(f"  candidate {trial.number} failed: {trial.reason}")
        if self._live is not None and self._view is not None:
            if better:
                self._view.recipe = self._recipe(trial)
            return
        if replayed:
            return
        self._better = self._better or better
        # A line for what is better, else for some candidates; never two within seconds.
        if not self._better and tally.ended - self._line_of < PLAIN_EVERY:
            return
        if self._clock() - self._line_at >= PLAIN_SECONDS:
            self._plain()

    def measuring(self, split: Split, names: Sequence[str]) -> None:
        """Models are being scored; see `Watcher`."""
        from evomerge.watching.live import Measuring

        self._start()
        self._measuring, self._measured = (split, len(names)), 0
        self._line_at = self._clock()
        if self._view is not None:
            self._view.measuring = Measuring(split, list(names), len(names))
        if self._live is not None:
            self._live.refresh()  # else what takes less than a quarter of a second is never seen

    def measured(self, split: Split, name: str, found: Score | str, known: bool) -> None:
        """One of them was; see `Watcher`."""
        if known or self._measuring is None:
            return
        self._measured += 1
        if self._view is not None and self._view.measuring is not None:
            self._view.measuring.waiting.remove(name)
        if self._live is None and self._clock() - self._line_at >= PLAIN_SECONDS:
            self._line_at = self._clock()
            value = found if isinstance(found, str) else f"{found.value:.3f}"
            self._print(f"  {split} items: {self._measured} of {self._measuring[1]} models scored ({name}: {value})")

    def end(self) -> None:
        """The job is done: the view is taken down."""
        self._stop()

    def _recipe(self, trial: Trial) -> str:
        from evomerge.report.words import recipe_words

        assert self._tally is not None
        beginning = self._tally.beginning
        return recipe_words(beginning.decode(trial.params), trial.params, beginning.names)

    def _print(self, text: str) -> None:
        console = self._live.console if self._live is not None else self._console
        console.print(hidden(text), markup=False, soft_wrap=True)

    def _plain(self, left: bool = True) -> None:
        tally = self._tally
        assert tally is not None
        self._line_at, self._line_of, self._better = self._clock(), tally.ended, False
        self._print(f"  {self._words(left)}")

    def _close_line(self) -> None:
        """Of a search that is over, what has not been told yet."""
        if self._tally is None or not self._tally.ended:
            return
        if self._live is not None:
            self._print(f"{self._tally.beginning.name}: {self._words(left=False)}")
        elif self._line_of != self._tally.ended:
            self._plain(left=False)
        self._tally = None

    def _words(self, left: bool = True) -> str:
        """A line of the tally."""
        from evomerge.watching.live import duration

        tally = self._tally
        assert tally is not None
        count = f"{tally.ended} candidate" + ("" if tally.ended == 1 else "s")
        also = [f"{n} {what}" for n, what in ((tally.pruned, "stopped early"), (tally.failed, "failed")) if n]
        words = [count + (f" ({', '.join(also)})" if also else "")]
        budget = tally.beginning.budget
        if tally.pruned and budget.candidates is not None:
            words.append(f"{tally.units:.1f} of {budget.candidates:g} spent")
        if tally.best is not None and tally.best.value is not None:
            words.append(f"best {tally.best.value:.3f} (candidate {tally.best.number})")
        if tally.beginning.goal is not None:
            name, goal = tally.beginning.goal
            words.append(f"best source {name} {goal.mean:.3f}")
        seconds = tally.left if left else None
        if seconds is not None:
            words.append(f"about {duration(seconds)} left")
        return ", ".join(words)

    def _start(self) -> None:
        if self._live is not None or not self.animated:
            return
        from rich.live import Live

        from evomerge.watching.live import View

        self._view = View()
        self._view.tally = self._tally
        live = Live(self._view, console=self._console, transient=True, refresh_per_second=4, vertical_overflow="crop")
        self._live = live
        live.start()
        self._console.show_cursor(True)

    def _stop(self) -> None:
        live = self._live
        if live is None:
            self._close_line()
            return
        try:
            live.stop()
        finally:
            self._live = None
            self._console.show_cursor(True)
        if self._tally is not None and self._tally.ended:
            self._print(f"{self._tally.beginning.name}: {self._words(left=False)}")
            self._tally = None
