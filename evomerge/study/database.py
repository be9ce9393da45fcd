"""Looking at a database before it is used: nothing is created, and what is no study is refused."""

from __future__ import annotations

import os
import sqlite3
from contextlib import closing
from pathlib import Path

import sqlalchemy as sa

from evomerge.errors import StudyError

OPTUNA_TABLES = {"studies", "trials", "version_info"}
# All that Optuna and evomerge make: a database with some of these alone was cut off while it was being made.
OWN_TABLES = OPTUNA_TABLES | {
    "alembic_version",
    "evomerge_item_sets",
    "evomerge_results",
    "evomerge_scores",
    "study_directions",
    "study_system_attributes",
    "study_user_attributes",
    "trial_heartbeats",
    "trial_intermediate_values",
    "trial_params",
    "trial_system_attributes",
    "trial_user_attributes",
    "trial_values",
}


def shown(url: str) -> str:
    """A storage URL for messages and results, its password hidden."""
    try:
        return sa.make_url(url).render_as_string(hide_password=True)
    except sa.exc.ArgumentError:
        return url


def table_names(url: str, *, missing_ok: bool = False) -> set[str]:
    """The tables of a database; none where it is new.

    Args:
        missing_ok: Whether a SQLite file that is not there yet, or a database without tables, may be made.

    Raises:
        StudyError: no URL, no such file, no driver, not reachable, or a database of something else than Optuna.
    """
    try:
        parsed = sa.make_url(url)
    except sa.exc.ArgumentError:
        hint = f"; for a file: sqlite:///{url}" if "://" not in url else ""
        raise StudyError(f'storage "{url}": expected a database URL{hint}') from None
    if parsed.get_backend_name() == "sqlite" and not _sqlite_file(url, Path(parsed.database or ""), missing_ok):
        return set()
    engine = None
    try:
        engine = sa.create_engine(parsed)
        names = set(sa.inspect(engine).get_table_names())
    except sa.exc.NoSuchModuleError:
        known = "expected sqlite, postgresql or mysql"
        raise StudyError(f"storage {shown(url)}: unknown kind of database; {known}") from None
    except ModuleNotFoundError as e:
        raise StudyError(f"storage {shown(url)}: its driver is not installed: pip install {e.name}") from None
    except sa.exc.SQLAlchemyError as e:
        reason = str(getattr(e, "orig", None) or e).strip().splitlines()[0]
        raise StudyError(f"storage {shown(url)}: cannot be opened ({reason})") from None
    finally:
        if engine is not None:
            engine.dispose()
    unfinished = names <= OWN_TABLES and missing_ok
    if names and not names >= OPTUNA_TABLES and not unfinished:
        raise StudyError(f"storage {shown(url)}: is not a study (its tables: {', '.join(sorted(names)[:5])})")
    if not names and not missing_ok:
        raise StudyError(f"storage {shown(url)}: holds no study")
    return names


def is_sqlite(path: Path) -> bool:
    """Whether a file is a SQLite database; False where it cannot be read.

    SQLite itself is asked: a process that opens and closes such a file by other means loses the locks that its
    connections hold on it, and another process that ends then takes away the log that they write to
    (https://www.sqlite.org/howtocorrupt.html, 2.2).
    """
    try:
        with closing(sqlite3.connect(f"{path.resolve().as_uri()}?mode=ro", uri=True)) as connection:
            connection.execute("PRAGMA schema_version").fetchone()
    except sqlite3.DatabaseError as e:
        # What cannot be opened may still be one, on a disk that cannot be written: its reader says why.
        return e.sqlite_errorcode != sqlite3.SQLITE_NOTADB and path.is_file() and os.access(path, os.R_OK)
    return path.stat().st_size > 0


def _sqlite_file(url: str, path: Path, missing_ok: bool) -> bool:
    """Whether a SQLite file is there with something in it; SQLite itself would create a missing one."""
    if not path.exists():
        if not missing_ok:
            raise StudyError(f"storage {url}: no such file ({path})")
        return False
    if path.is_dir():
        raise StudyError(f"storage {url}: {path} is a folder, expected a database file")
    if not path.stat().st_size:
        if not missing_ok:
            raise StudyError(f"storage {url}: {path} is empty")
        return False
    if not is_sqlite(path):
        raise StudyError(f"storage {url}: {path} is not a SQLite database")
    return True
