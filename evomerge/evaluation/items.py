"""Items of one's own: a JSONL file, one object per line, divided like any others; what evaluators over them share."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, MutableMapping, Sequence
from pathlib import PurePath
from typing import Any

from evomerge.errors import EvaluatorError
from evomerge.evaluation.config import SPLITS, Split
from evomerge.evaluation.evaluator import settings
from evomerge.evaluation.file import EvaluatorFile
from evomerge.evaluation.pictures import READING, Pictures, check_pillow
from evomerge.evaluation.splits import Item, Places, content_id, divide


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
        self._pictures: Pictures | None = None
        self._hashed: list[dict[str, Any]] = []
        if file.config.items is not None:
            self.contents = _read(file, file.config.items)
            where = f"{file.file}: items = {file.config.items}"
            self._pictures = pictures_of(file, self.contents)
            # By what is in the pictures, not by what they are called.
            self._hashed = [self._pictures.hashed(c) for c in self.contents] if self._pictures else self.contents
            self._split = divide(self._hashed, file.config.splits, file.config.split_seed, where)

    def ids(self, split: Split) -> Mapping[str, tuple[str, ...]]:
        """See `Evaluator.items`."""
        return {task: tuple(i.id for i in self._split[split]) for task in self._tasks}

    def texts(self, split: Split) -> Mapping[str, tuple[str, ...]]:
        """See `Evaluator.texts`: the strings and numbers of each item, in its order; of pictures their hashes, by which
        one question about two pictures is two items."""
        found = tuple(" ".join(_leaves(self._hashed[i.index])) for i in self._split[split])
        return {task: found for task in self._tasks}

    def shown(self, item: Item) -> MutableMapping[str, Any]:
        """An item as whoever scores it gets it: with its pictures, each decoded when it is asked for."""
        content = self.contents[item.index]
        return self._pictures.opened(content) if self._pictures else content

    def chosen(self, split: Split, only: Places | None) -> list[Item]:
        """The items of a split, or those of the places that are named for any task."""
        items = self._split[split]
        if only is None:
            return items
        return [items[place] for place in sorted({p for places in only.values() for p in places})]


def pictures_of(file: EvaluatorFile, contents: Sequence[Mapping[str, Any]]) -> Pictures | None:
    """Where the pictures of an evaluator's items are; None where it names none.

    Raises:
        EvaluatorError: one of them is missing, lies outside of the items' folder or cannot be decoded, or Pillow is not
            installed.
    """
    config = file.config
    if not config.images or config.items is None:
        return None
    check_pillow(f"{file.file}: images")
    folder = file.path(str(PurePath(config.items).parent), "images")
    found = Pictures(folder, config.images, f"{file.file}: items = {config.items}")
    for number, content in enumerate(contents, 1):
        list(found.names(content, number))
    return found


def picture_names(file: EvaluatorFile) -> list[str]:
    """The files of pictures that an evaluator's items name, relative to the folder of the items, each once."""
    contents = _read(file, file.config.items) if file.config.items is not None else []
    found = pictures_of(file, contents)
    listed = [name for n, c in enumerate(contents, 1) for name in found.names(c, n)] if found is not None else []
    return list(dict.fromkeys(listed))


class ItemEvaluator:
    """What evaluators whose tasks all have the items of one file share; see `Evaluator`.

    Such a file is not needed: who scores may bring its own items. It gives numbers, not answers.
    """

    def __init__(self, file: EvaluatorFile) -> None:
        self._file = file
        self._config = file.config
        self._items = ItemFile(file)

    @property
    def sees(self) -> bool:
        """See `Evaluator.sees`."""
        return False

    def items(self, split: Split) -> Mapping[str, tuple[str, ...]]:
        """Ids of each task's items in a split; none where there is no file."""
        return self._items.ids(split)

    def searched(self) -> Sequence[str]:
        """See `Evaluator.searched`."""
        return [t.name for t in self._config.tasks if self._config.searched(t)]

    def groups(self) -> Mapping[str, Sequence[str]]:
        """None: every task is one."""
        return {}

    def texts(self, split: Split) -> Mapping[str, tuple[str, ...]]:
        """See `Evaluator.texts`: the strings and numbers of each item, in its order; every task has the same items."""
        return self._items.texts(split)

    def definition(self) -> dict[str, str]:
        """Nothing beyond the evaluator's fingerprint, which holds the hashes of the items and of files it names."""
        return {}

    def measures(self, task: str) -> Sequence[str]:
        """None: there are no answers."""
        return ()

    def versions(self) -> dict[str, str]:
        """See `Evaluator.versions`. What is run beyond the files that the evaluator names is not known."""
        shared = settings(self._file) | ({"pictures": READING} if self._config.images else {})
        return {
            t.name: content_id(shared | {"task": t.name, "metric": t.metric, "higher": t.higher_is_better is not False})
            for t in self._config.tasks
        }


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
