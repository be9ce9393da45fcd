"""What the target learns from, worked out for a whole corpus: shard by shard, on disk, from the caches of the
sources."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from evomerge.errors import EvoMergeError
from evomerge.fusion import fused
from evomerge.fusion.alignment import (
    Aligner,
    Alignment,
    ByteAligner,
    DynamicAligner,
    Pairs,
    exact_map,
    kept_edit_distance_map,
    read_map,
    statistics_map,
)
from evomerge.fusion.config import MAPPED, AlignmentConfig, FunctionConfig, Loss
from evomerge.fusion.documents import Document
from evomerge.fusion.files import MANIFEST, clear_parts, key_of, read_json_object, sha256, whole, write_json
from evomerge.fusion.prepared import Prepared, read_documents
from evomerge.fusion.teachers.cache import Cache
from evomerge.fusion.teachers.observe import wanted
from evomerge.fusion.tokenized import Reader, Tokenized
from evomerge.fusion.vocabulary import Vocabulary
from evomerge.fusion.workers import Watcher, Workers
from evomerge.sources import Source

Array = np.ndarray[Any, Any]
VERSION = 2
IGNORED = -100
OWN = "target"


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


@dataclass(frozen=True)
class Job:
    """One target to be made from some sources.

    Attributes:
        target: The target; with its cache where it is one of the sources itself.
        sources: The others.
        maps: Vocabulary maps of `sources`, by name; empty where none is needed.
        folder: Where it goes.
    """

    name: str
    target: Told
    sources: tuple[Told, ...]
    corpus: tuple[Path, ...]
    alignment: AlignmentConfig
    function: FunctionConfig
    loss: Loss
    maps: Mapping[str, Array]
    folder: Path
    trust_remote_code: bool = False

    @property
    def taught(self) -> tuple[Told, ...]:
        """Every source that says something, the target first where it does."""
        return (*([self.target] if self.target.cache is not None else []), *self.sources)


@dataclass(frozen=True)
class Targets:
    """What one target learns from, opened.

    Attributes:
        files: Of each shard, Arrow streams.
        hashes: Theirs.
        learned: Tokens to learn.
        aligned: Those at which something is learned from a source.
        taken: Of those, how many from each source (of an average: where it weighs most).
    """

    files: tuple[Path, ...]
    hashes: tuple[str, ...]
    documents: int
    learned: int
    aligned: int
    taken: Mapping[str, int]


def vocabulary_maps(
    target: Told, sources: Sequence[Told], corpus: Prepared, alignment: AlignmentConfig, folder: Path, workers: Workers,
    watcher: Watcher, *, trust_remote_code: bool = False,
) -> dict[str, Array]:  # fmt: skip
    """The vocabulary map of each source, as the configuration wants it; those of statistics are kept in the folder."""
    readers = {t.name: _reader(t, trust_remote_code) for t in (target, *sources)}
    own = readers[target.name].vocabulary
    found: dict[str, Array] = {}
    counted: dict[str, Path] = {}
    for told in sources:
        vocabulary = readers[told.name].vocabulary
        if alignment.vocabulary == "exact":
            found[told.name] = exact_map(vocabulary, own)
        elif alignment.vocabulary == "edit_distance":
            watcher.say(f"vocabulary map of {told.name}: {vocabulary.size:,} tokens onto {own.size:,} by edit distance")
            found[told.name] = kept_edit_distance_map(vocabulary, own, workers=_threads())
        else:
            facts = {
                "version": VERSION, "corpus": [s.content for s in corpus.shards],
                "source": vocabulary.key, "target": own.key,
                "aligner": alignment.aligner, "order": alignment.order, "score": alignment.score,
            }  # fmt: skip
            counted[told.name] = folder / f"{told.name}-{key_of(facts)}.npy"
    for name, file in counted.items():
        kept = read_map(file, readers[name].vocabulary)
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
            with whole(counted[told.name]) as part, part.open("wb") as stream:
                np.save(stream, mapping, allow_pickle=False)
            found[told.name] = mapping
    return found


def make_targets(jobs: Sequence[Job], corpus: Prepared, workers: Workers, watcher: Watcher) -> list[Targets]:
    """Work out what each target learns from; what lies in its folder already and is whole stays."""
    manifests = {job.name: _Manifest.at(job, len(corpus.shards)) for job in jobs}
    items = [(job.name, shard) for job in jobs for shard in manifests[job.name].missing()]
    if items:
        total = sum(s.documents for s in corpus.shards) * len(jobs)
        left = sum(corpus.shards[shard].documents for _, shard in items)
        watcher.begin("alignment and fusion", total, "documents", total - left)
        try:
            for number, facts in workers.run(_FuseMaker({job.name: job for job in jobs}), items):
                name, shard = items[number]
                manifests[name].add(shard, facts)
                watcher.advance(corpus.shards[shard].documents)
        finally:
            watcher.end()
    return [manifests[job.name].opened() for job in jobs]


def _threads() -> int:
    import os

    return os.cpu_count() or 1


def _reader(told: Told, trust: bool) -> Reader:
    from evomerge.merging.live import load_tokenizer

    return Reader(Vocabulary(load_tokenizer(told.source, trust_remote_code=trust), told.name), told.name)


def _shard_file(shard: int) -> str:
    return f"shard-{shard:05d}.arrow"


@dataclass
class _Manifest:
    """Which shards of a target are there."""

    folder: Path
    key: str
    names: tuple[str, ...]
    shards: list[dict[str, Any] | None]

    @classmethod
    def at(cls, job: Job, count: int) -> _Manifest:
        facts = {
            "version": VERSION,
            "loss": job.loss,
            "alignment": job.alignment.model_dump(mode="json"),
            "function": job.function.model_dump(mode="json", exclude={"mode"}),
            "target": job.target.source.content_hash(),
            "sources": [
                [t.name, t.source.content_hash(), t.tokenizer, t.cache.hashes if t.cache else None] for t in job.taught
            ],
            "tokenizer": job.target.tokenizer,
            "maps": {name: key_of({"map": m.tobytes().hex()}) for name, m in sorted(job.maps.items())},
            "corpus": [sha256(f) for f in job.corpus],
        }
        key = key_of(facts)
        found = read_json_object(job.folder / MANIFEST) or {}
        shards = found.get("shards") if found.get("key") == key else None
        if not isinstance(shards, list) or len(shards) != count:
            shards = [None] * count
        return cls(job.folder, key, tuple(t.name for t in job.taught), shards)

    def missing(self) -> list[int]:
        clear_parts(self.folder)
        found = []
        for i, shard in enumerate(self.shards):
            if shard is None or sha256(self.folder / _shard_file(i)) != shard["sha256"]:
                self.shards[i] = None
                found.append(i)
        return found

    def add(self, shard: int, facts: dict[str, Any]) -> None:
        self.shards[shard] = facts
        write_json(self.folder / MANIFEST, {"key": self.key, "shards": self.shards})

    def opened(self) -> Targets:
        if any(s is None for s in self.shards):
            raise EvoMergeError(f"{self.folder}: is not whole")
        shards = [s for s in self.shards if s is not None]
        taken = {name: sum(int(s["taken"].get(name, 0)) for s in shards) for name in self.names}
        totals = {k: sum(s[k] for s in shards) for k in ("documents", "learned", "aligned")}
        files = tuple(self.folder / _shard_file(i) for i in range(len(shards)))
        hashes = tuple(str(s["sha256"]) for s in shards)
        return Targets(files, hashes, totals["documents"], totals["learned"], totals["aligned"], taken)


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
        self._target = _reader(asked.target, asked.trust)
        self._readers = {t.name: _reader(t, asked.trust) for t in asked.sources}

    def __call__(self, item: tuple[str, int]) -> Pairs:
        name, shard = item
        documents = read_documents(self._asked.corpus[shard])
        reader = self._readers[name]
        own, others = self._target.read(documents), reader.read(documents)
        aligner = _aligner(self._asked.alignment, self._target.vocabulary, reader.vocabulary, None)
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


def _aligner(alignment: AlignmentConfig, target: Vocabulary, source: Vocabulary, to_target: Array | None) -> Aligner:
    if alignment.aligner == "bytes":
        return ByteAligner()
    mapping = exact_map(source, target) if to_target is None else to_target
    return DynamicAligner(target, source, mapping, alignment.order)


@dataclass(frozen=True)
class _FuseMaker:
    jobs: Mapping[str, Job]

    def __call__(self, device: str) -> _Fuser:
        return _Fuser(self.jobs)


class _Fuser:
    """Aligns and fuses one shard for one target."""

    def __init__(self, jobs: Mapping[str, Job]) -> None:
        self._jobs = jobs
        self._readers: dict[str, Reader] = {}

    def __call__(self, item: tuple[str, int]) -> dict[str, Any]:
        name, shard = item
        job = self._jobs[name]
        documents = read_documents(job.corpus[shard])
        own = self._reader(job.target, job).read(documents)
        identity = np.arange(self._reader(job.target, job).vocabulary.size, dtype=np.int32)
        told: list[list[fused.Said]] = [[] for _ in documents]
        for source in job.taught:
            self._add(source, job, shard, documents, own, identity, told)
        rows, facts = _rows(job, own, told)
        file = job.folder / _shard_file(shard)
        with whole(file) as part:
            table = pa.table(rows)
            with pa.OSFile(str(part), "wb") as sink, pa.ipc.new_stream(sink, table.schema) as writer:
                writer.write_table(table, max_chunksize=256)
        return {"sha256": sha256(file), **facts}

    def _add(
        self, source: Told, job: Job, shard: int, documents: Sequence[Document], own: Sequence[Tokenized],
        identity: Array, told: list[list[fused.Said]],
    ) -> None:  # fmt: skip
        assert source.cache is not None
        reader = self._reader(source, job)
        tokens = own if source.name == OWN else reader.read(documents)
        kept = source.cache.read(shard)
        mapping = identity if source.name == OWN else job.maps.get(source.name)
        if mapping is None:
            mapping = np.full(reader.vocabulary.size, -1, np.int32)
        target = self._reader(job.target, job).vocabulary
        aligner: Aligner = (
            ByteAligner() if source.name == OWN else _aligner(job.alignment, target, reader.vocabulary, mapping)
        )
        for i, (t, s, (ids, observed)) in enumerate(zip(own, tokens, kept, strict=True)):
            if not np.array_equal(ids, s.ids):
                raise EvoMergeError(
                    f"{source.cache.folder}: was made with other tokens of document {documents[i].place} than the "
                    f"tokenizer of {source.name} gives now; remove that folder"
                )
            told[i].append(fused.said(t, s, observed, aligner.align(t, s), mapping, job.function.compare))

    def _reader(self, told: Told, job: Job) -> Reader:
        if told.name not in self._readers:
            self._readers[told.name] = _reader(told, job.trust_remote_code)
        return self._readers[told.name]


def _rows(
    job: Job, own: Sequence[Tokenized], told: Sequence[Sequence[fused.Said]]
) -> tuple[dict[str, list[Any]], dict[str, Any]]:
    """The columns of a shard, and what is counted of it."""
    names = [t.name for t in job.taught]
    surprises = _surprises(job.function, own, told)
    columns: dict[str, list[Any]] = {"input_ids": [], "labels": []}
    aligned = 0
    taken = dict.fromkeys(names, 0)
    for tokens, sources, surprise in zip(own, told, surprises, strict=True):
        columns["input_ids"].append(tokens.ids.astype(np.int32))
        columns["labels"].append(np.where(tokens.learned & tokens.known, tokens.ids, IGNORED).astype(np.int32))
        if not sources:
            continue
        chosen = fused.choice(surprise)
        positions = _add_columns(job, columns, tokens, sources, surprise, chosen)
        aligned += len(positions)
        if job.loss in MAPPED and job.function.function == "avg_ce":
            # Where several are averaged, the one that weighs most of those that have something to say.
            there = np.stack([s.rows for s in sources]) >= 0
            chosen = fused.choice(np.where(there, surprise, np.inf))
        for number, count in enumerate(np.bincount(chosen[positions], minlength=len(names)).tolist()):
            taken[names[number]] += count
    facts = {
        "documents": len(own), "learned": int(sum(len(wanted(t)) for t in own)), "aligned": aligned, "taken": taken,
    }  # fmt: skip
    return columns, facts


def _add_columns(
    job: Job, columns: dict[str, list[Any]], tokens: Tokenized, sources: Sequence[fused.Said], surprise: Array,
    chosen: Array,
) -> Array:  # fmt: skip
    """Put what is learned from the sources in one document into the columns; gives the positions that it is about."""

    def put(**values: Array) -> None:
        for name, value in values.items():
            columns.setdefault(name, []).append(value)

    if job.loss in MAPPED:
        if job.function.function == "min_ce":
            found = fused.min_ce(sources, chosen)
        else:
            scored = tokens.scored
            bytes_per_token = float(tokens.sizes[scored].sum()) / max(int(scored.sum()), 1)
            found = fused.avg_ce(sources, fused.weights(surprise, bytes_per_token, job.function.compare))
        put(
            fused_positions=found.positions, fused_counts=found.counts, fused_ids=found.ids,
            fused_probabilities=found.probabilities.astype(np.float16),
        )  # fmt: skip
        return found.positions
    rows = np.stack([s.rows for s in sources])[chosen, np.arange(len(tokens))]
    positions = np.flatnonzero(rows >= 0).astype(np.int32)
    if job.loss == "uld":
        picked = [sources[chosen[p]].probabilities[rows[p]] for p in positions.tolist()]
        k = sources[0].probabilities.shape[1]
        width = max((len(x) for x in picked), default=k)
        table = np.zeros((len(picked), width), np.float16)
        for i, x in enumerate(picked):
            table[i, : len(x)] = x
        put(sorted_positions=positions, sorted_probabilities=table.ravel(), sorted_width=np.array([width], np.int32))
        return positions
    # Likelihoods of chunks: those of one source over the document, or over each of its chunks where sources change.
    chunks = np.full(len(tokens), -1, np.int32)
    likelihoods: list[float] = []
    p = 0
    while p < len(tokens):
        s = sources[chosen[p]]
        chunk = int(s.chunks[p])
        if chunk < 0 or (p and s.chunks[p - 1] == chunk):  # none begins here
            p += 1
            continue
        # Whoever is chosen where a chunk begins has all of it: inside, only the target stands anywhere.
        until = p + int(np.count_nonzero(s.chunks == chunk))
        chunks[p:until] = len(likelihoods)
        likelihoods.append(float(s.chunk_likelihoods[chunk]))
        p = until
    put(chunks=chunks, chunk_likelihoods=np.array(likelihoods, np.float32))
    return np.flatnonzero(chunks >= 0).astype(np.int32)


def _surprises(function: FunctionConfig, own: Sequence[Tokenized], told: Sequence[Sequence[fused.Said]]) -> list[Array]:
    """How badly each source expected what it is compared over, at every position of each document, [sources, n]."""
    if function.per == "token":
        return [
            np.stack([s.ahead for s in sources]) if sources else np.zeros((0, len(t)))
            for t, sources in zip(own, told, strict=True)
        ]
    blocks: list[list[int]] = [[i] for i in range(len(own))]
    if function.per == "block":
        blocks, size = [], 0
        for i, tokens in enumerate(own):
            if not blocks or size + len(tokens) > function.block_tokens:
                blocks.append([])
                size = 0
            blocks[-1].append(i)
            size += len(tokens)
    found: list[Array] = [np.zeros((0, 0))] * len(own)
    for block in blocks:
        per_source = []
        for number in range(len(told[block[0]])):
            parts = [told[i][number] for i in block]
            if function.compare == "tokens" and function.per == "block":
                # As published: the mean over the packed texts of each one's mean.
                per_source.append(float(np.mean([p.surprise("tokens") for p in parts])))
            else:
                by = sum(p.size if function.compare == "bytes" else p.tokens for p in parts)
                per_source.append(sum(p.nats for p in parts) / by if by else np.inf)
        for i in block:
            found[i] = np.repeat(np.array(per_source)[:, None], len(own[i]), axis=1)
    return found
