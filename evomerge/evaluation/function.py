"""`kind: python`: a function of one's own scores the live model.

    def score(model, tokenizer, items): ...      # with `items: FILE.jsonl`: one result per item, in order
    def score(model, tokenizer, split): ...      # without: "search", "select" or "test"; {item id: result} or a number

With several tasks the function returns a mapping from task name to such a value.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import torch

from evomerge.errors import CandidateError, EvaluatorError
from evomerge.evaluation.config import SPLITS, EvaluatorFile, Split, TaskConfig
from evomerge.evaluation.evaluator import settings
from evomerge.evaluation.finite import finite_logits
from evomerge.evaluation.seeds import seed_all
from evomerge.evaluation.splits import Item, Places, content_id, divide
from evomerge.functions import load_function
from evomerge.score import Score, TaskScore


class FunctionEvaluator:
    """`kind: python`. See `Evaluator` for the contract."""

    def __init__(self, file: EvaluatorFile) -> None:
        self._file = file
        self._config = file.config
        self._function = self._load(file.config.function or "")
        self._contents: list[dict[str, Any]] = []
        self._split: dict[Split, list[Item]] = {split: [] for split in SPLITS}
        if file.config.items:
            self._contents = self._read(file.config.items)
            where = f"{file.file}: items = {file.config.items}"
            self._split = divide(self._contents, file.config.splits, file.config.split_seed, where)

    def items(self, split: Split) -> Mapping[str, tuple[str, ...]]:
        """Ids of each task's items in a split (none where the function brings its own)."""
        return {t.name: tuple(i.id for i in self._split[split]) for t in self._config.tasks}

    def searched(self) -> Sequence[str]:
        """See `Evaluator.searched`."""
        return [t.name for t in self._config.tasks if self._config.searched(t)]

    def groups(self) -> Mapping[str, Sequence[str]]:
        """None: every task is one."""
        return {}

    def texts(self, split: Split) -> Mapping[str, tuple[str, ...]]:
        """See `Evaluator.texts`: the strings and numbers of each item, in its order; every task has the same items."""
        found = tuple(" ".join(_leaves(self._contents[i.index])) for i in self._split[split])
        return {t.name: found for t in self._config.tasks}

    def definition(self) -> dict[str, str]:
        """Nothing beyond the file's fingerprint, which holds the hashes of function and items."""
        return {}

    def measures(self, task: str) -> Sequence[str]:
        """None: a function gives numbers, not answers."""
        return ()

    def versions(self) -> dict[str, str]:
        """See `Evaluator.versions`. A function that brings its own items is known by its file alone."""
        shared = settings(self._file)
        return {
            t.name: content_id(shared | {"task": t.name, "metric": t.metric, "higher": t.higher_is_better is not False})
            for t in self._config.tasks
        }

    def evaluate(self, model: Any, tokenizer: Any, split: Split, only: Places | None = None) -> Score:
        """Score a model on a split; see `Evaluator.evaluate`. Every task has the same items.

        Raises:
            EvaluatorError: some items are asked for, and the function brings its own.
            CandidateError: what it returns is not a finite number for each item and task.
        """
        if only is not None and not self._config.items:
            raise EvaluatorError(f"{self._file.file}: function: it brings its own items, so no part of them can be run")
        items = self._split[split]
        if only is not None:
            items = [items[place] for place in sorted({p for places in only.values() for p in places})]
        seed_all(self._config.seed)
        argument: Any = [self._contents[i.index] for i in items] if self._config.items else split
        with finite_logits(model), torch.inference_mode():
            returned = self._function(model, tokenizer, argument)
        tasks = self._config.tasks
        shown = [t for t in tasks if self._config.searched(t) or split != "search"]
        if len(tasks) > 1:
            names = [t.name for t in tasks]
            if not isinstance(returned, Mapping) or any(n not in returned for n in names):
                missing = [n for n in names if isinstance(returned, Mapping) and n not in returned]
                told = f'nothing for task "{missing[0]}"' if missing else _kind(returned)
                raise self._wrong(f"{told}; expected a mapping with the tasks {', '.join(names)}")
            return Score(tuple(self._score(t, returned[t.name], split, items) for t in shown))
        named = isinstance(returned, Mapping) and set(returned) == {tasks[0].name}
        return Score((self._score(tasks[0], returned[tasks[0].name] if named else returned, split, items),))

    def _score(self, task: TaskConfig, returned: Any, split: Split, items: Sequence[Item]) -> TaskScore:
        higher = task.higher_is_better is not False
        sign = 1.0 if higher else -1.0
        ids: tuple[str, ...] = tuple(i.id for i in items)
        if isinstance(returned, Mapping):
            ids, values = tuple(str(k) for k in returned), list(returned.values())
        elif isinstance(returned, Sequence | np.ndarray | torch.Tensor) and not isinstance(returned, str):
            values = list(returned)
            if not self._config.items:
                ids = tuple(f"{split}-{i}" for i in range(len(values)))
        elif self._config.items:
            raise self._wrong(f"{_kind(returned)} for {len(ids)} items; expected one result for each")
        else:
            ids, values = (), [returned]
        if ids and len(ids) != len(values):
            raise self._wrong(f"{len(values)} results for {len(ids)} items; expected one for each")
        try:
            numbers = np.array([float(v) for v in values])
        except (TypeError, ValueError):
            raise self._wrong(f"{_kind(returned)}; expected numbers") from None
        if not len(numbers):
            raise self._wrong(f'no result for task "{task.name}"')
        if not np.isfinite(numbers).all():
            bad = int((~np.isfinite(numbers)).argmax())
            which = f'{numbers[bad]} for task "{task.name}", item {bad + 1} of {len(numbers)}'
            raise self._wrong(f"{which}; expected finite numbers")
        value = float(numbers.mean())
        results = (sign * numbers).astype(np.float32) if ids else np.zeros(0, np.float32)
        return TaskScore(task.name, task.metric or "score", sign * value, task.weight, ids, results, not higher)

    def _wrong(self, words: str) -> CandidateError:
        """Of a candidate, whose weights may be to blame; where a source as it is meets it, the search is refused."""
        return CandidateError(f"{self._config.function} returned {words}")

    def _load(self, where: str) -> Callable[[Any, Any, Any], Any]:
        file, name = where.rsplit(":", 1)
        path = self._file.path(file, "function")
        return load_function(path, name, f"{self._file.file}: function = {where}", EvaluatorError)

    def _read(self, name: str) -> list[dict[str, Any]]:
        path = self._file.path(name, "items")
        contents: list[dict[str, Any]] = []
        for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), 1):
            if not line.strip():
                continue
            try:
                content = json.loads(line)
            except ValueError as e:
                raise EvaluatorError(f"{path}:{number}: not JSON: {e}") from None
            if not isinstance(content, dict):
                raise EvaluatorError(f"{path}:{number}: expected a JSON object, got {_kind(content)}")
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


def _kind(value: Any) -> str:
    if isinstance(value, float) and not math.isfinite(value):
        return str(value)
    return f"{type(value).__name__} {str(value)[:60]}"
