"""How a study stands, by what its database says: read at any time, from anywhere, while it runs or long after."""

from __future__ import annotations

import datetime
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

from evomerge.score import State, Trial, cost
from evomerge.study.budget import Budget
from evomerge.study.candidates import best
from evomerge.study.leases import Driver, driver_of, root
from evomerge.study.store import Store, Study

# Kept with a study: its budget as last given, why it ended (None while it goes on), and its output folder.
BUDGET_NOTE, ENDED_NOTE, OUT_NOTE = "budget", "ended", "out"
# Rates are those of the last so many seconds before its last sign of life.
WINDOW = 300.0

Standing = Literal["running", "interrupted", "finished"]


@dataclass(frozen=True)
class Status:
    """One search of a study.

    Attributes:
        study: Its name; NAME/... is a hybrid's first stage, or a control.
        standing: Whether somebody drives it, has finished it, or neither.
        driver: Who holds the lease; one that is dead too.
        budget: As last given; None in studies of before that was kept.
        spent: Candidates' worth of search items so far.
        seconds: Wall time of the search so far, all runs together.
        counts: Candidates by how they are: "running", "complete", "pruned", "failed".
        best: The best complete candidate; None where there is none.
        winner: Number of the winner; None where none is chosen yet.
        scores: The winner's score by split.
        sources: Scores of base, sources and uniform merge on the search items.
        reasons: Why candidates failed, the most frequent first, with how often.
        last: When a candidate last began or ended, by the clock of whoever wrote it; None without any.
        per_minute, items_per_second: Candidates and items in the last minutes of its activity; None where unknown.
    """

    study: str
    standing: Standing
    driver: Driver | None
    budget: Budget | None
    spent: float
    seconds: float
    counts: Mapping[str, int]
    best: Trial | None
    winner: int | None
    scores: Mapping[str, float]
    sources: Mapping[str, float]
    reasons: Sequence[tuple[str, int]]
    last: datetime.datetime | None
    per_minute: float | None
    items_per_second: float | None

    @property
    def share(self) -> float | None:
        """The share of the budget that is spent, from 0 to 1."""
        return None if self.budget is None else self.budget.share(self.spent, self.seconds)

    def to_dict(self) -> dict[str, Any]:
        """Plain data, as `--json` prints it. What is unknown is null."""
        driver = self.driver
        return {
            "study": self.study,
            "state": self.standing,
            "driver": None if driver is None else {
                "host": driver.process.host, "pid": driver.process.pid, "user": driver.user, "since": driver.since,
                "alive": not driver.gone,
            },
            "budget": None if self.budget is None else {
                "candidates": self.budget.candidates, "seconds": self.budget.seconds
            },
            "spent": {"candidates": round(self.spent, 6), "seconds": self.seconds},
            "share": self.share,
            "candidates": dict(self.counts),
            "best": None if self.best is None else {
                "trial": self.best.number, "search": self.best.value, "params": dict(self.best.params)
            },
            "winner": None if self.winner is None else {"trial": self.winner, **self.scores},
            "sources": dict(self.sources),
            "failures": [{"reason": reason, "times": times} for reason, times in self.reasons],
            "last_activity": None if self.last is None else self.last.isoformat(timespec="seconds"),
            "candidates_per_minute": self.per_minute,
            "items_per_second": self.items_per_second,
        }  # fmt: skip


def searches(store: Store, name: str) -> list[str]:
    """The study of a name and what belongs to it: a hybrid's first stage, controls."""
    return [n for n in store.names() if root(n) == root(name)]


def status(store: Store, name: str) -> Status:
    """How a study stands now. Nothing is written.

    Raises:
        StudyError: there is none of that name.
    """
    study = store.open(name)
    notes = study.notes()
    trials = study.trials()
    driver = driver_of(store, name)
    kept = notes.get(BUDGET_NOTE)
    winner = notes.get("winner")
    tables = {split: study.scores.read(split) for split in ("search", "select", "test")}
    subject = f"trial/{winner}"
    ranked = best(trials)
    last, per_minute, items = _rates(study, trials)
    reasons = [t.reason or "" for t in trials if t.state is State.FAIL]
    return Status(
        study=name,
        standing=_standing(notes, driver),
        driver=driver,
        budget=None if kept is None else Budget(**kept),
        spent=cost(trials),
        seconds=float(notes.get("seconds", 0.0)),
        counts={
            "running": sum(t.state is State.RUNNING for t in trials),
            "complete": sum(t.state is State.COMPLETE for t in trials),
            "pruned": sum(t.state is State.PRUNED for t in trials),
            "failed": len(reasons),
        },
        best=ranked[0] if ranked else None,
        winner=None if winner is None else int(winner),
        scores={split: table[subject].value for split, table in tables.items() if subject in table},
        sources={
            s.partition("/")[2]: score.value for s, score in tables["search"].items() if not s.startswith("trial/")
        },
        reasons=sorted(((r, reasons.count(r)) for r in dict.fromkeys(reasons)), key=lambda pair: -pair[1]),
        last=last,
        per_minute=per_minute,
        items_per_second=items,
    )


def _standing(notes: Mapping[str, Any], driver: Driver | None) -> Standing:
    # Studies of before it was kept why they ended are finished where they have a winner.
    if notes.get(ENDED_NOTE, "winner" in notes or None) is not None:
        return "finished"
    return "running" if driver is not None and not driver.gone else "interrupted"


def _rates(
    study: Study, trials: Sequence[Trial]
) -> tuple[datetime.datetime | None, float | None, float | None]:
    """(last sign of life, candidates per minute, items per second) of the last minutes before that."""
    times = study.times()
    signs = [t for pair in times.values() for t in pair if t is not None]
    if not signs:
        return None, None, None
    last = max(signs)
    ended = {n: end for n, (_, end) in times.items() if end is not None}
    begun = min(start for start, _ in times.values() if start is not None)
    since = max(begun, last - datetime.timedelta(seconds=WINDOW))
    length = (last - since).total_seconds()
    recent = [t for t in trials if t.number in ended and ended[t.number] > since]
    if length < 1.0 or not recent:
        return last, None, None
    whole = [t.score.items for t in trials if t.score is not None]
    items = float(np.max(whole)) * cost(recent) / length if whole else None
    return last, 60.0 * len(recent) / length, items
