"""Opening a database of studies: its tables made where they are to be, and those of another version refused."""

from __future__ import annotations

import random
import time
from typing import Any

import sqlalchemy as sa

from evomerge.errors import StudyError
from evomerge.study import schema
from evomerge.study.database import connectable, make_engine, optuna_storage, reason, shown, table_names
from evomerge.study.retrying import is_transient

# How often tables are tried to be made: another process may be making them at the same time.
_MAKING = 5


def open_storage(url: str, create: bool) -> Any:
    """Optuna's storage object on a database of ours.

    Args:
        create: Make the tables where they are not there; else a database without them is refused.

    Raises:
        StudyError: see `Store`.
    """
    for left in range(_MAKING - 1, -1, -1):
        there = table_names(url, missing_ok=create)
        if not create and not there >= schema.NAMES:
            raise StudyError(f"storage {shown(url)}: holds no study of evomerge")
        try:
            if create and there:
                _complete(url, there)
            # A database that Optuna has finished is left as it is: what an older version made is told, not added to.
            found = optuna_storage(url, skip_table_creation=not create or "alembic_version" in there)
            schema.check(found.engine, f"storage {shown(url)}")
            if create:
                schema.create(found.engine)
        except StudyError:
            raise
        except Exception as e:  # drivers and SQLAlchemy raise many kinds; what the user needs is the URL and the reason
            if create and left and (is_transient(e) or isinstance(e, sa.exc.IntegrityError) or "exists" in str(e)):
                # Another process makes the same tables at this moment, which no database takes well.
                time.sleep(random.uniform(0.1, 0.5))
                continue
            raise StudyError(f"storage {shown(url)}: {_reason(e, url)}") from None
        return found
    raise AssertionError("the last try returns or raises")


def _complete(url: str, there: set[str]) -> None:
    """Make the indexes that tables lack. Where DDL is no transaction, a process may be killed between a table and its
    indexes, and nobody makes these later: without the one of studies' names there would soon be two of a name.
    """
    from optuna.storages._rdb.models import BaseModel

    engine = make_engine(url)
    try:
        for metadata in (BaseModel.metadata, schema.metadata):
            for table in metadata.sorted_tables:
                for index in table.indexes if table.name in there else ():
                    index.create(engine, checkfirst=True)
    finally:
        engine.dispose()


def open_tables(url: str) -> Any:
    """Optuna's storage object on a database with its tables, evomerge's or not; nothing is made.

    Raises:
        StudyError: the database cannot be used, or another version of Optuna made it.
    """
    try:
        return optuna_storage(url, skip_table_creation=True)
    except StudyError:
        raise
    except Exception as e:
        raise StudyError(f"storage {shown(url)}: {_reason(e, url)}") from None


def _reason(error: Exception, url: str) -> str:
    # Optuna's own words of tables that another version of it made.
    if isinstance(error, RuntimeError) and "table schema" in str(error):
        return str(error).replace("$STORAGE_URL", shown(url)).replace("$ ", "")
    return reason(error, connectable(url))
