"""The best of another study, for `--warm-start`: read once, and kept with the study that begins from it."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from evomerge.errors import InputError, StudyError, choose
from evomerge.hiding import hidden
from evomerge.score import Trial, Value
from evomerge.study.candidates import best
from evomerge.study.database import shown
from evomerge.study.finding import is_url
from evomerge.study.store import Store, Study, differences

# Kept with a study: the parameters that it begins from, best first.
NOTE = "warm_start"
# The share of another search's candidates that count as its best (the paper's gamma), and how few are too few.
SHARE = 0.1
FEWEST = 4
# Of a space's fingerprint, what does not change what its parameters mean.
LOOSE = ("dtype", "out_dtype", "tokenizer_source")


@dataclass(frozen=True)
class Begun:
    """A study to begin from that was opened already: from any database, and a search that belongs to another too.

    Attributes:
        name: As its database has it (NAME, NAME/WHICH).
        storage: URL of that.
        folder: The output folder by which the command line would name it, where that has this study alone.
    """

    name: str
    storage: str
    folder: str | None = None


def called(where: str | Begun, storage: str) -> str:
    """How messages, and the study that begins, call the one it begins from: as the command line would, where it can.

    Args:
        storage: URL of the database of the study that begins.
    """
    if isinstance(where, str):
        return hidden(where, whole=True)
    if where.folder is not None:
        return where.folder
    return where.name if where.storage == storage else f"{where.name} ({shown(where.storage)})"


def read(where: str | Begun, name: str, storage: str, space: Mapping[str, Any]) -> list[dict[str, Value]]:
    """Parameters of the best candidates of another study, the best first; as they were when this one began.

    Args:
        where: Its output folder, its name where it is in the same database, or the study itself.
        name: Name of the study that begins, or goes on.
        storage: URL of that one's database.
        space: That one's fingerprint of its space.

    Raises:
        InputError: there is no such study, it searched another space, or has no candidate with a score.
    """
    known = kept(name, storage)
    return read_best(where, storage, space, f"--warm-start {called(where, storage)}") if known is None else known


def read_best(where: str | Begun, storage: str, space: Mapping[str, Any], option: str) -> list[dict[str, Value]]:
    """The same as they are now.

    Args:
        option: How messages call what was asked for.

    Raises:
        InputError: see `read`.
    """
    study = _open(where, storage, option)
    theirs, ours = ({k: v for k, v in s.items() if k not in LOOSE} for s in (study.fingerprint["space"], space))
    different = differences(theirs, ours)
    if different:
        raise InputError(
            f'{option}: study "{study.name}" searched another space: {"; ".join(different[:3])}; expected '
            "one with the same sources, method, granularity and ranges"
        )
    trials = study.trials()
    complete = [t for t in best(trials) if not t.violation]
    if not complete:
        raise InputError(f'{option}: study "{study.name}" has no candidate with a score yet')
    return [dict(t.params) for t in complete[: _count(trials)]]


def _count(trials: list[Trial]) -> int:
    return max(FEWEST, math.ceil(SHARE * len(trials)))


def kept(name: str, storage: str) -> list[dict[str, Value]] | None:
    """What a study that has begun from another keeps of it; None where it has not."""
    try:
        store = Store(storage)
    except StudyError:
        return None
    return store.open(name).notes().get(NOTE) if name in store.names() else None


def _open(where: str | Begun, storage: str, option: str) -> Study:
    """The study of an output folder, or of that name."""
    if isinstance(where, Begun):
        return Store(where.storage).open(where.name)
    if is_url(where):
        raise InputError(
            f"{option}: is the URL of a database; expected the output folder of a search, or the name of a study in "
            "the same --storage"
        )
    database = Path(where) / "study.db"
    try:
        if database.is_file():
            store = Store(f"sqlite:///{database.resolve()}")
            names = [n for n in store.names() if "/" not in n]
            if len(names) != 1:
                raise InputError(f"{option}: holds {len(names)} studies; expected one")
            return store.open(names[0])
        store = Store(storage)
    except StudyError as e:
        raise InputError(f"{option}: no such folder with a study.db, and {e}") from None
    if where not in store.names():
        raise InputError(
            f'{option}: neither a folder with a study.db nor a study of {shown(storage)}; '
            f"{choose(where, [n for n in store.names() if '/' not in n])}"
        )
    return store.open(where)
