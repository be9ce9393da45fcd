"""Finding a study from what a user types: nothing, its name, its folder, its database's file, or a storage."""

from __future__ import annotations

import contextlib
import json
import re
from collections.abc import Collection
from pathlib import Path
from typing import TYPE_CHECKING

from evomerge.errors import StudyError, choose
from evomerge.hiding import hidden

if TYPE_CHECKING:
    from evomerge.study.store import Store

RUNS = Path("runs")
# How a database's URL begins; where somebody forgot that, it may be known by the password in it.
_URL = re.compile(r"[A-Za-z][\w+.-]*://|(?:sqlite|postgres|mysql|mariadb)[\w+]*:", re.IGNORECASE)


def find_database(study: str | None, runs: Path = RUNS) -> Path:
    """The SQLite file of a study.

    Args:
        study: A name in `runs`, an output folder, a database file, or None for the only study there is.
        runs: The folder of output folders.

    Raises:
        StudyError: there is none, or (study=None) more than one, or a database's URL stands in its place.
    """
    if study is None:
        return _only(runs)
    check_no_url(study, "study")
    given = Path(study)
    if given.is_file():
        return _checked(given)
    for folder in (given, runs / study):
        if folder.is_dir():
            found = databases(folder)
            if found:
                return found[0]
            raise StudyError(f"{folder}: holds no study (no SQLite database)")
    names = [f.name for f in _folders(runs)]
    known = choose(study, names) if names else f"{runs}/ holds none"
    raise StudyError(f'study "{study}": no such study, folder or database; {known}')


def is_url(text: str) -> bool:
    """Whether a text is a database's URL, or meant to be one, and no path that is there."""
    return bool(_URL.match(text) or hidden(text, whole=True) != text) and not Path(text).exists()


def check_no_url(text: str, what: str) -> None:
    """Refuse a database's URL where a study or a folder is expected; it may hold a password, which is not shown.

    Args:
        what: What messages call it.

    Raises:
        StudyError: it is one.
    """
    if is_url(text):
        raise StudyError(
            f'{what} "{hidden(text, whole=True)}": is the URL of a database, which is given by --storage; expected the '
            "name of a study in it, or a folder"
        )


def databases(folder: Path) -> list[Path]:
    """SQLite files of a folder, sorted by name."""
    return sorted(f for f in folder.iterdir() if f.is_file() and _is_sqlite(f))


def _only(runs: Path) -> Path:
    folders = _folders(runs)
    if not folders:
        raise StudyError(f"{runs}/ holds no study; start one: evomerge search --budget 100 (or give --storage URL)")
    if len(folders) > 1:
        raise StudyError(f"{runs}/ holds {len(folders)} studies, name one: {', '.join(f.name for f in folders)}")
    return databases(folders[0])[0]


def _folders(runs: Path) -> list[Path]:
    return sorted(f for f in runs.iterdir() if f.is_dir() and databases(f)) if runs.is_dir() else []


def _checked(file: Path) -> Path:
    if not _is_sqlite(file):
        raise StudyError(f"{file}: is not a SQLite database")
    return file


def _is_sqlite(file: Path) -> bool:
    # Loads SQLAlchemy, which `evomerge --help` does without.
    from evomerge.study.database import is_sqlite

    return is_sqlite(file)


def open_study(asked: str, storage: str | None) -> tuple[Store, str, Path | None]:
    """The database, the study's name in it, and its output folder, where there is one on this machine.

    Args:
        asked: Its name, or its folder; STUDY/parameter, STUDY/random search, ... are searches of its own.
        storage: The database; default: found by the name.

    Raises:
        StudyError: there is no such study.
    """
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
    try:
        return find_database(asked), ""
    except StudyError:
        parent, _, part = asked.rpartition("/")
        if parent:
            with contextlib.suppress(StudyError):
                return find_database(parent), part
        raise


def no_candidate(study: str, number: object, numbers: Collection[int]) -> StudyError:
    """The error where a study has no candidate of a number.

    Args:
        numbers: Those that it has.
    """
    if not numbers:
        return StudyError(f'study "{study}": no candidate {number}; it has no candidates yet')
    return StudyError(f'study "{study}": no candidate {number}; it has {min(numbers)} to {max(numbers)}')


def main_study(names: list[str], asked: str) -> str:
    """The study of a database that was named by its folder: the one that is no control."""

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
