"""Which items are for searching, for selecting the winner, and for the one look at the end.

An item's split follows from a hash of its content and the evaluator's `split_seed` alone, so that every study on one
evaluator agrees on what is test, whatever was added since.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping
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
        splits: Share and cap of each split. Where more fall into a split than its cap, the first by hash are kept.
        where: What messages begin with.

    Returns:
        The items of each split in the order of the data. Items of equal content share a split; the repeated ones get
        ids of their own ("ID#2"), so that they still pair.

    Raises:
        EvaluatorError: a split would be empty, or asks for more items than the task has.
    """
    bounds: list[tuple[Split, float, float]] = []
    low = 0.0
    for split in SPLITS:
        bounds.append((split, low, low + splits.of(split).share))
        low += splits.of(split).share
    found: dict[Split, list[tuple[float, Item]]] = {split: [] for split in SPLITS}
    seen: dict[str, int] = {}
    total = 0
    for index, content in enumerate(contents):
        total += 1
        key = content_id(content)
        seen[key] = seen.get(key, 0) + 1
        at = place(key, split_seed)
        for split, start, end in bounds:
            if start <= at < end:
                name = key if seen[key] == 1 else f"{key}#{seen[key]}"
                found[split].append((at, Item(index, name)))
    out: dict[Split, list[Item]] = {}
    for split in SPLITS:
        cap = splits.of(split).items
        has = len(found[split])
        if not has or (cap is not None and cap > total):
            asked = f", but items = {cap} are asked for" if cap else ""
            raise EvaluatorError(
                f"{where}: splits.{split} holds {has} of the {total} items{asked}; expected more items, a larger share "
                f"than {splits.of(split).share:g}, or fewer items asked for"
            )
        kept = sorted(found[split], key=lambda pair: (pair[0], pair[1].index))[:cap]
        out[split] = sorted((item for _, item in kept), key=lambda item: item.index)
    return out
