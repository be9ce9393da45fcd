"""Ends what a command has started, and removes what was made for it, when the worker dies that started it.

A worker may be killed without a word (SIGKILL, a time limit, the kernel when memory is out); its commands would go on,
and hold their GPU. This file runs as a process of its own, one for each worker, and reads lines from it: "+group ID"
and "+folder PATH" as something begins, the same with "-" as it ends. When the worker is gone the pipe closes, and what
has not ended is ended. It imports nothing but the standard library.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path


class Keeper:
    """The worker's side: says what is to end with this process."""

    def __init__(self) -> None:
        self._process: subprocess.Popen[str] | None = None
        self._lock = threading.Lock()  # the next candidate is saved by another thread

    @contextlib.contextmanager
    def group(self, number: int) -> Iterator[None]:
        """A process group is to be killed if this process dies inside the block."""
        with self._kept("group", str(number)):
            yield

    @contextlib.contextmanager
    def folder(self, path: Path) -> Iterator[None]:
        """A folder is to be removed if this process dies inside the block."""
        with self._kept("folder", str(path)):
            yield

    @contextlib.contextmanager
    def _kept(self, what: str, which: str) -> Iterator[None]:
        self._say(f"+{what} {which}")
        try:
            yield
        finally:
            self._say(f"-{what} {which}")

    def _say(self, line: str) -> None:
        with self._lock:
            if self._process is None:
                self._process = subprocess.Popen(
                    [sys.executable, "-I", "-S", __file__],
                    stdin=subprocess.PIPE, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, text=True,
                )  # fmt: skip
                self._process.wait()  # it has become another process, which reads on
            assert self._process.stdin is not None
            with contextlib.suppress(OSError):  # somebody ended it: the worker's own clean-up goes on
                self._process.stdin.write(f"{line}\n")
                self._process.stdin.flush()


def main() -> None:
    """Follow what the worker says; at its end, end the rest."""
    if os.fork():
        os._exit(0)  # no child of the worker: Ray ends those first
    os.setsid()
    left: dict[str, None] = {}
    for line in sys.stdin:
        text = line.rstrip("\n")
        if text.startswith("+"):
            left[text[1:]] = None
        else:
            left.pop(text[1:], None)
    for what, _, which in (entry.partition(" ") for entry in sorted(left, reverse=True)):  # groups before folders
        if what == "group":
            with contextlib.suppress(OSError):
                os.killpg(int(which), signal.SIGKILL)
        else:
            shutil.rmtree(which, ignore_errors=True)


if __name__ == "__main__":
    main()
