"""`kind: python`: a function of one's own scores the live model.

    def score(model, tokenizer, items): ...      # with `items: FILE.jsonl`: one result per item, in order
    def score(model, tokenizer, split): ...      # without: "search", "select" or "test"; {item id: result} or a number

One with a parameter called `processor` is handed the processor of a vision-language model by it. With `images: [KEY]`
the items hold pictures (PIL, RGB, upright) under those keys, decoded each time they are asked for.

With several tasks the function returns a mapping from task name to such a value.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch

from evomerge.errors import CandidateError, EvaluatorError
from evomerge.evaluation.config import Split
from evomerge.evaluation.file import EvaluatorFile
from evomerge.evaluation.finite import NotFiniteError, finite_logits, first_not_finite, where_not_finite
from evomerge.evaluation.items import ItemEvaluator
from evomerge.evaluation.pictures import check_pillow, processor_of, tokenizer_of
from evomerge.evaluation.returned import kind, score_of
from evomerge.evaluation.seeds import seed_all
from evomerge.evaluation.splits import Item, Places
from evomerge.functions import load_function
from evomerge.score import Score


class FunctionEvaluator(ItemEvaluator):
    """`kind: python`. See `Evaluator` for the contract."""

    def __init__(self, file: EvaluatorFile, say: Callable[[str], None] | None = None) -> None:
        super().__init__(file)
        self._function = self._load(file.config.function or "")
        self._sees = "processor" in inspect.signature(self._function).parameters
        if self._sees:
            check_pillow(f"{file.file}: function = {file.config.function}")

    @property
    def sees(self) -> bool:
        """See `Evaluator.sees`: the function has a parameter called `processor`."""
        return self._sees

    def evaluate(self, model: Any, tokenizer: Any, split: Split, only: Places | None = None) -> Score:
        """Score a model on a split; see `Evaluator.evaluate`. Every task has the same items.

        Raises:
            EvaluatorError: some items are asked for, and the function brings its own.
            CandidateError: what it returns is not a finite number for each item and task.
        """
        if only is not None and not self._items.given:
            raise EvaluatorError(f"{self._file.file}: function: it brings its own items, so no part of them can be run")
        items = self._items.chosen(split, only)
        where = f"{self._file.file}: function = {self._config.function}"
        more = {"processor": processor_of(tokenizer, where)} if self._sees else {}
        seed_all(self._config.seed)

        def run(some: Sequence[Item]) -> Any:
            argument: Any = [self._items.shown(i) for i in some] if self._items.given else split
            return self._function(model, tokenizer_of(tokenizer), argument, **more)

        try:
            with finite_logits(model), torch.inference_mode():
                returned = run(items)
        except NotFiniteError as e:
            bad = first_not_finite(model, items, run)
            named = f'task "{self._config.tasks[0].name}"' if len(self._config.tasks) == 1 else "items"
            item = None if bad is None else f"{named}, item {bad.index} of {self._config.items}"
            raise CandidateError(f"{e}{where_not_finite(model, item)}") from None
        tasks = self._config.tasks
        shown = [t for t in tasks if self._config.searched(t) or split != "search"]
        who = self._config.function or ""
        ids = [i.id for i in items] if self._items.given else None
        if len(tasks) > 1:
            names = [t.name for t in tasks]
            if not isinstance(returned, Mapping) or any(n not in returned for n in names):
                missing = [n for n in names if isinstance(returned, Mapping) and n not in returned]
                told = f'nothing for task "{missing[0]}"' if missing else kind(returned)
                raise CandidateError(f"{who} returned {told}; expected a mapping with the tasks {', '.join(names)}")
            return Score(tuple(score_of(t, returned[t.name], ids, split, who) for t in shown))
        named_task = isinstance(returned, Mapping) and set(returned) == {tasks[0].name}
        found = returned[tasks[0].name] if named_task else returned
        return Score((score_of(tasks[0], found, ids, split, who),))

    def _load(self, where: str) -> Callable[..., Any]:
        file, name = where.rsplit(":", 1)
        path = self._file.path(file, "function")
        return load_function(path, name, f"{self._file.file}: function = {where}", EvaluatorError)
