"""Our own tables beside Optuna's, in one database: the result of every item of everything that was scored.

Results lie as one blob of float32 per (subject, split, task), and the ids of the items once per set of items, so that
a candidate costs one small row per task however many items it has. What is known of a model's single items lies in a
table of its own, by what was scored and how and not by study, so that nothing is scored twice.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, NamedTuple

import numpy as np
import sqlalchemy as sa

from evomerge.evaluation.config import Split
from evomerge.score import Score, TaskScore
from evomerge.study import schema
from evomerge.study.retrying import Patience
from evomerge.study.schema import insert_new, item_sets, scores


class ScoreTable:
    """Scores of one study. A subject is "trial/NUMBER" or "model/NAME"."""

    def __init__(self, engine: sa.Engine, study_id: int, patience: Patience) -> None:
        self._engine = engine
        self._study = study_id
        self._patience = patience
        self._sets = _ItemSets()

    def write(self, subject: str, split: Split, score: Score) -> None:
        """Record a score in one transaction; an earlier one of the same subject and split is replaced."""
        with self.putting(subject, split, score) as put:
            self._patience(self._write, put)

    def _write(self, put: Callable[[sa.Connection], None]) -> None:
        with self._engine.begin() as connection:
            put(connection)

    @contextmanager
    def putting(self, subject: str, split: Split, score: Score) -> Iterator[Callable[[sa.Connection], None]]:
        """What writes a score inside a transaction, which is committed when the block ends without an error."""
        keys: dict[tuple[str, ...], str] = {}

        def put(connection: sa.Connection) -> None:
            rows: list[dict[str, Any]] = []
            for place, task in enumerate(score.tasks):
                key = keys[task.items] = self._sets.key(connection, task.items)
                rows.append(
                    {
                        "study_id": self._study,
                        "subject": subject,
                        "split": split,
                        "place": place,
                        "task": task.task,
                        "metric": task.metric,
                        "value": task.value,
                        "weight": task.weight,
                        "flipped": task.flipped,
                        "item_set": key,
                        "results": task.results.astype("<f4").tobytes(),
                    }
                )
            connection.execute(
                sa.delete(scores).where(
                    scores.c.study_id == self._study, scores.c.subject == subject, scores.c.split == split
                )
            )
            connection.execute(sa.insert(scores), rows)

        yield put
        self._sets.written(keys)

    def read(self, split: Split) -> dict[str, Score]:
        """Every score on a split, by subject."""
        return self._patience(self._read, split)

    def _read(self, split: Split) -> dict[str, Score]:
        query = (
            sa.select(scores)
            .where(scores.c.study_id == self._study, scores.c.split == split)
            .order_by(scores.c.subject, scores.c.place)
        )
        found: dict[str, list[TaskScore]] = {}
        with self._engine.connect() as connection:
            rows = connection.execute(query).mappings().all()
            items = self._sets.load(connection, {row["item_set"] for row in rows})
            for row in rows:
                found.setdefault(row["subject"], []).append(
                    TaskScore(
                        row["task"],
                        row["metric"],
                        row["value"],
                        row["weight"],
                        items[row["item_set"]],
                        np.frombuffer(row["results"], "<f4").astype(np.float32),
                        row["flipped"],
                    )
                )
        return {subject: Score(tuple(tasks)) for subject, tasks in found.items()}


class Known(NamedTuple):
    """An item's result, and the candidate (study's id, number) whose budget it was scored on."""

    result: float
    payer: tuple[int, int]


class ResultTable:
    """Results of single search items by model and by how they are scored, of all studies in a database."""

    def __init__(self, engine: sa.Engine, study_id: int, patience: Patience) -> None:
        self._engine = engine
        self.study = study_id
        self._patience = patience
        self._sets = _ItemSets()

    def write(self, model: str, found: Sequence[tuple[str, Sequence[str], Sequence[float]]], trial: int) -> None:
        """Record results that a candidate of this study was scored for, all or none; what is there stays as it is.

        Args:
            model: Hash of the recipe, which covers its sources.
            found: Of each task what identifies the way in which its items are scored, the items, and their results.
        """
        self._patience(self._write, model, found, trial)

    def _write(self, model: str, found: Sequence[tuple[str, Sequence[str], Sequence[float]]], trial: int) -> None:
        keys: dict[tuple[str, ...], str] = {}
        with self._engine.begin() as connection:
            for evaluator, items, values in found:
                key = keys[tuple(items)] = self._sets.key(connection, tuple(items))
                row = {
                    "model": model, "evaluator": evaluator, "item_set": key, "study_id": self.study, "trial": trial,
                    "results": np.asarray(values, "<f4").tobytes(),
                }  # fmt: skip
                insert_new(connection, schema.results, [row])
        self._sets.written(keys)

    def read(self, model: str, evaluator: str) -> Mapping[str, Known]:
        """What is known of a model, by item."""
        return self._patience(self._read, model, evaluator)

    def _read(self, model: str, evaluator: str) -> Mapping[str, Known]:
        kept = schema.results
        query = sa.select(kept).where(kept.c.model == model, kept.c.evaluator == evaluator)
        with self._engine.connect() as connection:
            rows = connection.execute(query.order_by(kept.c.study_id, kept.c.trial)).mappings().all()
            items = self._sets.load(connection, {row["item_set"] for row in rows})
        found: dict[str, Known] = {}
        for row in rows:
            payer = (row["study_id"], row["trial"])
            for item, result in zip(items[row["item_set"]], np.frombuffer(row["results"], "<f4"), strict=True):
                found.setdefault(item, Known(float(result), payer))
        return found


class _ItemSets:
    """Ids of items, once for each set of them."""

    def __init__(self) -> None:
        self._keys: dict[tuple[str, ...], str] = {}
        self._items: dict[str, tuple[str, ...]] = {}

    def key(self, connection: sa.Connection, items: tuple[str, ...]) -> str:
        """What identifies a set, written where it is new."""
        if items in self._keys:
            return self._keys[items]
        text = json.dumps(items, separators=(",", ":"))
        key = hashlib.sha256(text.encode()).hexdigest()
        # Another search on this database may write the same at this moment.
        insert_new(connection, item_sets, [{"id": key, "item_ids": text}])
        return key

    def written(self, keys: Mapping[tuple[str, ...], str]) -> None:
        """These are sure to be there, after their transaction: one that failed took its sets along."""
        self._keys.update(keys)

    def load(self, connection: sa.Connection, keys: Iterable[str]) -> Mapping[str, tuple[str, ...]]:
        """The items of some sets, by their keys, and of those asked for before."""
        for key in sorted(set(keys) - set(self._items)):
            text = connection.execute(sa.select(item_sets.c.item_ids).where(item_sets.c.id == key)).scalar_one()
            self._items[key] = tuple(json.loads(text))
        return self._items
