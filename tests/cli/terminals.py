"""A command in a pseudo-terminal, and what its screen shows: a terminal emulator reads what it writes."""

from __future__ import annotations

import fcntl
import os
import pty
import select
import struct
import subprocess
import sys
import termios
import time
from collections.abc import Callable
from pathlib import Path

import pyte

ROOT = Path(__file__).parents[2]


class Terminal:
    """Runs `evomerge ARGS` with stdin, stdout and stderr on a terminal of its own.

    Attributes:
        screens: Every screen that was different from the one before, as lines without trailing blanks.
        raw: All bytes written.
    """

    def __init__(self, *args: object, columns: int = 100, rows: int = 40, cwd: Path | None = None, **env: str) -> None:
        master, slave = pty.openpty()
        fcntl.ioctl(slave, termios.TIOCSWINSZ, struct.pack("HHHH", rows, columns, 0, 0))
        own = {k: v for k, v in os.environ.items() if k not in ("NO_COLOR", "FORCE_COLOR", "COLUMNS", "LINES")}
        self.process = subprocess.Popen(
            [sys.executable, "-m", "evomerge", *map(str, args)], stdin=slave, stdout=slave, stderr=slave, cwd=cwd,
            start_new_session=True, env={**own, "TERM": "xterm-256color", "PYTHONPATH": str(ROOT), **env},
        )  # fmt: skip
        os.close(slave)
        self._master = master
        self._screen = pyte.HistoryScreen(columns, rows, history=10_000)
        self._stream = pyte.ByteStream(self._screen)
        self.screens: list[list[str]] = []
        self.raw = b""

    @property
    def cursor_hidden(self) -> bool:
        """Whether the cursor is not to be seen now."""
        return bool(self._screen.cursor.hidden)

    @property
    def text(self) -> str:
        """All that is left on the screen and above it."""
        above = ["".join(line[i].data for i in range(self._screen.columns)) for line in self._screen.history.top]
        return "\n".join(line.rstrip() for line in [*above, *self._screen.display])

    def resize(self, columns: int, rows: int = 40) -> None:
        """As if the window were given another size."""
        fcntl.ioctl(self._master, termios.TIOCSWINSZ, struct.pack("HHHH", rows, columns, 0, 0))
        self._screen.resize(rows, columns)

    def until(self, done: Callable[[list[str]], bool] = lambda screen: False, seconds: float = 250.0) -> None:
        """Read on until a screen is as wanted, or the command has ended.

        Raises:
            TimeoutError: neither came.
        """
        deadline = time.monotonic() + seconds
        while time.monotonic() < deadline:
            if not select.select([self._master], [], [], 0.2)[0]:
                continue
            try:
                came = os.read(self._master, 65536)
            except OSError:  # the other end is closed: it has ended
                came = b""
            if not came:
                self.process.wait(30)
                return
            self.raw += came
            self._stream.feed(came)
            screen = [line.rstrip() for line in self._screen.display]
            if not self.screens or screen != self.screens[-1]:
                self.screens.append(screen)
            if done(screen):
                return
        raise TimeoutError(self.text)
