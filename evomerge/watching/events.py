"""`--events FILE`: what a search does, one JSON object a line, while it does it. docs/watching.md has each event."""

from __future__ import annotations

import contextlib
import json
import math
import os
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, TextIO

from evomerge import __version__
from evomerge.errors import EvoMergeError, InputError
from evomerge.hiding import hidden

if TYPE_CHECKING:
    from evomerge.evaluation.config import Split
    from evomerge.score import Score, Trial, Value
    from evomerge.study.watcher import Beginning
    from evomerge.watching.tally import Tally

# Of the form of the events: raised where what is there changes its meaning, not where something is added.
SCHEMA = 1
STDOUT = "-"
# What every event begins with.
_FIRST = b'{"event": "'


class Events:
    """Writes events. As a context manager it writes how the command ended, too.

    A file is added to: events of a search that goes on follow those of its earlier runs, and a line that was cut off by
    a kill is taken away first. What cannot be written (a full disk, a reader that has gone) is told once; the search
    goes on.

    Args:
        file: A file, a named pipe, or "-": stdout.
        stdout: What "-" is.
        say: Is told when no more events can be written.

    Raises:
        InputError: the file cannot be written, or is there and holds something else.
    """

    def __init__(self, file: str, stdout: TextIO, say: Callable[[str], None]) -> None:
        self._name = "stdout" if file == STDOUT else file
        self._say = say
        self._open = True
        self._owned = file != STDOUT
        self._stream = stdout if file == STDOUT else _opened(Path(file))
        self._tally: Tally | None = None

    def __enter__(self) -> Events:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        if error is not None:
            code = error.exit_code if isinstance(error, EvoMergeError) else getattr(error, "exit_code", 1)
            if isinstance(error, KeyboardInterrupt):
                self._write("interrupted", exit_code=getattr(error, "exit_code", 130), reason=str(error))
            else:
                self._write("error", exit_code=code, error=str(error) or type(error).__name__)
        if self._owned:
            with contextlib.suppress(OSError):
                self._stream.close()

    def result(self, result: Mapping[str, Any]) -> None:
        """The end: what `--json` prints."""
        self._write("result", result=result)

    def say(self, text: str) -> None:
        """See `Watcher`."""
        self._write("message", text=text)

    def begin(self, beginning: Beginning) -> None:
        """See `Watcher`."""
        from evomerge.watching.tally import Tally

        self._tally = Tally(beginning)
        budget = beginning.budget
        self._write(
            "search", study=beginning.study, name=beginning.name, schema=SCHEMA, evomerge=__version__,
            budget={"candidates": budget.candidates, "seconds": budget.seconds}, seconds=beginning.spent,
            workers=beginning.workers, items=beginning.items,
            baselines={n: v.to_dict("score") for n, v in beginning.lines.items()}, sources=list(beginning.sources),
        )  # fmt: skip

    def started(self, number: int, params: Mapping[str, Value]) -> None:
        """See `Watcher`."""
        if self._tally is not None:
            self._tally.started(number, params)
            self._write("started", study=self._tally.beginning.study, trial=number, params=dict(params))

    def scored(self, items: int) -> None:
        """See `Watcher`; no event of its own, but counted in those of candidates."""
        if self._tally is not None:
            self._tally.scored(items)

    def finished(self, trial: Trial, replayed: bool) -> None:
        """See `Watcher`."""
        tally = self._tally
        if tally is None:
            return
        better = tally.finished(trial, replayed)
        best = tally.best
        rates = tally.rates
        self._write(
            "trial", study=tally.beginning.study, trial=trial.number, state=trial.state.value, score=trial.value,
            tasks={} if trial.score is None else {t.task: t.shown for t in trial.score.tasks},
            params=dict(trial.params), cost=trial.cost, seen=trial.seen, stopped=trial.stopped,
            estimate=trial.estimate, reason=trial.reason, seconds=dict(trial.seconds), violation=trial.violation,
            replayed=replayed, improved=better,
            best=None if best is None else {"trial": best.number, "score": best.value},
            spent={"candidates": tally.units, "seconds": tally.seconds}, share=tally.share, left=tally.left,
            counts={"running": tally.running, "complete": tally.complete, "pruned": tally.pruned,
                    "failed": tally.failed},
            candidates_per_minute=None if rates is None else rates[0],
            items_per_second=None if rates is None else rates[1],
        )  # fmt: skip

    def measuring(self, split: Split, names: Sequence[str]) -> None:
        """See `Watcher`."""
        self._write("measuring", split=split, models=list(names))

    def measured(self, split: Split, name: str, found: Score | str, known: bool) -> None:
        """See `Watcher`."""
        failed = isinstance(found, str)
        self._write(
            "measured", split=split, model=name, score=None if isinstance(found, str) else found.value,
            tasks={} if isinstance(found, str) else {t.task: t.shown for t in found.tasks},
            reason=found if failed else None, known=known,
        )  # fmt: skip

    def end(self) -> None:
        """See `Watcher`."""

    def _write(self, event: str, **values: Any) -> None:
        if not self._open:
            return
        line = json.dumps({"event": event, "time": round(time.time(), 3), **_plain(values)}, ensure_ascii=False)
        try:
            self._stream.write(line + "\n")
            self._stream.flush()
        except (OSError, ValueError) as e:
            self._open = False
            self._say(f"--events {self._name}: cannot be written ({e}); the search goes on without")
            if not self._owned:  # lest Python complain when it flushes at the end
                with contextlib.suppress(OSError, ValueError):
                    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.__stdout__.fileno() if sys.__stdout__ else 1)


def _opened(file: Path) -> TextIO:
    try:
        _check_events(file)
        _cut_last_line(file)
        return file.open("a", encoding="utf-8")
    except OSError as e:
        raise InputError(f"--events {file}: cannot be written ({e.strerror or e}); expected a file, or -") from None


def _check_events(file: Path) -> None:
    """Raise InputError where a file is there that is none of ours: events are added to what they are given."""
    if file.is_file():
        with file.open("rb") as f:
            first = f.read(len(_FIRST))
        if first and not _FIRST.startswith(first) and not first.startswith(_FIRST):
            raise InputError(
                f"--events {file}: is there already, and holds no events; expected a new file, one of an earlier run's "
                "events, or -"
            )


def _cut_last_line(file: Path) -> None:
    """Take a line away that a kill cut off."""
    if not file.is_file() or not file.stat().st_size:
        return
    with file.open("rb+") as f:
        data = f.read()
        if not data.endswith(b"\n"):
            f.truncate(data.rfind(b"\n") + 1)


def _plain(value: Any) -> Any:
    """NaN and infinities, which JSON does not have, become null; secrets are hidden."""
    if isinstance(value, Mapping):
        return {k: _plain(v) for k, v in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(v) for v in value]
    if isinstance(value, str):
        return hidden(value)
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value
