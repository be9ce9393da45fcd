"""What must hold of a study that was killed many times: nothing lost, nothing counted twice, nothing corrupt."""

import contextlib
import dataclasses
import itertools
import json
import sqlite3
from collections import Counter
from pathlib import Path

import sqlalchemy as sa
from safetensors import safe_open

from evomerge.score import State, cost
from evomerge.study import schema
from evomerge.study.leases import driver_of
from evomerge.study.place import sqlite_path
from evomerge.study.store import Store
from tests.faults.cheap import STUDY


@dataclasses.dataclass
class Account:
    """Counts, of one study or of several added up.

    Attributes:
        lost: Candidates that are missing between the first and the last, did not end, or have no result.
        doubled: Numbers, rows of scores, items of a model or costs that are there more than once.
        corrupt: Files that cannot be read, or differ from those of an uninterrupted search.
        differing: Candidates that are others than those of an uninterrupted search.
        failed: Candidates that have failed, which none may: see `audit`.
        wrong: What was counted twice, and why candidates failed, in words.
    """

    kills: Counter = dataclasses.field(default_factory=Counter)
    studies: int = 0
    candidates: int = 0
    lost: int = 0
    doubled: int = 0
    corrupt: int = 0
    differing: int = 0
    failed: int = 0
    moments: Counter = dataclasses.field(default_factory=Counter)
    wrong: list = dataclasses.field(default_factory=list)

    def add(self, other):
        for field in dataclasses.fields(self):
            setattr(self, field.name, getattr(self, field.name) + getattr(other, field.name))

    @property
    def faults(self):
        """What must not be there, by name; nothing where all is well."""
        counts = ("lost", "doubled", "corrupt", "differing", "failed")
        return {name: n for name in counts if (n := getattr(self, name))}

    def to_dict(self):
        return vars(self)

    @classmethod
    def read(cls, data):
        return cls(**data | {"kills": Counter(data["kills"]), "moments": Counter(data["moments"])})

    def __str__(self):
        by = ", ".join(f"{n} of a {what}" for what, n in sorted(self.kills.items()))
        when = ", ".join(f"{n} {what}" for what, n in sorted(self.moments.items()))
        return (
            f"{self.kills.total()} kills ({by}) in {self.studies} studies of {self.candidates} candidates: "
            f"lost {self.lost}, counted twice {self.doubled}, corrupt files {self.corrupt}, "
            f"other than uninterrupted {self.differing}, failed {self.failed} ({when})"
            + "".join(f"; {w}" for w in self.wrong)
        )


def sequence(storage):
    """Every candidate: number, parameters, state, reason, cost, why it was stopped, and every item's result."""
    return [
        (
            t.number, dict(t.params), t.state, t.reason, round(t.cost, 9), t.stopped,
            (found := t.score or t.part) and [x.results.tolist() for x in found.tasks],
        )
        for t in Store(storage).open(STUDY).trials()
    ]  # fmt: skip


def moment(storage):
    """How far a study is: what stands at the side of a kill."""
    with contextlib.suppress(Exception):
        study = Store(storage).open(STUDY)
        if "looked" in study.notes():
            return "at the end"
        if study.trials():
            return "while it searched"
    return "before the first candidate"


def audit(storage, out, budget, expected, same):
    """The account of a study that has ended.

    Args:
        expected: Sequence and output folder of an uninterrupted search.
        same: Whether it must be the same.
    """
    found = Account(studies=1)
    store = Store(storage)
    study = store.open(STUDY)
    trials = study.trials()
    found.candidates = len(trials)
    numbers = Counter(t.number for t in trials)
    found.lost = len(set(range(max(numbers) + 1)) - set(numbers)) + sum(t.state is State.RUNNING for t in trials)
    failed = [t for t in trials if t.state is State.FAIL]
    found.lost += sum((t.score or t.part) is None for t in trials if t.state is not State.FAIL)
    found.doubled = sum(n - 1 for n in numbers.values())
    total = sum(len(t.items) for t in next(t.score for t in trials if t.score is not None).tasks)
    with store.engine.connect() as connection:
        rows = connection.execute(sa.select(schema.scores.c.subject, schema.scores.c.split, schema.scores.c.task)).all()
        items = Counter()
        paid = Counter()
        kept = schema.results
        for row in connection.execute(sa.select(kept)).mappings():
            text = sa.select(schema.item_sets.c.item_ids).where(schema.item_sets.c.id == row["item_set"])
            ids = json.loads(connection.execute(text).scalar_one())
            assert len(row["results"]) == 4 * len(ids)
            items.update((row["model"], row["evaluator"], i) for i in ids)
            paid[row["trial"]] += len(ids)
        left = [
            connection.execute(sa.select(sa.func.count()).select_from(t)).scalar_one()
            for t in (schema.jobs, schema.joiners)
        ]
    found.wrong += [f"scores of {row} {n} times" for row, n in Counter(map(tuple, rows)).items() if n > 1]
    found.wrong += [f"item {item} {n} times" for item, n in items.items() if n > 1]
    # What a candidate is charged is what was run for it, once, however often it was begun.
    found.wrong += [
        f"candidate {t.number} ({t.state.name}, {t.reason}) is charged {t.cost * total:g} items, {paid[t.number]} ran"
        for t in trials
        # An asynchronous race that goes on may stop a candidate earlier than the run before, which had scored more of
        # it: nothing is counted twice by that. One that failed paid for the items that it failed on; see below.
        if ((off := t.cost - paid[t.number] / total) < -1e-9 and same) or (off > 1e-9 and t.state is not State.FAIL)
    ]  # fmt: skip
    found.wrong += [f"{cost(trials)} spent of {budget}"] if cost(trials) > budget + 1e-9 else []
    found.doubled += len(found.wrong)
    # The evaluator never fails, and a kill is no fault of a candidate: killed with its driver it is run again by the
    # next one, with its worker or machine by another. It has failed only where that is lost under it twice
    # (`actors.TRIES`); but it is handed out again before all others, and from when that is done until the next kill
    # there are `drill.APART` answers, so that its own is recorded in between. So none may have failed, by kills of ours
    # neither. Of ways to search that must be as uninterrupted `differing` says so too; of an asynchronous race nothing
    # else does.
    found.failed = len(failed)
    found.wrong += [f"candidate {t.number} has failed: {t.reason}" for t in failed]
    assert driver_of(store, STUDY) is None and left == [0, 0]
    # Nor did it end early, with candidates that nobody began.
    assert cost(trials) > budget - 1.5, f"{cost(trials)} spent of {budget}"
    found.corrupt = corrupt(storage, out, expected[1], same)
    if same:
        here = sequence(storage)
        found.differing = sum(a != b for a, b in itertools.zip_longest(here, expected[0]))
        assert len(study.notes()["looked"]) == 1
    return found


def corrupt(storage, out, reference, same):
    """How many files are not whole, or not those of the uninterrupted search."""
    bad = 0
    database = sqlite_path(storage)
    if database is not None:
        with contextlib.closing(sqlite3.connect(database)) as connection:
            bad += connection.execute("PRAGMA integrity_check").fetchone() != ("ok",)
    weights = Path("model/model.safetensors")
    try:
        result = json.loads((out / "result.json").read_text())
        with safe_open(out / weights, "pt") as file:
            bad += not list(file.keys())
    except Exception:
        return bad + 1
    if same:
        bad += (out / weights).read_bytes() != (reference / weights).read_bytes()
        old = json.loads((reference / "result.json").read_text())
        bad += any(result[k] != old[k] for k in ("candidates", "best", "baselines", "tasks"))
    files = (f for f in out.rglob("*") if f.is_file() and not f.name.startswith((".lock", "study.db-")))
    return bad + sum(not f.stat().st_size or f.suffix == ".part" for f in files)
