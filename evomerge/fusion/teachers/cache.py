"""What a source says of a prepared corpus, on disk: Parquet files of one shard of the corpus each, and their hashes.

One row is one document. At k = 10 a position takes about 45 bytes (ids of a vocabulary of 128k, drawn at random):
numbers are split into streams of bytes of one significance, which zstd packs.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from evomerge.errors import SourceError
from evomerge.fusion.alone import alone
from evomerge.fusion.files import Manifest, clear_parts, key_of, sha256, whole
from evomerge.fusion.loading import loaded
from evomerge.fusion.prepared import Prepared, read_documents
from evomerge.fusion.teachers.observe import Observed, observe, wanted
from evomerge.fusion.teachers.progress import Report, Reports
from evomerge.fusion.tokenized import BYTE_NATS, Reader, Tokenized, unwritable
from evomerge.fusion.vocabulary import Vocabulary
from evomerge.fusion.workers import Watcher, Workers
from evomerge.sources import Source

VERSION = 2
_COLUMNS = ("ids", "positions", "likelihoods", "top_ids", "top_logprobs")
_WIDE = 1 << 16


@dataclass(frozen=True)
class CacheKey:
    """Everything that decides what a cache holds.

    Attributes:
        model: Content hash of the source.
        corpus: `Prepared.key_for` the source.
        dtype: Type that is computed in; "own": the checkpoint's.
    """

    model: str
    corpus: str
    top_k: int
    dtype: str

    @property
    def short(self) -> str:
        """Name of the cache's folder, beside the source's."""
        return key_of(
            {"version": VERSION, "model": self.model, "corpus": self.corpus, "k": self.top_k, "dtype": self.dtype}
        )


@dataclass(frozen=True)
class Cache:
    """A whole cache, opened.

    Attributes:
        files: Of each shard of the corpus, in order.
        positions: How many there are in all.
    """

    folder: Path
    files: tuple[str, ...]
    hashes: tuple[str, ...]
    positions: int

    def read(self, shard: int) -> list[tuple[np.ndarray[Any, Any], Observed]]:
        """Token ids and what was observed, of each document of a shard."""
        return read_shard(self.folder / self.files[shard])

    @property
    def size(self) -> int:
        """Bytes on disk."""
        return sum((self.folder / f).stat().st_size for f in self.files)


@dataclass(frozen=True)
class Pass:
    """What a worker needs to know of the pass of one source; crosses to other machines.

    Attributes:
        name: What messages call the source.
        corpus: Files of the corpus's shards.
    """

    name: str
    source: Source
    corpus: tuple[Path, ...]
    folder: Path
    top_k: int
    batch_tokens: int
    dtype: str
    trust_remote_code: bool = False


def folder_of(root: Path, name: str, key: CacheKey) -> Path:
    """Where the cache of a source lies."""
    return root / f"{name}-{key.short}"


def shard_file(shard: int) -> str:
    """Name of a shard's file."""
    return f"shard-{shard:05d}.parquet"


def fill(passes: dict[str, Pass], corpus: Prepared, workers: Workers, watcher: Watcher) -> None:
    """Make what is missing of the caches of several sources: all their shards, in one go over all workers.

    A shard that is there and has the hash that it was written with stays as it is.

    Raises:
        SourceError: a source cannot be loaded.
        EvoMergeError: a source's logits are not finite.
    """
    if not any(_manifest(p.folder, len(corpus.shards)).missing() for p in passes.values()):
        return
    with ExitStack() as held:
        # Fusions of the same text and sources may share the folders: the second waits, and then has nothing to do.
        for folder in sorted(p.folder for p in passes.values()):
            held.enter_context(alone(folder, "another fusion makes this pass", patience=math.inf, waiting=watcher.say))
        _fill(passes, corpus, workers, watcher)


def _fill(passes: dict[str, Pass], corpus: Prepared, workers: Workers, watcher: Watcher) -> None:
    """`fill`, in folders that nobody else writes to."""
    manifests = {name: _manifest(p.folder, len(corpus.shards)) for name, p in passes.items()}
    items = []
    for name, manifest in manifests.items():
        clear_parts(manifest.folder)
        for shard, damaged in manifest.missing():
            if damaged:
                watcher.say(f"{manifest.file(shard)}: is not what was written there; made again")
            items.append((name, shard))
    total = sum(corpus.tokens(name) for name in passes)
    left = sum(corpus.shards[shard].tokens[name] for name, shard in items)
    if not items:
        return
    watcher.begin("passes of the sources", total, "tokens", total - left)
    reports = Reports(
        [(passes[n].folder, shard_file(shard), corpus.shards[shard].tokens[n]) for n, shard in items], watcher
    )
    done = watcher.advance if workers.local else None
    try:
        for number, facts in workers.run(_Maker(passes, done), items, reports.poll):
            name, shard = items[number]
            manifests[name].add(shard, facts)
            if not workers.local:
                reports.done(number, name)
    finally:
        watcher.end()


def open_cache(folder: Path, shards: int) -> Cache:
    """A cache that `fill` made.

    Raises:
        EvoMergeError: it is not whole.
    """
    found = _manifest(folder, shards).whole()
    files = tuple(shard_file(i) for i in range(shards))
    return Cache(folder, files, tuple(s["sha256"] for s in found), sum(s["positions"] for s in found))


def _manifest(folder: Path, count: int) -> Manifest:
    """The folder's name says what the pass is of."""
    return Manifest.at(folder, str(VERSION), shard_file, count)


@dataclass(frozen=True)
class _Maker:
    """Makes an observer on a worker."""

    passes: dict[str, Pass]
    progress: Callable[[int], None] | None

    def __call__(self, device: str) -> _Observer:
        return _Observer(self.passes, device, self.progress)


class _Observer:
    """Holds one source at a time and runs it over shards."""

    def __init__(self, passes: dict[str, Pass], device: str, progress: Callable[[int], None] | None) -> None:
        self._passes, self._device, self._progress = passes, device, progress
        self._name: str | None = None
        self._model: Any = None
        self._reader: Reader | None = None

    def __call__(self, item: tuple[str, int]) -> dict[str, Any]:
        name, shard = item
        own = self._passes[name]
        if self._name != name:
            self._load(own)
        assert self._reader is not None
        tokens = self._reader.read(read_documents(own.corpus[shard]))
        check_tokens(tokens, self._model, own.name)
        file = own.folder / shard_file(shard)
        file.parent.mkdir(parents=True, exist_ok=True)
        report = Report(file.parent, file.name)
        observed = observe(self._model, tokens, own.top_k, own.batch_tokens, self._progress or report)
        write_shard(file, tokens, observed)
        report.done()
        return {"sha256": sha256(file), "positions": sum(len(o.positions) for o in observed)}

    def _load(self, own: Pass) -> None:
        self._model = None  # the one before goes first: two may not fit
        self._model, tokenizer = loaded(own.source, own.dtype, self._device, trust_remote_code=own.trust_remote_code)
        self._reader = Reader(Vocabulary(tokenizer, own.name), own.name)
        self._name = own.name


def check_tokens(tokens: Sequence[Tokenized], model: Any, name: str) -> None:
    """Raise SourceError where a tokenizer gives tokens that its model has no row for."""
    rows = int(model.get_input_embeddings().weight.shape[0])
    largest = max((int(t.ids.max()) for t in tokens if len(t)), default=0)
    if largest >= rows:
        raise SourceError(f"{name}: its tokenizer gives token {largest}, its embedding has {rows} rows")


def nats_and_bytes(tokens: Tokenized, observed: Observed) -> tuple[float, int]:
    """Negative log-likelihood of the text that is to be learned, and its size.

    The first token of a model that puts none before a text is predicted from nothing, and does not count. Bytes that
    the tokenizer could not write cost 8 bits each.
    """
    scored = tokens.scored[observed.positions + 1]
    sizes = tokens.sizes[observed.positions + 1]
    lost = unwritable(tokens)
    nats = float(-observed.likelihoods[scored].sum(dtype=np.float64))
    return nats + lost * BYTE_NATS, int(sizes[scored].sum()) + lost


def write_shard(file: Path, tokens: Sequence[Tokenized], observed: Sequence[Observed]) -> None:
    """Write the documents of a shard, whole."""
    k = observed[0].top_ids.shape[1]
    ids = np.concatenate([t.ids for t in tokens])
    top_ids = np.concatenate([o.top_ids.ravel() for o in observed])
    narrow = max(int(ids.max(initial=0)), int(top_ids.max(initial=0))) < _WIDE
    kind = np.uint16 if narrow else np.uint32
    lengths, counts = [len(t) for t in tokens], [len(o.positions) for o in observed]
    columns = {
        "ids": _lists(ids.astype(kind), lengths),
        "positions": _lists(np.concatenate([o.positions for o in observed]), counts),
        "likelihoods": _lists(np.concatenate([o.likelihoods for o in observed]), counts),
        "top_ids": _lists(top_ids.astype(kind), [n * k for n in counts]),
        "top_logprobs": _lists(np.concatenate([o.top_logprobs.ravel() for o in observed]), [n * k for n in counts]),
    }
    table = pa.table(columns).replace_schema_metadata({"evomerge.top_k": str(k), "evomerge.version": str(VERSION)})
    encoding = {f"{c}.list.element": "BYTE_STREAM_SPLIT" for c in _COLUMNS if c != "positions"}
    encoding["positions.list.element"] = "DELTA_BINARY_PACKED"
    with whole(file) as part:
        pq.write_table(table, part, compression="zstd", use_dictionary=False, column_encoding=encoding)


def read_shard(file: Path) -> list[tuple[np.ndarray[Any, Any], Observed]]:
    """What `write_shard` wrote."""
    table = pq.read_table(file)
    k = int(table.schema.metadata[b"evomerge.top_k"])
    parts = {name: _arrays(table.column(name)) for name in _COLUMNS}
    return [
        (
            parts["ids"][i].astype(np.int32),
            Observed(
                parts["positions"][i],
                parts["likelihoods"][i],
                parts["top_ids"][i].reshape(-1, k).astype(np.int32),
                parts["top_logprobs"][i].reshape(-1, k),
            ),
        )
        for i in range(table.num_rows)
    ]


def _lists(values: np.ndarray[Any, Any], sizes: Sequence[int]) -> pa.ListArray:
    offsets = np.concatenate([[0], np.cumsum(sizes)]).astype(np.int32)
    return pa.ListArray.from_arrays(pa.array(offsets), pa.array(values))


def _arrays(column: Any) -> list[np.ndarray[Any, Any]]:
    whole_column = column.combine_chunks()
    values = whole_column.values.to_numpy(zero_copy_only=False)
    offsets = whole_column.offsets.to_numpy()
    return [values[a:b] for a, b in pairwise(offsets)]


__all__ = ["Cache", "CacheKey", "Observed", "Pass", "fill", "open_cache", "read_shard", "wanted", "write_shard"]
