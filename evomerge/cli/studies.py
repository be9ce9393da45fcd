"""Opening the study that a user names, by its folder, its name, or a storage."""

from __future__ import annotations

import contextlib
import json
from pathlib import Path
from typing import TYPE_CHECKING

from evomerge.cli.runs import RUNS, find_database

if TYPE_CHECKING:
    from evomerge.study.store import Store


def open_study(asked: str, storage: str | None) -> tuple[Store, str, Path | None]:
    """The database, the study's name in it, and its output folder, where there is one on this machine.

    Args:
        asked: Its name, or its folder; STUDY/parameter, STUDY/random search, ... are searches of its own.
        storage: The database; default: found by the name.

    Raises:
        StudyError: there is no such study.
    """
    from evomerge.errors import StudyError, choose
    from evomerge.study.database import shown
    from evomerge.study.place import sqlite_path, storage_url
    from evomerge.study.store import Store

    if storage:
        url = storage_url(storage)
        store, name = Store(url), asked
        if name not in store.names():
            raise StudyError(f'storage {shown(url)}: no study "{name}"; {choose(name, store.names())}')
        file = sqlite_path(url)
        beside = [file.parent] if file is not None else []
        return store, name, next((f for f in (RUNS / name.partition("/")[0], *beside) if _is_of(f, name)), None)
    database, part = located(asked)
    store = Store(f"sqlite:///{database.resolve()}")
    names = store.names()
    name = asked if asked in names else "/".join(filter(None, (main_study(names, asked), part)))
    if name not in names:
        raise StudyError(f'study "{asked}": {database} holds none of that name; {choose(name, names)}')
    return store, name, database.parent


def located(asked: str) -> tuple[Path, str]:
    """The database of a study, and which of its searches is asked for: STUDY/parameter, STUDY/random search, ..."""
    from evomerge.errors import StudyError

    try:
        return find_database(asked), ""
    except StudyError:
        parent, _, part = asked.rpartition("/")
        if parent:
            with contextlib.suppress(StudyError):
                return find_database(parent), part
        raise


def main_study(names: list[str], asked: str) -> str:
    """The study of a database that was named by its folder: the one that is no control."""
    from evomerge.errors import StudyError, choose

    main = [n for n in names if "/" not in n]
    if len(main) != 1:
        raise StudyError(f'study "{asked}": the database holds {len(main)} studies; {choose(Path(asked).name, names)}')
    return main[0]


def _is_of(folder: Path, name: str) -> bool:
    """Whether a folder holds the results of a study."""
    try:
        found = json.loads((folder / "result.json").read_text(encoding="utf-8"))
        return isinstance(found, dict) and found.get("study") == name.partition("/")[0]
    except (OSError, ValueError):
        return False
