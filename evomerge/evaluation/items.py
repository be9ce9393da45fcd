"""Items of one's own: a JSONL file, one object per line, divided like any others."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from typing import Any

from evomerge.errors import EvaluatorError
from evomerge.evaluation.config import SPLITS, EvaluatorFile, Split
from evomerge.evaluation.splits import Item, Places, divide


class ItemFile:
    """The items that `items: FILE.jsonl` names; every task has the same. None of them where the key is not there.

    Attributes:
        given: Whether the evaluator names a file.
        contents: Each line.

    Raises:
        EvaluatorError: the file is missing or is not JSONL, or a split would be empty.
    """

    def __init__(self, file: EvaluatorFile) -> None:
        self._tasks = [t.name for t in file.config.tasks]
        self.given = file.config.items is not None
        self.contents: list[dict[str, Any]] = []
        self._split: dict[Split, list[Item]] = {split: [] for split in SPLITS}
        if file.config.items is not None:
            self.contents = _read(file, file.config.items)
            where = f"{file.file}: items = {file.config.items}"
            self._split = divide(self.contents, file.config.splits, file.config.split_seed, where)

    def ids(self, split: Split) -> Mapping[str, tuple[str, ...]]:
        """See `Evaluator.items`."""
        return {task: tuple(i.id for i in self._split[split]) for task in self._tasks}

    def texts(self, split: Split) -> Mapping[str, tuple[str, ...]]:
        """See `Evaluator.texts`: the strings and numbers of each item, in its order."""
        found = tuple(" ".join(_leaves(self.contents[i.index])) for i in self._split[split])
        return {task: found for task in self._tasks}

    def chosen(self, split: Split, only: Places | None) -> list[Item]:
        """The items of a split, or those of the places that are named for any task."""
        items = self._split[split]
        if only is None:
            return items
        return [items[place] for place in sorted({p for places in only.values() for p in places})]


def _read(file: EvaluatorFile, name: str) -> list[dict[str, Any]]:
    path = file.path(name, "items")
    contents: list[dict[str, Any]] = []
    for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), 1):
        if not line.strip():
            continue
        try:
            content = json.loads(line)
        except ValueError as e:
            raise EvaluatorError(f"{path}:{number}: not JSON: {e}") from None
        if not isinstance(content, dict):
            kind = f"{type(content).__name__} {str(content)[:60]}"
            raise EvaluatorError(f"{path}:{number}: expected a JSON object, got {kind}")
        contents.append(content)
    return contents


def _leaves(content: Any) -> Iterator[str]:
    if isinstance(content, Mapping):
        content = list(content.values())
    if isinstance(content, list):
        for part in content:
            yield from _leaves(part)
    elif content is not None and not isinstance(content, bool):
        yield str(content)
