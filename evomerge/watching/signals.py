"""SIGINT and SIGTERM while a command runs that takes long: the first asks it to end, the second ends it at once."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType

from evomerge.study.stopping import Stop

_SIGNALS = (signal.SIGINT, signal.SIGTERM)


@contextmanager
def stoppable(shown: Callable[[], bool] = lambda: False) -> Iterator[Stop]:
    """Gives what a search looks at; inside the block the signals are told to it.

    Args:
        shown: Has a live view say that the search ends; False where there is none, and a line is written.

    A signal that the process was started to ignore stays ignored (SIGINT in the background of a shell). The third one
    ends the process as if there were no handler: what cleans up hangs then.
    """
    stop = Stop()
    before = {s: h for s in _SIGNALS if (h := signal.getsignal(s)) not in (signal.SIG_IGN, None)}

    def ask(signum: int, _frame: FrameType | None) -> None:
        if stop.asked:
            for s in before:
                signal.signal(s, signal.SIG_DFL)
        stop.ask(signum)
        # Not print: the signal may have come in the middle of one.
        if not shown():
            os.write(2, b"\nending: what is under way is finished and recorded (a second time: ends at once)\n")

    for s in before:
        signal.signal(s, ask)
    try:
        yield stop
    finally:
        for s, handler in before.items():
            signal.signal(s, handler)
