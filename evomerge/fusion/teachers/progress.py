"""How far a pass is inside a shard that another process works on: a number in a hidden file beside the shard's."""

from __future__ import annotations

import time
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

from evomerge.fusion.workers import Watcher

# Seconds between two reports.
_EVERY = 2.0


def _file(folder: Path, name: str) -> Path:
    # ".part", so that what a killed process left is cleared with the rest.
    return folder / f".{name}.tokens.part"


class Report:
    """Written by the worker of one shard; a report that cannot be written is no reason to stop."""

    def __init__(self, folder: Path, name: str) -> None:
        self._file = _file(folder, name)
        self._tokens = 0
        self._said = time.monotonic()

    def __call__(self, tokens: int) -> None:
        """So many more are done."""
        self._tokens += tokens
        now = time.monotonic()
        if now - self._said >= _EVERY:
            self._said = now
            with suppress(OSError):
                self._file.write_text(str(self._tokens), encoding="ascii")

    def done(self) -> None:
        """The shard is written."""
        with suppress(OSError):
            self._file.unlink(missing_ok=True)


class Reports:
    """Reads the reports of all workers and tells a watcher what is new.

    Args:
        shards: Folder and file name of each, and how many tokens it has.
    """

    def __init__(self, shards: Sequence[tuple[Path, str, int]], watcher: Watcher) -> None:
        self._files = [_file(folder, name) for folder, name, _ in shards]
        self._sizes = [size for _, _, size in shards]
        self._heard = [0] * len(shards)
        self._watcher = watcher

    def poll(self) -> None:
        """Look at all of them."""
        for i, file in enumerate(self._files):
            with suppress(OSError, ValueError):
                self._hear(i, min(int(file.read_text(encoding="ascii")), self._sizes[i]))

    def done(self, shard: int, note: str) -> None:
        """A shard has ended."""
        self._hear(shard, self._sizes[shard], note)

    def _hear(self, i: int, tokens: int, note: str = "") -> None:
        if tokens > self._heard[i]:
            self._watcher.advance(tokens - self._heard[i], note)
            self._heard[i] = tokens
