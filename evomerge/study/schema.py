"""Our own tables beside Optuna's, and what databases do each in their own way: clocks, lengths, inserts."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import sqlalchemy as sa
from sqlalchemy.dialects import mysql, postgresql, sqlite
from sqlalchemy.ext.compiler import compiles
from sqlalchemy.sql.functions import FunctionElement

from evomerge import __version__
from evomerge.errors import StudyError

# 1: scores and results. 2: leases, jobs, texts. A database of a higher one than the program knows is refused.
SCHEMA = 2

metadata = sa.MetaData()


class clock(FunctionElement[float]):
    """Seconds since 1970 by the database's clock: those of several machines differ."""

    type = sa.Float(53)
    inherit_cache = True


@compiles(clock, "sqlite")
def _sqlite_clock(element: clock, compiler: Any, **_: Any) -> str:
    return "((julianday('now') - 2440587.5) * 86400.0)"


@compiles(clock, "postgresql")
def _postgresql_clock(element: clock, compiler: Any, **_: Any) -> str:
    # now() is when the transaction began, which may have waited for a lock since.
    return "CAST(extract(epoch FROM clock_timestamp()) AS double precision)"


@compiles(clock, "mysql")
def _mysql_clock(element: clock, compiler: Any, **_: Any) -> str:
    # UNIX_TIMESTAMP() goes by the session's time zone, and jumps where that changes to and from summer time.
    return "(TIMESTAMPDIFF(MICROSECOND, '1970-01-01', UTC_TIMESTAMP(6)) / 1e6)"


def _name(length: int) -> sa.types.TypeEngine[str]:
    """A name by which something is found. MySQL takes "A" for "a" unless it is told otherwise."""
    exact = mysql.VARCHAR(length, charset="utf8mb4", collation="utf8mb4_bin")
    return sa.String(length).with_variant(exact, "mysql")


def _text() -> sa.types.TypeEngine[str]:
    """Of any length: MySQL's TEXT ends after 64 KiB."""
    return sa.Text().with_variant(mysql.LONGTEXT(charset="utf8mb4", collation="utf8mb4_bin"), "mysql")


def _bytes() -> sa.types.TypeEngine[bytes]:
    return sa.LargeBinary().with_variant(mysql.LONGBLOB(), "mysql")


_INNODB: dict[str, Any] = {"mysql_engine": "InnoDB", "mysql_charset": "utf8mb4"}

version = sa.Table(
    "evomerge_schema",
    metadata,
    sa.Column("id", sa.Integer, primary_key=True, autoincrement=False),
    sa.Column("version", sa.Integer, nullable=False),
    sa.Column("program", sa.String(64), nullable=False),
    **_INNODB,
)

item_sets = sa.Table(
    "evomerge_item_sets",
    metadata,
    sa.Column("id", sa.String(64), primary_key=True),
    sa.Column("item_ids", _text(), nullable=False),
    **_INNODB,
)

scores = sa.Table(
    "evomerge_scores",
    metadata,
    sa.Column("study_id", sa.Integer, primary_key=True),
    sa.Column("subject", _name(255), primary_key=True),
    sa.Column("split", sa.String(16), primary_key=True),
    sa.Column("place", sa.Integer, primary_key=True),
    sa.Column("task", _name(255), nullable=False),
    sa.Column("metric", _name(255), nullable=False),
    sa.Column("value", sa.Float(53), nullable=False),
    sa.Column("weight", sa.Float(53), nullable=False),
    sa.Column("flipped", sa.Boolean, nullable=False),
    sa.Column("item_set", sa.String(64), nullable=False),
    sa.Column("results", _bytes(), nullable=False),
    **_INNODB,
)

results = sa.Table(
    "evomerge_results",
    metadata,
    sa.Column("model", sa.String(64), primary_key=True),
    sa.Column("evaluator", sa.String(64), primary_key=True),
    sa.Column("item_set", sa.String(64), primary_key=True),
    sa.Column("study_id", sa.Integer, nullable=False),
    sa.Column("trial", sa.Integer, nullable=False),
    sa.Column("results", _bytes(), nullable=False),
    **_INNODB,
)

# What is too long for Optuna's attributes of a study in MySQL.
texts = sa.Table(
    "evomerge_texts",
    metadata,
    sa.Column("study_id", sa.Integer, primary_key=True, autoincrement=False),
    sa.Column("key", _name(255), primary_key=True),
    sa.Column("value", _text(), nullable=False),
    **_INNODB,
)

# Who drives a study: one process at a time. `process` is what tells it from others of its machine, see `holder`.
leases = sa.Table(
    "evomerge_leases",
    metadata,
    sa.Column("study", _name(512), primary_key=True),
    sa.Column("token", sa.String(32), nullable=False),
    sa.Column("host", sa.String(255), nullable=False),
    sa.Column("machine", sa.String(255), nullable=False),
    sa.Column("pid", sa.Integer, nullable=False),
    sa.Column("process", sa.String(64), nullable=False),
    sa.Column("user", sa.String(255), nullable=False),
    sa.Column("since", sa.Float(53), nullable=False),
    sa.Column("expires", sa.Float(53), nullable=False),
    sa.Column("offer", _text(), nullable=True),
    **_INNODB,
)

# Processes that add their workers to a search; `session` is the token of the driver's lease.
joiners = sa.Table(
    "evomerge_joiners",
    metadata,
    sa.Column("token", sa.String(32), primary_key=True),
    sa.Column("session", sa.String(32), nullable=False, index=True),
    sa.Column("host", sa.String(255), nullable=False),
    sa.Column("machine", sa.String(255), nullable=False),
    sa.Column("pid", sa.Integer, nullable=False),
    sa.Column("process", sa.String(64), nullable=False),
    sa.Column("workers", sa.Integer, nullable=False),
    sa.Column("expires", sa.Float(53), nullable=False),
    **_INNODB,
)

# What they are asked to score, and what came of it.
jobs = sa.Table(
    "evomerge_jobs",
    metadata,
    sa.Column("id", sa.Integer, primary_key=True, autoincrement=True),
    sa.Column("session", sa.String(32), nullable=False, index=True),
    sa.Column("key", sa.String(32), nullable=False, unique=True),
    sa.Column("job", _text(), nullable=False),
    sa.Column("joiner", sa.String(32), nullable=True),
    sa.Column("expires", sa.Float(53), nullable=True),
    sa.Column("tries", sa.Integer, nullable=False),
    sa.Column("answer", _text(), nullable=True),
    **_INNODB,
)

# What a database of studies has had from the first version on.
NAMES = {item_sets.name, scores.name}


def create(engine: sa.Engine) -> None:
    """Make the tables where they are not there yet, and note their version."""
    metadata.create_all(engine)
    with engine.begin() as connection:
        insert_new(connection, version, [{"id": 1, "version": SCHEMA, "program": __version__}])
        connection.execute(
            sa.update(version).where(version.c.version < SCHEMA).values(version=SCHEMA, program=__version__)
        )


def check(engine: sa.Engine, where: str) -> None:
    """Raise where our tables are not those that this version makes.

    Args:
        where: What messages begin with.

    Raises:
        StudyError: a newer version made them, or something else did.
    """
    found = sa.inspect(engine)
    there = set(found.get_table_names()) & set(metadata.tables)
    for name in sorted(there):
        columns = {c["name"] for c in found.get_columns(name)}
        missing = [c.name for c in metadata.tables[name].columns if c.name not in columns]
        if missing:
            raise StudyError(f"{where}: its table {name} is not evomerge's: it has no column {', '.join(missing)}")
    if version.name not in there:
        return
    with engine.connect() as connection:
        row = connection.execute(sa.select(version.c.version, version.c.program)).first()
    if row is not None and row.version > SCHEMA:
        raise StudyError(
            f"{where}: was written by evomerge {row.program} (tables of version {row.version}); evomerge {__version__} "
            f"knows them up to version {SCHEMA}; expected evomerge {row.program} or newer"
        )


def insert_new(connection: sa.Connection, table: sa.Table, rows: Sequence[Mapping[str, Any]]) -> None:
    """Insert rows whose keys are not there yet; of those that are, nothing changes."""
    statement: Any
    match connection.dialect.name:
        case "postgresql":
            statement = postgresql.insert(table).on_conflict_do_nothing()
        case "mysql":
            # IGNORE would also cut what is too long; a key set to itself changes nothing.
            key = next(iter(table.primary_key.columns)).name
            statement = mysql.insert(table).on_duplicate_key_update({key: table.c[key]})
        case _:
            statement = sqlite.insert(table).on_conflict_do_nothing()
    for row in rows:
        connection.execute(statement.values(**row))
