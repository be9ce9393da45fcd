"""On a worker's machine: each folder is found, fetched or received once, and every file compared with its hash.

The workers of a machine do this one after the other under a lock file; the first one does the work.
"""

from __future__ import annotations

import errno
import hashlib
import os
import shutil
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import Any

from evomerge import locks, zoo
from evomerge.cache import VARIABLE, cache_folder
from evomerge.errors import EvoMergeError, SourceError
from evomerge.recipe import ModelReference
from evomerge.sources import ZOO, bring_revision, file_hash
from evomerge.study.staging.manifest import File, Folder

# Gives the content of a file of a folder (both by number) piece by piece: bytes, or something like them.
Pieces = Callable[[int, int], Iterator[Any]]
STAGED = "staged"
_REVISION = 40  # hexadecimal digits of a commit


def stage(folders: Sequence[Folder], pieces: Pieces, machine: str) -> list[Path]:
    """Where each folder lies on this machine, with every file as it must be.

    A folder is used where it lies: at the path that it has on the other machine (shared storage, the same image), below
    the current folder (Ray's working_dir), in the zoo, or in evomerge's cache. Else it is fetched from the hub by its
    revision, or received.

    Args:
        pieces: Asks the other machine.
        machine: This one's name, for messages.

    Raises:
        EvoMergeError: a file that was received is not what it should be, there is no room for it, or its folder is one
            that is not sent.
    """
    return [_find(number, folder, pieces, machine) for number, folder in enumerate(folders)]


def _find(number: int, folder: Folder, pieces: Pieces, machine: str) -> Path:
    home = cache_folder() / STAGED
    place = home / folder.hash[:32]
    with ExitStack() as stack:
        try:
            home.mkdir(parents=True, exist_ok=True)
            stack.enter_context(locks.held(home / f"{place.name}.lock", lambda holder: None))
        except OSError as e:
            raise EvoMergeError(f"{machine}: {home} cannot be written ({e.strerror}); set {VARIABLE} there") from None
        for candidate in (*_places(folder), place):
            if differing(folder, candidate) is None:
                return candidate
        fetched = _fetched(folder)
        if fetched is not None:
            return fetched
        if not folder.sent:
            raise EvoMergeError(
                f"{machine}: {folder.listed.what} is run with its own code ({folder.listed.seen[0]}), which is not "
                f"sent to other machines; put {folder.listed.home} on storage that all of them share"
            )
        _receive(number, folder, pieces, place, machine)
        return place


def _places(folder: Folder) -> Iterator[Path]:
    """Where it may lie already."""
    listed = folder.listed
    yield from dict.fromkeys((listed.path.absolute(), listed.home))
    name = (listed.model or "").removeprefix(ZOO)
    if listed.model is not None and listed.model.startswith(ZOO) and name in zoo.NAMES:
        yield zoo.path(name)


def differing(folder: Folder, place: Path) -> str | None:
    """The first file that is not in a place as it must be; None where all are. Contents are read last."""
    for file in folder.files:
        try:
            if (place / file.name).stat().st_size != file.bytes:
                return file.name
        except OSError:
            return file.name
    for file in folder.files:
        try:
            if file_hash(place / file.name) != file.sha256:
                return file.name
        except SourceError:
            return file.name
    return None


def _fetched(folder: Folder) -> Path | None:
    """Its folder in the hub's cache, where it is a model of the hub's that can be had from there."""
    listed = folder.listed
    revision = listed.home.name
    if listed.model is None or listed.model.startswith(ZOO) or len(revision) != _REVISION:
        return None
    try:
        repo = ModelReference.parse(listed.model).path
        place = bring_revision(repo, revision, listed.names)
    except (SourceError, ValueError):
        return None  # it is received then
    return place if differing(folder, place) is None else None


def _receive(number: int, folder: Folder, pieces: Pieces, place: Path, machine: str) -> None:
    """Write every file beside its place, compare it, and move the whole folder there."""
    part = place.with_suffix(".part")
    try:
        for old in (part, place):  # of a worker that died, or damaged since
            if old.exists():
                shutil.rmtree(old)
        free = shutil.disk_usage(place.parent).free
        if folder.bytes > free:
            raise _full(folder, place, machine, f"{free / 1e9:.1f} GB are free")
        for count, file in enumerate(folder.files):
            _write(part / file.name, pieces(number, count), file, folder, machine)
        os.replace(part, place)
    except OSError as e:
        if e.errno in (errno.ENOSPC, errno.EDQUOT):
            raise _full(folder, place, machine, "it filled up meanwhile") from None
        raise EvoMergeError(f"{machine}: {place} cannot be written ({e.strerror or e}); set {VARIABLE} there") from None
    finally:
        with suppress(OSError):
            shutil.rmtree(part)


def _write(path: Path, pieces: Iterator[Any], file: File, folder: Folder, machine: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    digest = hashlib.sha256()
    with path.open("wb") as f:
        for piece in pieces:
            digest.update(piece)
            f.write(piece)
        f.flush()
        os.fsync(f.fileno())
    path.chmod(0o444)  # every worker of the machine maps it
    if digest.hexdigest() != file.sha256:
        raise SourceError(
            f"{folder.listed.what}: {folder.listed.home / file.name} came to {machine} with SHA-256 "
            f"{digest.hexdigest()}, expected {file.sha256}; it was changed since the search began, or damaged: "
            "start the same command again with a file that nobody writes to"
        )


def _full(folder: Folder, place: Path, machine: str, why: str) -> EvoMergeError:
    return EvoMergeError(
        f"{machine}: {folder.listed.what} needs {folder.bytes / 1e9:.1f} GB below {place.parent}, and {why}; "
        f"set {VARIABLE} there to a folder on a larger disk"
    )
