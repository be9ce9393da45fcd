"""Where a candidate is saved for a moment: on the memory disk where there is room, else where temporary files go."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

import psutil

from evomerge.errors import EvoMergeError

# What folders of candidates are called, so that what a killed worker left is found.
CANDIDATE = "evomerge-candidate"
MEMORY_DISK = Path("/dev/shm")
# Beside the weights: tokenizer, configuration, and what others write at the same time.
SPARE = 1.05
SMALL_FILES = 64 << 20


def places(needed: int, chosen: Path | None = None, only: Path | None = None) -> Iterator[Path]:
    """Folders with room for so many bytes, the best first.

    What lies on the memory disk is memory: it is only taken where half of what is free would be left.

    Args:
        chosen: The only one that may be used.
        only: The only one of them that is wanted.

    Raises:
        EvoMergeError: none of them has room (raised where the first is asked for).
    """
    bytes_ = int(needed * SPARE) + SMALL_FILES
    lacking = []
    folders = [chosen] if chosen is not None else [MEMORY_DISK, Path(tempfile.gettempdir())]
    found = False
    for folder in folders:
        if only is not None and folder != only:
            continue
        if not folder.is_dir() or not os.access(folder, os.W_OK | os.X_OK):
            continue
        free = shutil.disk_usage(folder).free
        if folder == MEMORY_DISK and chosen is None:
            free = min(free, psutil.virtual_memory().available // 2)
        if free >= bytes_:
            found = True
            yield folder
        else:
            lacking.append(f"{folder} has {free:,} free")
    if not found:
        said = ", ".join(lacking) or f"{' and '.join(map(str, folders))} cannot be written"
        raise EvoMergeError(
            f"no room to save a candidate of {bytes_:,} bytes: {said}; free some, or name another folder (scratch: in "
            "the evaluator, or TMPDIR), and give the same command again"
        )
