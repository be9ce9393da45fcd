"""Folders for what will be run: nobody else may put anything into them."""

from __future__ import annotations

import os
import stat
from pathlib import Path

_OTHERS = stat.S_IWGRP | stat.S_IWOTH


def private_folder(above: Path, *names: str) -> Path:
    """The folder `above/name/name...`, made where it is missing, each of the names ours alone.

    `above` is the user's choice (or the system's place for temporary files): it may be a link, and others may have
    folders of their own in it.

    Raises:
        OSError: it cannot be made, or somebody else could put something else in its place.
    """
    above.mkdir(parents=True, exist_ok=True, mode=0o700)
    _check_above(above)
    folder = above
    for name in names:
        folder = folder / name
        folder.mkdir(exist_ok=True, mode=0o700)
        found = folder.lstat()
        if not stat.S_ISDIR(found.st_mode):
            raise NotADirectoryError(f"{folder}: not a folder")
        _check_owner(folder, found)
        if found.st_mode & _OTHERS:
            # Made by an older version, or under a umask that lets the group write.
            folder.chmod(0o700)
    return folder


def check_file(file: Path) -> None:
    """Raise OSError unless it is a file of ours that nobody else can write to."""
    found = file.lstat()
    if not stat.S_ISREG(found.st_mode):
        raise OSError(f"{file}: not a plain file")
    _check_owner(file, found)
    if hasattr(os, "getuid") and found.st_mode & _OTHERS:
        raise PermissionError(f"{file}: others can write to it")


def _check_above(folder: Path) -> None:
    found = folder.stat()
    if not hasattr(os, "getuid"):
        return
    if found.st_uid not in (os.getuid(), 0):
        raise PermissionError(f"{folder}: belongs to another user")
    # In a sticky folder (/tmp) only the owner of a name may give it to something else. Groups are the user's affair.
    if found.st_mode & stat.S_IWOTH and not found.st_mode & stat.S_ISVTX:
        raise PermissionError(f"{folder}: everybody can write to it")


def _check_owner(path: Path, found: os.stat_result) -> None:
    if hasattr(os, "getuid") and found.st_uid != os.getuid():
        raise PermissionError(f"{path}: belongs to another user")
