"""The lm-eval tasks and their data."""

from __future__ import annotations

from pathlib import Path

import pytest

from evomerge.zoo import tasks as writer
from evomerge.zoo.curriculum import held_out, tasks

FOLDER = Path(__file__).parents[2] / "evaluators" / "zoo"


def test_the_folder_is_what_the_code_writes(tmp_path: Path) -> None:
    writer.write(tmp_path)
    writer.write_texts(tmp_path)
    written = sorted(file.name for file in tmp_path.iterdir())
    assert written == sorted(file.name for file in FOLDER.iterdir() if file.is_file())
    for name in written:
        assert (FOLDER / name).read_bytes() == (tmp_path / name).read_bytes(), name


def test_tasks_load_in_lm_eval_from_any_directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from lm_eval.tasks import TaskManager

    monkeypatch.chdir(tmp_path)
    manager = TaskManager(include_path=str(FOLDER), include_defaults=False)
    for task in tasks():
        loaded = manager.load([task.name])["tasks"][task.name]
        documents = list(loaded.test_docs())
        items = held_out()[task.name]
        assert len(documents) == len(items)
        first = documents[0]
        assert loaded.doc_to_text(first) == items[0].prompt
        if task.generated:
            assert loaded.doc_to_target(first) == items[0].answer
        else:
            assert first["choices"][loaded.doc_to_target(first)] == items[0].answer
