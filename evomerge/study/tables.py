"""Our own tables beside Optuna's, in one database: the result of every item of everything that was scored.

Results lie as one blob of float32 per (subject, split, task), and the ids of the items once per set of items, so that
a candidate costs one small row per task however many items it has. What is known of a model's single items lies in a
table of its own, by what was scored and how and not by study, so that nothing is scored twice.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import sqlalchemy as sa

from evomerge.evaluation.config import Split
from evomerge.score import Score, TaskScore

SCHEMA = 1

_metadata = sa.MetaData()

_item_sets = sa.Table(
    "evomerge_item_sets",
    _metadata,
    sa.Column("id", sa.String(64), primary_key=True),
    sa.Column("item_ids", sa.Text(2**31 - 1), nullable=False),
)

_scores = sa.Table(
    "evomerge_scores",
    _metadata,
    sa.Column("study_id", sa.Integer, primary_key=True),
    sa.Column("subject", sa.String(255), primary_key=True),
    sa.Column("split", sa.String(16), primary_key=True),
    sa.Column("place", sa.Integer, primary_key=True),
    sa.Column("task", sa.String(255), nullable=False),
    sa.Column("metric", sa.String(255), nullable=False),
    sa.Column("value", sa.Float(53), nullable=False),
    sa.Column("weight", sa.Float(53), nullable=False),
    sa.Column("flipped", sa.Boolean, nullable=False),
    sa.Column("item_set", sa.String(64), nullable=False),
    sa.Column("results", sa.LargeBinary(2**31 - 1), nullable=False),
)


_results = sa.Table(
    "evomerge_results",
    _metadata,
    sa.Column("model", sa.String(64), primary_key=True),
    sa.Column("evaluator", sa.String(64), primary_key=True),
    sa.Column("item_set", sa.String(64), primary_key=True),
    sa.Column("study_id", sa.Integer, nullable=False),
    sa.Column("trial", sa.Integer, nullable=False),
    sa.Column("results", sa.LargeBinary(2**31 - 1), nullable=False),
)


# What a database of studies has had from the first version on.
NAMES = {_item_sets.name, _scores.name}


def create(engine: sa.Engine) -> None:
    """Make the tables where they are not there yet."""
    _metadata.create_all(engine)


class ScoreTable:
    """Scores of one study. A subject is "trial/NUMBER" or "model/NAME"."""

    def __init__(self, engine: sa.Engine, study_id: int) -> None:
        self._engine = engine
        self._study = study_id
        self._sets = _ItemSets()

    def write(self, subject: str, split: Split, score: Score) -> None:
        """Record a score in one transaction; an earlier one of the same subject and split is replaced."""
        with self._engine.begin() as connection:
            rows: list[dict[str, Any]] = []
            for place, task in enumerate(score.tasks):
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
                        "item_set": self._sets.key(connection, task.items),
                        "results": task.results.astype("<f4").tobytes(),
                    }
                )
            connection.execute(
                sa.delete(_scores).where(
                    _scores.c.study_id == self._study, _scores.c.subject == subject, _scores.c.split == split
                )
            )
            connection.execute(sa.insert(_scores), rows)
        self._sets.written({t.items: r["item_set"] for t, r in zip(score.tasks, rows, strict=True)})

    def read(self, split: Split) -> dict[str, Score]:
        """Every score on a split, by subject."""
        query = (
            sa.select(_scores)
            .where(_scores.c.study_id == self._study, _scores.c.split == split)
            .order_by(_scores.c.subject, _scores.c.place)
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

    def __init__(self, engine: sa.Engine, study_id: int) -> None:
        self._engine = engine
        self.study = study_id
        self._sets = _ItemSets()

    def write(self, model: str, found: Sequence[tuple[str, Sequence[str], Sequence[float]]], trial: int) -> None:
        """Record results that a candidate of this study was scored for, all or none; what is there stays as it is.

        Args:
            model: Hash of the recipe, which covers its sources.
            found: Of each task what identifies the way in which its items are scored, the items, and their results.
        """
        keys: dict[tuple[str, ...], str] = {}
        try:
            with self._engine.begin() as connection:
                for evaluator, items, results in found:
                    key = keys[tuple(items)] = self._sets.key(connection, tuple(items))
                    row = {"model": model, "evaluator": evaluator, "item_set": key}
                    where = (_results.c[name] == value for name, value in row.items())
                    if connection.execute(sa.select(_results.c.trial).where(*where)).first() is None:
                        blob = np.asarray(results, "<f4").tobytes()
                        new = row | {"study_id": self.study, "trial": trial, "results": blob}
                        connection.execute(sa.insert(_results).values(**new))
        except sa.exc.IntegrityError:
            return  # another search on this database was quicker with the same candidate
        self._sets.written(keys)

    def read(self, model: str, evaluator: str) -> Mapping[str, Known]:
        """What is known of a model, by item."""
        query = sa.select(_results).where(_results.c.model == model, _results.c.evaluator == evaluator)
        with self._engine.connect() as connection:
            rows = connection.execute(query.order_by(_results.c.study_id, _results.c.trial)).mappings().all()
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
        there = connection.execute(sa.select(_item_sets.c.id).where(_item_sets.c.id == key)).first()
        if there is None:
            connection.execute(sa.insert(_item_sets).values(id=key, item_ids=text))
        return key

    def written(self, keys: Mapping[tuple[str, ...], str]) -> None:
        """These are sure to be there, after their transaction: one that failed took its sets along."""
        self._keys.update(keys)

    def load(self, connection: sa.Connection, keys: Iterable[str]) -> Mapping[str, tuple[str, ...]]:
        """The items of some sets, by their keys, and of those asked for before."""
        for key in sorted(set(keys) - set(self._items)):
            text = connection.execute(sa.select(_item_sets.c.item_ids).where(_item_sets.c.id == key)).scalar_one()
            self._items[key] = tuple(json.loads(text))
        return self._items
