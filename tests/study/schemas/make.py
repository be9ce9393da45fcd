"""Writes a finished raced study and a finished asynchronous one, as this version leaves them.

    python tests/study/schemas/make.py FOLDER NAME ...      # raced, asynchronous; default: both

Each is a search of the zoo's models by the command line; then the database as an SQL dump. What is in this folder is
never written again: a new form of the tables gets files of its own, under the day of the commit before the change.
"""

from __future__ import annotations

import contextlib
import gzip
import sqlite3
import sys
import tempfile
from pathlib import Path
from typing import Any

import yaml

from evomerge import presets
from evomerge.cli import main

SCHEMAS = Path(__file__).parent
EVALUATOR = {
    "include_path": str(presets.folder("evaluators") / "zoo"),
    "batch_size": 64,
    "tasks": [{"name": "kovesh_problems", "greedy_likelihood": True}, {"name": "kovesh_direction", "weight": 0}],
    "splits": {
        "search": {"share": 0.2, "items": 80},
        "select": {"share": 0.3, "items": 20},
        "test": {"share": 0.5, "items": 20},
    },
}
# By a sampler that is told estimates, and by one that is told ranks.
WAYS = {"raced": ("--fidelity", "race"), "asynchronous": ("--fidelity", "race", "--async", "--sampler", "cma")}
BUDGET = 9


def asked(folder: Path, way: str, budget: int = BUDGET, *more: str) -> list[Any]:
    """The search of a way, its evaluator written beside its database."""
    file = folder / "e.yaml"
    file.write_text(yaml.safe_dump(EVALUATOR))
    return ["search", "--evaluator", file, "--budget", budget, "--study", "s", "--workers", 0, "--out", folder,
            "--json", *WAYS[way], *more]  # fmt: skip


def restored(name: str, folder: Path) -> Path:
    """The database of a file of this folder, made again where a search keeps it."""
    file = folder / "study.db"
    with contextlib.closing(sqlite3.connect(file)) as connection:
        connection.executescript(gzip.decompress((SCHEMAS / f"{name}.sql.gz").read_bytes()).decode())
    return file


def dump(database: Path, to: Path) -> None:
    """A database as a compressed SQL dump, the same bytes for the same rows."""
    with contextlib.closing(sqlite3.connect(database)) as connection:
        text = "\n".join(connection.iterdump()) + "\n"
    to.write_bytes(gzip.compress(text.encode(), 9, mtime=0))


if __name__ == "__main__":
    for name in sys.argv[2:] or WAYS:
        with tempfile.TemporaryDirectory() as made:
            if code := main([str(a) for a in asked(Path(made), name)]):
                sys.exit(code)
            dump(Path(made) / "study.db", Path(sys.argv[1]) / f"{name}.sql.gz")
