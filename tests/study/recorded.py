"""What a study's database holds, while it is written and at the end."""

from __future__ import annotations

import sqlite3
from pathlib import Path
from typing import Any

from evomerge.study.store import Store


def recorded(database: Path) -> int:
    """How many candidates are complete by now."""
    if not database.exists():
        return 0
    try:
        with sqlite3.connect(f"file:{database}?mode=ro", uri=True, timeout=5) as connection:
            return int(connection.execute("select count(*) from trials where state = 'COMPLETE'").fetchone()[0])
    except sqlite3.OperationalError:  # its tables are not there yet
        return 0


def sequence(out: Path | None, name: str = "s", *, url: str | None = None) -> list[tuple[Any, ...]]:
    """What was asked for and found, in order: number, parameters, state, reason and results of every item.

    Args:
        out: A folder with a study.db; or else the database's `url`.
    """
    return [
        (t.number, dict(t.params), t.state, t.reason, t.score and [x.results.tolist() for x in t.score.tasks])
        for t in Store(url or f"sqlite:///{out and out / 'study.db'}").open(name).trials()
    ]
