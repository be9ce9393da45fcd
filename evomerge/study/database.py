"""Databases by their URL: drivers, passwords, and a look before use. What is no study is refused, nothing created."""

from __future__ import annotations

import importlib.util
import os
import sqlite3
from contextlib import closing
from pathlib import Path
from typing import Any

import sqlalchemy as sa

from evomerge.errors import StudyError, choose, first_line
from evomerge.hiding import hidden, is_secret

OPTUNA_TABLES = {"studies", "trials", "version_info"}
# All that Optuna and evomerge make: a database with some of these alone was cut off while it was being made.
OWN_TABLES = OPTUNA_TABLES | {
    "alembic_version",
    "evomerge_item_sets",
    "evomerge_jobs",
    "evomerge_joiners",
    "evomerge_leases",
    "evomerge_results",
    "evomerge_schema",
    "evomerge_scores",
    "evomerge_texts",
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
# Of each kind of server: its drivers as SQLAlchemy calls them, with the module each needs, the one that we test with
# first; and the extra that installs that one.
DRIVERS: dict[str, tuple[tuple[tuple[str, str], ...], str]] = {
    "postgresql": ((("psycopg", "psycopg"), ("psycopg2", "psycopg2")), "postgresql"),
    "mysql": ((("pymysql", "pymysql"), ("mysqldb", "MySQLdb")), "mysql"),
}
KINDS = ("sqlite", *DRIVERS)
# Seconds after which a server that says nothing counts as gone: drivers wait for ever by themselves.
CONNECT_SECONDS, ANSWER_SECONDS = 10, 120


def shown(url: str) -> str:
    """A storage URL for messages and results, its passwords hidden."""
    try:
        parsed = sa.make_url(url)
    except (sa.exc.ArgumentError, ValueError):
        return hidden(url, whole=True)
    if parsed.host and "@" in parsed.host:  # of a password with an @ in it that was taken for the host's beginning
        parsed = parsed.set(host=parsed.host.rpartition("@")[2])
    before, mark, query = parsed.render_as_string(hide_password=True).partition("?")
    return hidden(before) + hidden(mark + query, whole=True)


def connectable(url: str) -> sa.URL:
    """A storage URL with the driver that is installed, where it names none.

    Raises:
        StudyError: no URL, another kind of database, or the driver is not installed.
    """
    try:
        parsed = sa.make_url(url)
    except (sa.exc.ArgumentError, ValueError):
        hint = f"; for a file: sqlite:///{url}" if "://" not in url and shown(url) == url else ""
        raise StudyError(f'storage "{shown(url)}": expected a database URL{hint}') from None
    kind, _, driver = parsed.drivername.partition("+")
    # SQLAlchemy has a name of its own for MariaDB, which Optuna does not know.
    kind = {"mariadb": "mysql", "postgres": "postgresql"}.get(kind, kind)
    if kind not in KINDS:
        raise StudyError(f'storage {shown(url)}: unknown kind of database "{kind}"; {choose(kind, KINDS)}')
    if kind == "sqlite":
        return parsed
    if parsed.host and "@" in parsed.host:
        raise StudyError(f"storage {shown(url)}: a password with @ in it is written with %40 in its place")
    drivers, extra = DRIVERS[kind]
    if driver and driver not in dict(drivers):
        names = [f"{kind}+{d}" for d, _ in drivers]
        known = choose(parsed.drivername, names)
        raise StudyError(f'storage {shown(url)}: driver "{driver}" is not supported; {known}')
    wanted = [(d, module) for d, module in drivers if driver in ("", d)]
    for name, module in wanted:
        if importlib.util.find_spec(module) is not None:
            return parsed.set(drivername=f"{kind}+{name}")
    install = f"evomerge[{extra}]" if wanted[0] == drivers[0] else wanted[0][1]
    raise StudyError(f"storage {shown(url)}: its driver {wanted[0][1]} is not installed: pip install '{install}'")


def engine_options(url: sa.URL) -> dict[str, Any]:
    """What `create_engine` takes beside the URL: nothing waits for ever. What the URL itself says goes first."""
    kind = url.get_backend_name()
    if kind == "sqlite":
        return {"connect_args": {"timeout": 60}}
    if kind == "postgresql":
        arguments = {
            "connect_timeout": CONNECT_SECONDS, "keepalives_idle": 30, "keepalives_interval": 10, "keepalives_count": 3,
            "tcp_user_timeout": ANSWER_SECONDS * 1000, "application_name": "evomerge",
        }  # fmt: skip
    elif url.get_driver_name() == "pymysql":
        arguments = {
            "connect_timeout": CONNECT_SECONDS, "read_timeout": ANSWER_SECONDS, "write_timeout": ANSWER_SECONDS,
        }  # fmt: skip
    else:
        arguments = {"connect_timeout": CONNECT_SECONDS}
    return {"pool_pre_ping": True, "connect_args": {k: v for k, v in arguments.items() if k not in url.query}}


def make_engine(url: str) -> sa.Engine:
    """An engine for a storage.

    Raises:
        StudyError: see `connectable`.
    """
    found = connectable(url)
    return sa.create_engine(found, **engine_options(found))


def optuna_storage(url: str, **options: Any) -> Any:
    """Optuna's own storage object on a database.

    Raises:
        StudyError: see `connectable`.
    """
    import optuna

    found = connectable(url)
    # Optuna fills in what stands in braces; a password may have some.
    text = found.render_as_string(hide_password=False).replace("{", "{{").replace("}", "}}")
    return optuna.storages.RDBStorage(text, engine_kwargs=engine_options(found), **options)


def table_names(url: str, *, missing_ok: bool = False) -> set[str]:
    """The tables of a database; none where it is new.

    Args:
        missing_ok: Whether a SQLite file that is not there yet, or a database without tables, may be made.

    Raises:
        StudyError: no URL, no such file, no driver, not reachable, or a database of something else than Optuna.
    """
    parsed = connectable(url)
    if parsed.get_backend_name() == "sqlite" and not _sqlite_file(url, Path(parsed.database or ""), missing_ok):
        return set()
    engine = None
    try:
        engine = sa.create_engine(parsed, **engine_options(parsed))
        names = set(sa.inspect(engine).get_table_names())
    except Exception as e:  # drivers and SQLAlchemy raise many kinds; what the user needs is the URL and the reason
        raise StudyError(f"storage {shown(url)}: {reason(e, parsed)}") from None
    finally:
        if engine is not None:
            engine.dispose()
    unfinished = names <= OWN_TABLES and missing_ok
    if names and not names >= OPTUNA_TABLES and not unfinished:
        raise StudyError(f"storage {shown(url)}: is not a study (its tables: {', '.join(sorted(names)[:5])})")
    if not names and not missing_ok:
        raise StudyError(f"storage {shown(url)}: holds no study")
    return names


def reason(error: BaseException, url: sa.URL) -> str:
    """Why a database cannot be used, in words: without the password, and with what would be right."""
    said = str(getattr(error, "orig", None) or error.__cause__ or error).strip()
    code = _mysql_code(error)
    at = f"{url.host or 'localhost'}:{url.port or {'postgresql': 5432, 'mysql': 3306}.get(url.get_backend_name(), '')}"
    if code in (2002, 2003) or any(w in said for w in ("Connection refused", "timeout expired", "could not translate")):
        words = f"no server answers at {at}"
    elif code == 1049 or ("database" in said and "does not exist" in said):
        words = f'the server has no database "{url.database}"; make it there first (CREATE DATABASE {url.database})'
    elif "no password supplied" in said:
        words = (
            f'the server wants a password of user "{url.username or "(none)"}", and there is none in the URL, in '
            "PGPASSWORD or in ~/.pgpass (of the machine and process that search: a job has those of its Ray head)"
        )
    elif code in (1044, 1045, 1698) or "authentication failed" in said:
        where = "~/.pgpass or PGPASSWORD" if url.get_backend_name() == "postgresql" else "a file (?read_default_file=)"
        words = (
            f'the server does not take user "{url.username or "(none)"}" with this password; it is read from the URL '
            f"(@ as %40, / as %2F), or from {where}"
        )
    elif code == 1142 or "permission denied" in said:
        words = f'user "{url.username}" may not do that there'
    else:
        words = "cannot be used"
    # libpq's words begin with the address, and end with hints.
    first = first_line(said)
    first = first.rpartition("FATAL:")[2].strip() or first
    for secret in (url.password, *_secret_parts(url)):
        if secret and len(str(secret)) > 3:
            first = first.replace(str(secret), "***")
    return f"{words} ({first})"


def _secret_parts(url: sa.URL) -> list[str]:
    """Secrets behind the `?`; a part may be there several times."""
    return [v for name, values in url.normalized_query.items() if is_secret(name) for v in values]


def _mysql_code(error: BaseException) -> int | None:
    arguments = getattr(getattr(error, "orig", None) or error.__cause__, "args", ())
    return arguments[0] if arguments and isinstance(arguments[0], int) else None


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
