"""Files of a fusion's steps: written whole or not at all, and found to be what was written by their hashes."""

from __future__ import annotations

import hashlib
import json
import os
import tempfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from evomerge.errors import EvoMergeError

MANIFEST = "manifest.json"
_BLOCK = 1 << 20
_PART = ".part"


@contextmanager
def whole(file: Path) -> Iterator[Path]:
    """A path beside `file` that becomes it when the block ends well, and vanishes when it does not."""
    file.parent.mkdir(parents=True, exist_ok=True)
    handle, name = tempfile.mkstemp(prefix=f".{file.name}.", suffix=_PART, dir=file.parent)
    os.close(handle)
    try:
        yield Path(name)
        umask = os.umask(0)
        os.umask(umask)
        os.chmod(name, 0o666 & ~umask)
        with open(name, "rb+") as written:
            os.fsync(written.fileno())
        os.replace(name, file)
    except BaseException:
        with suppress(OSError):
            os.unlink(name)
        raise


def clear_parts(folder: Path) -> None:
    """Remove what a killed process left of files that it had not finished."""
    for file in folder.glob(f".*{_PART}"):
        with suppress(OSError):
            file.unlink()


def write_json(file: Path, data: Mapping[str, Any]) -> None:
    """Write a JSON file, whole; the same data gives the same bytes."""
    with whole(file) as part:
        part.write_text(json.dumps(data, indent=1, sort_keys=True, ensure_ascii=False) + "\n", encoding="utf-8")


def read_json_object(file: Path) -> dict[str, Any] | None:
    """What `write_json` wrote; None where nothing is there, or nothing that can be read."""
    try:
        found = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    return found if isinstance(found, dict) else None


@dataclass
class Manifest:
    """Which shards of a step lie in a folder, by hash; written anew after each.

    Attributes:
        key: Short name of what the step is made from; shards of another are none.
        name: What the file of a shard is called.
        shards: What is known of each: its "sha256", and the step's own facts; None where it is still to be made.
    """

    folder: Path
    key: str
    name: Callable[[int], str]
    shards: list[dict[str, Any] | None]

    @classmethod
    def at(cls, folder: Path, key: str, name: Callable[[int], str], count: int) -> Manifest:
        """Read the one that lies there, where it is of this step and of so many shards."""
        found = read_json_object(folder / MANIFEST) or {}
        shards = found.get("shards") if found.get("key") == key else None
        if not isinstance(shards, list) or len(shards) != count:
            shards = [None] * count
        return cls(folder, key, name, shards)

    def file(self, shard: int) -> Path:
        """Where a shard lies."""
        return self.folder / self.name(shard)

    def missing(self) -> list[tuple[int, bool]]:
        """Numbers of the shards to make, and whether something else is in their place. Forgets those."""
        found = []
        for i, shard in enumerate(self.shards):
            if shard is None or sha256(self.file(i)) != shard["sha256"]:
                found.append((i, shard is not None))
                self.shards[i] = None
        return found

    def add(self, shard: int, facts: dict[str, Any]) -> None:
        """Note a shard that has been written."""
        self.shards[shard] = facts
        write_json(self.folder / MANIFEST, {"key": self.key, "shards": self.shards})

    def whole(self) -> list[dict[str, Any]]:
        """What is known of every shard.

        Raises:
            EvoMergeError: one is missing.
        """
        found = [s for s in self.shards if s is not None]
        if len(found) < len(self.shards):
            raise EvoMergeError(f"{self.folder}: is not whole")
        return found


def sha256(file: Path) -> str | None:
    """Hash (hex) of a file's bytes; None where it cannot be read."""
    digest = hashlib.sha256()
    try:
        with file.open("rb") as stream:
            while block := stream.read(_BLOCK):
                digest.update(block)
    except OSError:
        return None
    return digest.hexdigest()


def key_of(facts: Mapping[str, Any]) -> str:
    """A short name (16 hex digits) of everything that decides what a step makes."""
    return hashlib.sha256(json.dumps(facts, sort_keys=True, ensure_ascii=False).encode()).hexdigest()[:16]
