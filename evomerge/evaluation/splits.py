"""Which items are for searching, for selecting the winner, and for the one look at the end.

An item's split follows from a hash of its content and the evaluator's `split_seed` alone, so that every study on one
evaluator agrees on what is test, whatever was added since.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from evomerge.errors import EvaluatorError
from evomerge.evaluation.config import SPLITS, Split, Splits

# Of each task by name, which of its items in a split: their places, rising. Tasks that are missing have none.
Places = Mapping[str, tuple[int, ...]]


@dataclass(frozen=True)
class Item:
    """One item: its place in the task's data and its id."""

    index: int
    id: str


def content_id(content: Mapping[str, Any]) -> str:
    """Hash of an item's content (16 hex digits)."""
    text = json.dumps(content, sort_keys=True, ensure_ascii=False, default=_form)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def _form(value: Any) -> str:
    """What JSON has no form for: bytes as their hash (images), the rest by its repr."""
    data = value.tobytes() if hasattr(value, "tobytes") else None
    return hashlib.sha256(data).hexdigest() if data is not None else repr(value)


def place(item: str, split_seed: int) -> float:
    """Where an item lies in [0, 1): uniform over contents, fixed for one (content, seed)."""
    return int(hashlib.sha256(f"{split_seed}:{item}".encode()).hexdigest()[:13], 16) / 16**13


def divide(
    contents: Iterable[Mapping[str, Any]], splits: Splits, split_seed: int, where: str
) -> dict[Split, list[Item]]:
    """Divide a task's items into search, select and test.

    Args:
        contents: The items in the order of the task's data.
        splits: Share of each split, and how many of its items are used: the first by hash.
        where: What messages begin with.

    Returns:
        The items of each split in the order of the data. Items of equal content share a split; the repeated ones get
        ids of their own ("ID#2"), so that they still pair.

    Raises:
        EvaluatorError: a split would be empty, or asks for more items than fall into it.
    """
    bounds: list[tuple[Split, float, float]] = []
    low = 0.0
    for split in SPLITS:
        bounds.append((split, low, low + splits.of(split).share))
        low += splits.of(split).share
    found: dict[Split, list[tuple[float, Item]]] = {split: [] for split in SPLITS}
    seen: dict[str, int] = {}
    places: list[float] = []
    for index, content in enumerate(contents):
        key = content_id(content)
        seen[key] = seen.get(key, 0) + 1
        at = place(key, split_seed)
        places.append(at)
        for split, start, end in bounds:
            if start <= at < end:
                name = key if seen[key] == 1 else f"{key}#{seen[key]}"
                found[split].append((at, Item(index, name)))
    out: dict[Split, list[Item]] = {}
    for split in SPLITS:
        cap = splits.of(split).items
        if len(found[split]) < (cap or 1):
            raise EvaluatorError(f"{where}: {_too_few(split, splits, len(found[split]), places)}")
        kept = sorted(found[split], key=lambda pair: (pair[0], pair[1].index))[: cap or splits.of(split).limit]
        out[split] = sorted((item for _, item in kept), key=lambda item: item.index)
    return out


def _too_few(split: Split, splits: Splits, has: int, places: Sequence[float]) -> str:
    """A split with fewer items than are asked for, and what would be right, in words.

    Args:
        has: How many fall into it.
        places: Of all items of the task.
    """
    share, cap = splits.of(split).share, splits.of(split).items
    start = sum(splits.of(other).share for other in SPLITS[: SPLITS.index(split)])
    asked = f"items = {cap:,} are asked for, and " if cap else ""
    words = f"splits.{split}: {asked}its share of {share:g} holds {has:,} of the {len(places):,} items"
    expected = [f"items of at most {has:,}"] if has and cap else []
    wanted = cap or 1
    beyond = sorted(at for at in places if at >= start)
    # Rounded up, so that it does hold them.
    need = math.floor((beyond[wanted - 1] - start) * 1000) / 1000 + 0.001 if len(beyond) >= wanted else 1.0
    if need < 1.0 - 1e-9:
        rest = 1.0 - share - sum(splits.of(other).share for other in SPLITS if other != split)
        less = ", and so much less for the others" if need - share > rest + 1e-9 else ""
        expected.append(f"a share of {need:.3g}{less}")
    else:
        expected.append("more items in the task")
    return f"{words}; expected {' or '.join(expected)}"
