"""Finding a study's database from what a user types."""

from __future__ import annotations

import sqlite3
from pathlib import Path

import pytest

from evomerge.errors import StudyError
from evomerge.study.finding import databases, find_database


def make(folder: Path, name: str = "study.db") -> Path:
    folder.mkdir(parents=True)
    connection = sqlite3.connect(folder / name)
    connection.execute("CREATE TABLE t (x)")
    connection.commit()
    connection.close()
    return folder / name


def test_by_name_folder_or_file(tmp_path: Path) -> None:
    made = make(tmp_path / "runs" / "one")
    runs = tmp_path / "runs"
    assert find_database("one", runs) == made
    assert find_database(str(runs / "one"), runs) == made
    assert find_database(str(made), runs) == made
    assert find_database(None, runs) == made


def test_only_databases_count(tmp_path: Path) -> None:
    made = make(tmp_path / "one")
    (tmp_path / "one" / "a.db").write_text("text")
    assert databases(tmp_path / "one") == [made]


def test_messages(tmp_path: Path) -> None:
    runs = tmp_path / "runs"
    with pytest.raises(StudyError, match="holds no study; start one"):
        find_database(None, runs)
    make(runs / "one")
    make(runs / "two")
    (runs / "empty").mkdir()
    with pytest.raises(StudyError, match="2 studies, name one: one, two"):
        find_database(None, runs)
    with pytest.raises(StudyError, match='did you mean "two"'):
        find_database("twoo", runs)
    with pytest.raises(StudyError, match="holds no study"):
        find_database("empty", runs)
    (tmp_path / "file").write_text("text")
    with pytest.raises(StudyError, match="not a SQLite database"):
        find_database(str(tmp_path / "file"), runs)
