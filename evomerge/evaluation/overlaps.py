"""Items that two splits share, exactly or nearly, and items that stand in a text that a source was trained on.

A warning, never a refusal: what of it is a leak is for people to judge. Texts are compared without case, white space
and punctuation. Two items are near duplicates where their character 5-grams have a Jaccard similarity of at least 0.8
(Lee et al., arXiv 2107.06499, deduplicate at the same figure) and the same digits in the same order: a problem with
other numbers is another problem. Five-grams that more than half of a task's items have are its frame (instructions,
"Question:") and do not count. An item stands in a document where at least 0.8 of its 13-grams do (GPT-3's test for
contamination, arXiv 2005.14165, appendix C, has 13-grams of words; these are of characters, for languages without
spaces).
"""

from __future__ import annotations

import re
import unicodedata
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from evomerge.evaluation.config import SPLITS, Split

Hashes = npt.NDArray[np.uint64]
Texts = Mapping[Split, Mapping[str, Sequence[str]]]

SIMILAR = 0.8
PAIR_GRAM, CORPUS_GRAM = 5, 13
FRAME = 0.5
EXAMPLES = 2
# Beyond these, near duplicates are looked for among a sample, and a corpus is read no further.
MOST_ITEMS, MOST_CHARACTERS = 20_000, 20_000_000
_LEAST = 4  # n-grams of its own that an item must have to be compared by them
_PERMUTATIONS = 128
_CANDIDATE = 0.5  # where half of the pairs are looked at closely; at 0.8 all but one in ten thousand are
_SHOWN = 160  # characters of an example
_PRIME = np.uint64(0x100000001B3)  # FNV's
_ORDER = {split: i for i, split in enumerate(SPLITS)}


@dataclass(frozen=True)
class Overlap:
    """Items of one task and split that are found again elsewhere.

    Attributes:
        split, task: Whose items.
        also: Where: an earlier split, or what a text is called.
        also_task: The other task; None for a text.
        exact, near: How many items are there as they are, and nearly.
        items: How many were looked at.
        examples: (item, what it is like, similarity), at most two; the exact ones first.
    """

    split: Split
    task: str
    also: str
    also_task: str | None
    exact: int
    near: int
    items: int
    examples: tuple[tuple[str, str, float], ...]

    @property
    def words(self) -> str:
        """In a line."""
        counts = [f"{n:,} {kind}" for n, kind in ((self.exact, "exactly"), (self.near, "nearly")) if n]
        whose = "" if self.also_task in (None, self.task) else f" of {self.also_task}"
        where = f"in {self.also}{whose}" if self.also_task else f"in {self.also}"
        return f"{self.split} items of {self.task} that are {where} too: {' and '.join(counts)}, of {self.items:,}"


@dataclass(frozen=True)
class Overlaps:
    """What was found.

    Attributes:
        found: Where there is something to tell.
        items: How many items were looked at.
        sampled: Of how many of them near duplicates were looked for; None: all.
        texts: Of each text, its documents that were read, and whether that is all of it.
    """

    found: tuple[Overlap, ...]
    items: int
    sampled: int | None
    texts: Mapping[str, tuple[int, bool]]

    def lines(self) -> list[str]:
        """For people, with examples."""
        out = []
        for overlap in self.found:
            out.append(overlap.words)
            out += [f'  e.g. "{a}" and "{b}" ({alike:.2f} alike)' for a, b, alike in overlap.examples]
        if self.sampled is not None:
            out.append(f"near duplicates were looked for among {self.sampled:,} of {self.items:,} items")
        cut = {name: n for name, (n, whole) in self.texts.items() if not whole}
        out += [f"of {name} the first {n:,} documents were read" for name, n in cut.items()]
        return out

    def summary(self) -> list[str]:
        """For people who are about to spend hours: a line where a few items are alike, all of it where some are the
        same."""
        if any(o.exact for o in self.found):
            return [f"overlap: {line}" for line in self.lines()]
        alike = sum(o.near for o in self.found)
        where = "in another split or in what a model was trained on" if self.texts else "in another split"
        words = f"{alike:,} of {self.items:,} items are nearly the same as some {where}, none exactly"
        return [f"{words}: the report has them"] if alike else []

    def to_dict(self) -> dict[str, Any]:
        """For result.json: {"items", "sampled", "texts": {NAME: {"documents", "whole"}}, "found": [{"split", "task",
        "also", "also_task", "exact", "near", "items", "examples": [{"item", "like", "similarity"}]}]}."""
        return {
            "items": self.items,
            "sampled": self.sampled,
            "texts": {name: {"documents": n, "whole": whole} for name, (n, whole) in self.texts.items()},
            "found": [
                {
                    "split": o.split, "task": o.task, "also": o.also, "also_task": o.also_task, "exact": o.exact,
                    "near": o.near, "items": o.items,
                    "examples": [{"item": a, "like": b, "similarity": round(s, 3)} for a, b, s in o.examples],
                }
                for o in self.found
            ],
        }  # fmt: skip


def overlaps(texts: Texts, corpora: Mapping[str, Iterable[str]] | None = None) -> Overlaps:
    """Look for them.

    Args:
        texts: The text of every item, by split and task.
        corpora: Documents of texts that sources were trained on, by name.
    """
    items = [
        _Item(split, task, text, plain(text)) for split in SPLITS for task, shown in texts.get(split, {}).items()
        for text in shown
    ]  # fmt: skip
    counts = Counter((i.split, i.task) for i in items)
    rows = _Rows(counts)
    exact = _exact(items, rows)
    chosen = items
    if len(items) > MOST_ITEMS:
        chosen = [items[i] for i in sorted(np.random.default_rng(0).permutation(len(items))[:MOST_ITEMS].tolist())]
    _near(chosen, exact, rows)
    read = {name: _standing_in(name, documents, items, rows) for name, documents in (corpora or {}).items()}
    return Overlaps(rows.overlaps(), len(items), None if chosen is items else len(chosen), read)


def plain(text: str) -> str:
    """A text without case, accents of compatibility, white space and punctuation: words with one space between."""
    return " ".join(re.findall(r"\w+", unicodedata.normalize("NFKC", text).casefold()))


def grams(text: str, size: int) -> Hashes:
    """Hashes of a text's n-grams of characters, each once, rising; of a shorter text none."""
    codes = np.frombuffer(text.encode("utf-32-le", "surrogatepass"), np.uint32).astype(np.uint64)
    count = len(codes) - size + 1
    if count < 1:
        return np.zeros(0, np.uint64)
    found = np.full(count, 0xCBF29CE484222325, np.uint64)
    for i in range(size):
        found = (found ^ codes[i : i + count]) * _PRIME
    # FNV's low bits mix little of what came last.
    return np.unique(found ^ (found >> np.uint64(29)))


@dataclass(frozen=True)
class _Item:
    split: Split
    task: str
    text: str
    plain: str

    @property
    def digits(self) -> str:
        return "".join(c for c in self.plain if c.isdigit())


class _Rows:
    """Counts by (split, task, where, task there); an item counts once in each."""

    def __init__(self, counts: Mapping[tuple[Split, str], int]) -> None:
        self._counts = counts
        self._found: dict[tuple[Split, str, str, str | None], dict[int, tuple[bool, str, str, float]]] = {}

    def add(self, item: _Item, where: str, task: str | None, like: str, similarity: float, exact: bool) -> None:
        row = self._found.setdefault((item.split, item.task, where, task), {})
        there = row.get(id(item))
        if there is None or (similarity, exact) > (there[3], there[0]):
            row[id(item)] = (exact, item.text, like, similarity)

    def overlaps(self) -> tuple[Overlap, ...]:
        out = []
        for (split, task, where, other), row in self._found.items():
            best = sorted(row.values(), key=lambda f: (not f[0], -f[3]))
            exact = sum(f[0] for f in best)
            examples = tuple((_short(a), _short(b), s) for _, a, b, s in best[:EXAMPLES])
            total = self._counts[split, task]
            out.append(Overlap(split, task, where, other, exact, len(best) - exact, total, examples))
        return tuple(sorted(out, key=lambda o: (-_ORDER[o.split], o.also, o.task, o.also_task or "")))


def _short(text: str) -> str:
    """A line of a text; of a long one its end, where the question stands."""
    line = " ".join(text.split())
    return line if len(line) <= _SHOWN else f"... {line[4 - _SHOWN :]}"


def _exact(items: Sequence[_Item], rows: _Rows) -> set[tuple[int, int]]:
    """Pairs (ids) of items of different splits with the same plain text."""
    by_text: dict[str, list[_Item]] = {}
    for item in items:
        if item.plain:
            by_text.setdefault(item.plain, []).append(item)
    found = set()
    for same in by_text.values():
        # One of each split and task is enough to tell by.
        first = {(i.split, i.task): i for i in reversed(same)}
        for item in same if len(first) > 1 else ():
            for (split, task), other in first.items():
                if _ORDER[split] < _ORDER[item.split]:
                    rows.add(item, split, task, other.text, 1.0, True)
                    found.add((id(other), id(item)))
    return found


def _own(items: Sequence[_Item], size: int) -> list[Hashes]:
    """Of each item, its n-grams that are not its task's frame."""
    found = [grams(i.plain, size) for i in items]
    by_task: dict[str, list[int]] = {}
    for place, item in enumerate(items):
        by_task.setdefault(item.task, []).append(place)
    for places in by_task.values():
        if len(places) < 2 * EXAMPLES:
            continue
        values, times = np.unique(np.concatenate([found[p] for p in places]), return_counts=True)
        frame = values[times > FRAME * len(places)]
        for p in places:
            found[p] = found[p][~np.isin(found[p], frame)]
    return found


def _near(items: Sequence[_Item], exact: set[tuple[int, int]], rows: _Rows) -> None:
    from datasketch import MinHash, MinHashLSH

    own = [frozenset(g.tolist()) for g in _own(items, PAIR_GRAM)]
    digits = [i.digits for i in items]
    index = MinHashLSH(threshold=_CANDIDATE, num_perm=_PERMUTATIONS)
    empty = MinHash(_PERMUTATIONS, seed=1, hashfunc=_low)
    for place, hashes in enumerate(own):
        if len(hashes) < _LEAST:
            continue
        sketch = empty.copy()  # with its permutations, which take longer to draw than to apply
        sketch.update_batch(hashes)
        for other in sorted(index.query(sketch)):
            a, b = (place, other) if _ORDER[items[place].split] > _ORDER[items[other].split] else (other, place)
            if items[a].split == items[b].split or digits[a] != digits[b] or (id(items[b]), id(items[a])) in exact:
                continue
            shared = len(own[a] & own[b])
            similarity = shared / (len(own[a]) + len(own[b]) - shared)
            if similarity >= SIMILAR:
                rows.add(items[a], items[b].split, items[b].task, items[b].text, similarity, False)
        index.insert(place, sketch, check_duplication=False)


def _low(value: int) -> int:
    return value & 0xFFFFFFFF


def _standing_in(name: str, documents: Iterable[str], items: Sequence[_Item], rows: _Rows) -> tuple[int, bool]:
    """Note the items that stand in documents; returns how many documents were read, and whether that is all."""
    own = _own(items, CORPUS_GRAM)
    told = [p for p, g in enumerate(own) if len(g) >= _LEAST]
    of = np.repeat(told, [len(own[p]) for p in told]) if told else np.zeros(0, np.int64)
    every = np.concatenate([own[p] for p in told]) if told else np.zeros(0, np.uint64)
    order = np.argsort(every, kind="stable")
    every, of = every[order], of[order]
    sizes = np.array([len(g) for g in own])
    read = characters = 0
    for document in documents:
        if characters >= MOST_CHARACTERS:
            return read, False
        read, characters = read + 1, characters + len(document)
        text = plain(document)
        seen = grams(text, CORPUS_GRAM)
        start, end = np.searchsorted(every, seen, "left"), np.searchsorted(every, seen, "right")
        hit = np.flatnonzero(end > start)
        if not len(hit):
            continue
        places = np.concatenate([of[start[h] : end[h]] for h in hit])
        for place, times in zip(*np.unique(places, return_counts=True), strict=True):
            if times >= SIMILAR * sizes[place]:
                item, share = items[place], float(times / sizes[place])
                rows.add(item, name, None, _around(document, item), share, item.plain in text)
    return read, True


def _around(document: str, item: _Item) -> str:
    """Of a document, what stands around an item's longest word."""
    words = re.findall(r"\w+", item.text)
    at = document.find(max(words, key=len)) if words else 0
    return document[max(0, at - _SHOWN // 2) :][:_SHOWN]
