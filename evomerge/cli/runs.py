"""Finding a study's database from what a user types: nothing, a study's name, its folder, or the file itself."""

from __future__ import annotations

from pathlib import Path

from evomerge.errors import StudyError, choose

RUNS = Path("runs")


def find_database(study: str | None, runs: Path = RUNS) -> Path:
    """The SQLite file of a study.

    Args:
        study: A name in `runs`, an output folder, a database file, or None for the only study there is.
        runs: The folder of output folders.

    Raises:
        StudyError: there is none, or (study=None) more than one.
    """
    if study is None:
        return _only(runs)
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
