"""The vocabulary map of each source of a fusion: from strings, or from how often tokens of the corpus meet."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from evomerge.fusion.alignment import (
    Aligner,
    Alignment,
    ByteAligner,
    DynamicAligner,
    Pairs,
    exact_map,
    kept_edit_distance_map,
    kept_map,
    read_map,
    statistics_map,
)
from evomerge.fusion.config import AlignmentConfig
from evomerge.fusion.files import key_of, whole
from evomerge.fusion.prepared import Prepared, read_documents
from evomerge.fusion.teachers.cache import Cache
from evomerge.fusion.tokenized import Reader, Tokenized
from evomerge.fusion.vocabulary import Vocabulary
from evomerge.fusion.workers import Watcher, Workers
from evomerge.sources import Source

Array = np.ndarray[Any, Any]
VERSION = 3


@dataclass(frozen=True)
class Told:
    """A source of a fusion: its model and what it said; crosses to other machines.

    Attributes:
        name: "target" for the target itself.
        cache: None where nothing is asked of it but its tokenizer.
        tokenizer: `Vocabulary.key` of its tokenizer.
    """

    name: str
    source: Source
    cache: Cache | None = None
    tokenizer: str = ""


def vocabulary_maps(
    target: Told, sources: Sequence[Told], corpus: Prepared, alignment: AlignmentConfig, folder: Path, workers: Workers,
    watcher: Watcher, *, trust_remote_code: bool = False,
) -> dict[str, Array]:  # fmt: skip
    """The vocabulary map of each source, as the configuration wants it; those of statistics are kept in the folder."""
    readers = {t.name: reader_of(t, trust_remote_code) for t in (target, *sources)}
    own = readers[target.name].vocabulary
    found: dict[str, Array] = {}
    counted: dict[str, Path] = {}
    for told in sources:
        vocabulary = readers[told.name].vocabulary
        if alignment.vocabulary == "exact":
            found[told.name] = exact_map(vocabulary, own)
        elif alignment.vocabulary == "edit_distance":
            watcher.say(f"vocabulary map of {told.name}: {vocabulary.size:,} tokens onto {own.size:,} by edit distance")
            found[told.name] = kept_edit_distance_map(vocabulary, own, workers=_threads(), say=watcher.say)
        else:
            facts = {
                "version": VERSION, "corpus": [s.content for s in corpus.shards],
                "source": vocabulary.key, "target": own.key,
                "aligner": alignment.aligner, "order": alignment.order, "score": alignment.score,
            }  # fmt: skip
            counted[told.name] = folder / f"{told.name}-{key_of(facts)}.npy"
    for name, file in counted.items():
        kept = read_map(file, readers[name].vocabulary, own, watcher.say)
        if kept is not None:
            found[name] = kept
    missing = [t for t in sources if t.name in counted and t.name not in found]
    if missing:
        items = [(t.name, shard) for t in missing for shard in range(len(corpus.shards))]
        files = tuple(corpus.folder / s.name for s in corpus.shards)
        watcher.begin("vocabulary maps", len(items), "shards")
        parts: dict[str, dict[int, Pairs]] = {t.name: {} for t in missing}
        try:
            made = _CountMaker(target, tuple(missing), files, alignment, trust_remote_code)
            for number, pairs in workers.run(made, items):
                name, shard = items[number]
                parts[name][shard] = pairs
                watcher.advance(1)
        finally:
            watcher.end()
        for told in missing:
            total = Pairs.summed([parts[told.name][i] for i in sorted(parts[told.name])])
            mapping = statistics_map(
                readers[told.name].vocabulary, own, total, published=alignment.score == "published"
            )
            file = counted[told.name]
            with whole(file) as part:
                part.write_bytes(kept_map(file.name, mapping))
            found[told.name] = mapping
    return found


def _threads() -> int:
    import os

    return os.cpu_count() or 1


def reader_of(told: Told, trust: bool) -> Reader:
    from evomerge.merging.live import load_tokenizer

    return Reader(Vocabulary(load_tokenizer(told.source, trust_remote_code=trust), told.name), told.name)


@dataclass(frozen=True)
class _CountMaker:
    target: Told
    sources: tuple[Told, ...]
    corpus: tuple[Path, ...]
    alignment: AlignmentConfig
    trust: bool

    def __call__(self, device: str) -> _Counter:
        return _Counter(self)


class _Counter:
    """Counts, over one shard, which tokens of a source and of the target stand for each other."""

    def __init__(self, asked: _CountMaker) -> None:
        self._asked = asked
        self._target = reader_of(asked.target, asked.trust)
        self._readers = {t.name: reader_of(t, asked.trust) for t in asked.sources}

    def __call__(self, item: tuple[str, int]) -> Pairs:
        name, shard = item
        documents = read_documents(self._asked.corpus[shard])
        reader = self._readers[name]
        own, others = self._target.read(documents), reader.read(documents)
        aligner = aligner_of(self._asked.alignment, self._target.vocabulary, reader.vocabulary, None)
        source, target = [], []
        for t, s in zip(own, others, strict=True):
            found = aligner.align(t, s)
            a, b = _next_tokens(t, s, found) if self._asked.alignment.aligner == "bytes" else _matched(t, s, found)
            source.append(a)
            target.append(b)
        return Pairs.of(np.concatenate(source), np.concatenate(target))


def _next_tokens(target: Tokenized, source: Tokenized, found: Alignment) -> tuple[Array, Array]:
    """What comes next for either, where both stand at the same byte."""
    at = np.flatnonzero(found.rows >= 0)
    at = at[at + 1 < len(target)]
    theirs = found.rows[at]
    good = (theirs + 1 < len(source)) & target.learned[np.minimum(at + 1, len(target) - 1)]
    at, theirs = at[good], theirs[good]
    good = source.known[theirs + 1] & target.known[at + 1] & source.learned[theirs + 1]
    return source.ids[theirs[good] + 1], target.ids[at[good] + 1]


def _matched(target: Tokenized, source: Tokenized, found: Alignment) -> tuple[Array, Array]:
    """Every pair of matched tokens."""
    at = np.flatnonzero((found.first >= 0) & (target.sizes > 0))
    counts = found.last[at] - found.first[at] + 1
    own = np.repeat(at, counts)
    first = np.repeat(found.first[at], counts)
    theirs = first + np.arange(len(own)) - np.repeat(np.cumsum(counts) - counts, counts)
    return source.ids[theirs], target.ids[own]


def aligner_of(alignment: AlignmentConfig, target: Vocabulary, source: Vocabulary, to_target: Array | None) -> Aligner:
    if alignment.aligner == "bytes":
        return ByteAligner()
    mapping = exact_map(source, target) if to_target is None else to_target
    return DynamicAligner(target, source, mapping, alignment.order)
