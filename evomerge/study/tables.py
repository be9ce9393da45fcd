"""Our own tables beside Optuna's, in one database: the result of every item of everything that was scored.

Results lie as one blob of float32 per (subject, split, task), and the ids of the items once per set of items, so that
a candidate costs one small row per task however many items it has.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable
from typing import Any

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


NAMES = {_item_sets.name, _scores.name}


def create(engine: sa.Engine) -> None:
    """Make the tables where they are not there yet."""
    _metadata.create_all(engine)


class ScoreTable:
    """Scores of one study. A subject is "trial/NUMBER" or "model/NAME"."""

    def __init__(self, engine: sa.Engine, study_id: int) -> None:
        self._engine = engine
        self._study = study_id
        self._known: dict[tuple[str, ...], str] = {}
        self._items: dict[str, tuple[str, ...]] = {}

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
                        "item_set": self._item_set(connection, task.items),
                        "results": task.results.astype("<f4").tobytes(),
                    }
                )
            connection.execute(
                sa.delete(_scores).where(
                    _scores.c.study_id == self._study, _scores.c.subject == subject, _scores.c.split == split
                )
            )
            connection.execute(sa.insert(_scores), rows)
        # Only now are they sure to be there: a transaction that failed took its item sets along.
        self._known.update({t.items: r["item_set"] for t, r in zip(score.tasks, rows, strict=True)})

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
            self._load_items(connection, {row["item_set"] for row in rows})
            for row in rows:
                found.setdefault(row["subject"], []).append(
                    TaskScore(
                        row["task"],
                        row["metric"],
                        row["value"],
                        row["weight"],
                        self._items[row["item_set"]],
                        np.frombuffer(row["results"], "<f4").astype(np.float32),
                        row["flipped"],
                    )
                )
        return {subject: Score(tuple(tasks)) for subject, tasks in found.items()}

    def _item_set(self, connection: sa.Connection, items: tuple[str, ...]) -> str:
        if items not in self._known:
            text = json.dumps(items, separators=(",", ":"))
            key = hashlib.sha256(text.encode()).hexdigest()
            there = connection.execute(sa.select(_item_sets.c.id).where(_item_sets.c.id == key)).first()
            if there is None:
                connection.execute(sa.insert(_item_sets).values(id=key, item_ids=text))
            return key
        return self._known[items]

    def _load_items(self, connection: sa.Connection, keys: Iterable[str]) -> None:
        missing = sorted(set(keys) - set(self._items))
        for key in missing:
            text = connection.execute(sa.select(_item_sets.c.item_ids).where(_item_sets.c.id == key)).scalar_one()
            self._items[key] = tuple(json.loads(text))
