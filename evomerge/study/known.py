"""What is known of candidates' results on single search items: nothing is scored twice."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np

from evomerge.evaluation.draw import Draw
from evomerge.evaluation.goals import measured
from evomerge.evaluation.splits import Places
from evomerge.score import Score
from evomerge.study import tables


@dataclass
class _Found:
    """What is known of a model in one task, by item: results, and on whose budget each was scored.

    Two mappings instead of one of pairs: a candidate comes with hundreds of items at once, all of one payer.
    """

    results: dict[str, float]
    payers: dict[str, tuple[int, int]]

    @classmethod
    def of(cls, known: Mapping[str, tables.Known]) -> _Found:
        """As it was stored."""
        return cls({i: k.result for i, k in known.items()}, {i: k.payer for i, k in known.items()})

    def add(self, items: Sequence[str], results: Sequence[float], payer: tuple[int, int]) -> None:
        """More, of which what is known already stays as it is."""
        self.results = dict(zip(items, results, strict=True)) | self.results
        self.payers = dict.fromkeys(items, payer) | self.payers


class KnownResults:
    """Results by item, of this study and of others in its database that score in the same way.

    What is measured of a task's answers ("TASK.length") has the task's items and is scored together with it: an item is
    known where all of it is.

    Args:
        draw: The search items, of tasks and of what is measured of their answers.
        versions: Of each of these, what identifies how its items are scored.
        like: Any score on the search items: the tasks' metrics and weights.
    """

    def __init__(self, table: tables.ResultTable, draw: Draw, versions: Mapping[str, str], like: Score) -> None:
        self._table = table
        self.draw = draw
        self._versions = versions
        self._like = like
        self._found: dict[str, dict[str, _Found]] = {}
        self._together = {t: [o for o in draw.items if measured(o)[0] == measured(t)[0]] for t in draw.items}

    def missing(self, model: str, places: Places) -> Places:
        """Those of some items of which a model's results are not known."""
        left = {}
        for task, at in places.items():
            ids, found = self.draw.items[task], self._all(model, task)
            # Of most models nothing is known.
            some = all(known.results for known in found)
            left[task] = tuple(p for p in at if any(ids[p] not in k.results for k in found)) if some else at
        return {task: at for task, at in left.items() if at}

    def share(self, model: str, places: Places, trial: int) -> float:
        """The share of all search items that a candidate has to pay for, or paid for in an earlier run, among some."""
        own = (self._table.study, trial)
        count = 0
        for task, at in places.items():
            ids, found = self.draw.items[task], self._all(model, task)
            if not all(known.results for known in found):
                count += len(at)
                continue
            count += sum(any(known.payers.get(ids[p], own) == own for known in found) for p in at)
        return count / sum(map(len, self.draw.items.values()))

    def score(self, model: str, places: Places) -> Score:
        """A model's score on items that are all known."""
        found = self._of(model)
        parts = []
        for task, at in places.items():
            like = self._like.task(task)
            assert like is not None
            items = tuple(self.draw.items[task][p] for p in at)
            results = np.array([found[task].results[i] for i in items], np.float32)
            parts.append(replace(like, value=float(results.astype(np.float64).mean()), items=items, results=results))
        return Score(tuple(parts))

    def keep(self, model: str, score: Score, trial: int) -> None:
        """Record what a candidate was scored."""
        found, payer = self._of(model), (self._table.study, trial)
        tasks = [t for t in score.tasks if t.task in found and t.by_item]
        self._table.write(model, [(self._versions[t.task], t.items, t.results.tolist()) for t in tasks], trial)
        for task in tasks:
            found[task.task].add(task.items, task.results.tolist(), payer)

    def forget(self, models: Sequence[str]) -> None:
        """Let go of what is held in memory; the database has it."""
        for model in models:
            self._found.pop(model, None)

    def _all(self, model: str, task: str) -> list[_Found]:
        """What is known by item in all that is scored together with a task."""
        found = self._of(model)
        return [found[t] for t in self._together[task]]

    def _of(self, model: str) -> dict[str, _Found]:
        if model not in self._found:
            read = self._table.read
            self._found[model] = {task: _Found.of(read(model, self._versions[task])) for task in self.draw.items}
        return self._found[model]
