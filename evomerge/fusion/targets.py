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
from evomerge.fusion.alignment import Aligner, ByteAligner
from evomerge.fusion.columns import columns_of
from evomerge.fusion.config import TARGET, AlignmentConfig, FunctionConfig, Loss
from evomerge.fusion.counting import Told, aligner_of, reader_of
from evomerge.fusion.documents import Document
from evomerge.fusion.files import Manifest, clear_parts, key_of, sha256, whole
from evomerge.fusion.prepared import Prepared, read_documents
from evomerge.fusion.tokenized import Reader, Tokenized
from evomerge.fusion.workers import Watcher, Workers

Array = np.ndarray[Any, Any]
VERSION = 2


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
    learned: int
    aligned: int
    taken: Mapping[str, int]


def make_targets(jobs: Sequence[Job], corpus: Prepared, workers: Workers, watcher: Watcher) -> list[Targets]:
    """Work out what each target learns from; what lies in its folder already and is whole stays."""
    manifests = {job.name: _manifest(job, corpus) for job in jobs}
    for job in jobs:
        clear_parts(job.folder)
    items = [(job.name, shard) for job in jobs for shard, _ in manifests[job.name].missing()]
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
    return [_opened(job, manifests[job.name]) for job in jobs]


def _shard_file(shard: int) -> str:
    return f"shard-{shard:05d}.arrow"


def _manifest(job: Job, corpus: Prepared) -> Manifest:
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
        "corpus": [s.sha256 for s in corpus.shards],
    }
    return Manifest.at(job.folder, key_of(facts), _shard_file, len(corpus.shards))


def _opened(job: Job, manifest: Manifest) -> Targets:
    shards = manifest.whole()
    return Targets(
        files=tuple(manifest.file(i) for i in range(len(shards))),
        hashes=tuple(str(s["sha256"]) for s in shards),
        learned=sum(s["learned"] for s in shards),
        aligned=sum(s["aligned"] for s in shards),
        taken={t.name: sum(int(s["taken"].get(t.name, 0)) for s in shards) for t in job.taught},
    )


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
        rows, facts = columns_of(job, own, told)
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
        tokens = own if source.name == TARGET else reader.read(documents)
        kept = source.cache.read(shard)
        mapping = identity if source.name == TARGET else job.maps.get(source.name)
        if mapping is None:
            mapping = np.full(reader.vocabulary.size, -1, np.int32)
        target = self._reader(job.target, job).vocabulary
        aligner: Aligner = (
            ByteAligner() if source.name == TARGET else aligner_of(job.alignment, target, reader.vocabulary, mapping)
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
            self._readers[told.name] = reader_of(told, job.trust_remote_code)
        return self._readers[told.name]
