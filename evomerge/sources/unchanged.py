"""Whether a model's files are still the ones that its content hash was computed of.

Sources stay mapped for days. Bytes that somebody writes into them would be in every candidate from then on, under the
hash of the old ones. A look at size, time and inode of each file costs microseconds; only where one differs is anything
read again: a copy that was put back, or a file that was touched, is the same model.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from evomerge.errors import SourceChangedError, SourceError
from evomerge.sources.hashes import content_hash

if TYPE_CHECKING:
    from evomerge.sources.source import Source

# Files beside the weights that say how a model is asked and read: configuration, tokenizer, chat template.
_SMALL = (".json", ".jinja", ".model", ".txt")
_SMALL_BYTES = 64 << 20

# Size, time of the last change (ns), inode.
Stamp = tuple[int, int, int]


@dataclass(frozen=True)
class Stamps:
    """What a model's files looked like when its content hash was computed.

    Attributes:
        weights: By file.
        small: The other files, with the SHA-256 of each.
    """

    weights: dict[Path, Stamp]
    small: dict[Path, tuple[Stamp, str]]

    @classmethod
    def of(cls, source: Source) -> Stamps:
        """Look at a model's files as they are now; raises OSError where one cannot be seen."""
        small = {}
        for folder in source.folders:
            for file in sorted(folder.iterdir()):
                if file.suffix in _SMALL and file.is_file() and file.stat().st_size <= _SMALL_BYTES:
                    small[file] = _stamp(file), _sha256(file)
        return cls({file: _stamp(file) for file in _weights(source)}, small)

    def moved(self, places: Mapping[Path, Path]) -> Stamps:
        """The same of the same files, whose folders are called otherwise."""

        def there(file: Path) -> Path:
            return places.get(file.parent, file.parent) / file.name

        return Stamps({there(f): s for f, s in self.weights.items()}, {there(f): s for f, s in self.small.items()})

    def changed(self) -> tuple[list[Path], list[Path]]:
        """Weights files that do not look as they did (their content is not looked at), and other files of another
        content."""
        weights = [file for file, stamp in self.weights.items() if _seen(file) != stamp]
        small = [file for file, (stamp, digest) in self.small.items() if _seen(file) != stamp and _read(file) != digest]
        return weights, small


def check_unchanged(source: Source, stamps: Stamps, expected: str) -> Stamps:
    """Check that a model is what it was.

    Args:
        stamps: Of when its content hash was computed.
        expected: That hash.

    Returns:
        The stamps to compare with from now on.

    Raises:
        SourceChangedError: a file's content is another, or it is gone.
    """
    weights, small = stamps.changed()
    gone = [file for file in (*small, *weights) if _seen(file) is None]
    if gone:
        raise SourceChangedError(f"{gone[0]}: is gone, and was in use; {_REMEDY}")
    if small:
        raise SourceChangedError(f"{small[0]}: has changed while it was in use; {_REMEDY}")
    if not weights:
        return stamps
    try:
        now = Stamps.of(source)
        same = content_hash(source) == expected
    except (OSError, SourceError):  # shorter than it was, or being replaced at this moment
        same = False
    if not same:
        more = f" (or one of {len(weights)} files that look newer)" if len(weights) > 1 else ""
        raise SourceChangedError(f"{weights[0]}{more}: has changed while it was in use; {_REMEDY}")
    return now


_REMEDY = (
    "what is built from here on would be of another model. Put back what was there and give the same command, or begin "
    "anew (a search: another --study and --out)"
)


def _weights(source: Source) -> list[Path]:
    """Of a model with an adapter the adapter's: the model is checked by itself."""
    infos = source.tensors.values() if source.adapter is None else [info for _, info in source.adapter.labels()]
    return list(dict.fromkeys(info.file for info in infos))


def _stamp(file: Path) -> Stamp:
    found = file.stat()
    return found.st_size, found.st_mtime_ns, found.st_ino


def _seen(file: Path) -> Stamp | None:
    try:
        return _stamp(file)
    except OSError:
        return None


def _sha256(file: Path) -> str:
    return hashlib.sha256(file.read_bytes()).hexdigest()


def _read(file: Path) -> str | None:
    try:
        return _sha256(file)
    except OSError:
        return None
