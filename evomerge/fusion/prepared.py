"""A corpus ready for every model: cut to what all can read, parted from what is held out, in files of some thousand
tokens.

A text is cut where no tokenizer would be over the limit any more, before a space where there is one, so that all models
see the same pieces. Of a conversation that is too long the last messages are left out.
"""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from evomerge.fusion.config import CorpusConfig
from evomerge.fusion.corpus import CorpusError, locate, read_corpus
from evomerge.fusion.cutting import Counts, pieces
from evomerge.fusion.documents import Document, Message
from evomerge.fusion.files import MANIFEST, clear_parts, key_of, read_json_object, sha256, whole, write_json
from evomerge.fusion.tokenized import Reader

VERSION = 2
HELD_OUT = "held_out.parquet"
_SCHEMA = pa.schema(
    [
        ("text", pa.string()),
        ("messages", pa.string()),
        ("domain", pa.string()),
        ("place", pa.string()),
        ("continued", pa.bool_()),
    ]
)


@dataclass(frozen=True)
class Shard:
    """One file of documents to learn from.

    Attributes:
        sha256: Hash (hex) of the file.
        content: Hash (hex) of what the documents say, wherever they lie.
        tokens: How many tokens they are, by the name of each model.
    """

    name: str
    sha256: str
    content: str
    documents: int
    tokens: Mapping[str, int]


@dataclass(frozen=True)
class Prepared:
    """A prepared corpus, opened.

    Attributes:
        key: Short name of what it was made from.
        shards: What is learned from, in order.
        held_out: What is kept to measure.
        held_out_hash: Hash (hex) of its file.
        counts: What became of the documents.
        held_counts: What became of those of a held-out file of its own.
    """

    folder: Path
    key: str
    shards: tuple[Shard, ...]
    held_out: tuple[Document, ...]
    held_out_hash: str
    counts: Counts
    held_counts: Counts = field(default_factory=Counts)

    def documents(self, shard: int) -> list[Document]:
        """The documents of one shard."""
        return read_documents(self.folder / self.shards[shard].name)

    def tokens(self, name: str) -> int:
        """How many tokens a model sees of it."""
        return sum(s.tokens[name] for s in self.shards)

    def key_for(self, reader: Reader) -> str:
        """Short name of what one model is given of it to learn from; other models and what is held out do not count."""
        return key_of({"shards": [s.content for s in self.shards], "tokenizer": reader.vocabulary.key})

    @property
    def domains(self) -> tuple[str, ...]:
        """Domains of the held-out documents, sorted."""
        return tuple(sorted({d.domain for d in self.held_out}))


def prepare(
    config: CorpusConfig,
    root: Path | None,
    readers: Mapping[str, Reader],
    limit: int,
    shard_tokens: int,
    folder: Path,
    say: Callable[[str], None] = lambda _: None,
    known: Callable[[str], None] = lambda _: None,
) -> Prepared:
    """Read, check, cut and part a corpus; what lies in the folder already is taken, where it is what would be written.

    Args:
        root: Where relative paths are looked for beside the current folder.
        readers: Of every model, by name; the target's first.
        limit: Tokens of a document at most.
        folder: Where the files go.
        known: Told the key of what will be prepared, before anything is written.

    Raises:
        CorpusError: the corpus is wrong, or leaves nothing to learn from or to measure.
    """
    where = locate(config.path, root)
    whole_corpus = _Looked.at(where, config)
    apart = None if isinstance(config.held_out, float) else locate(config.held_out, root)
    held = whole_corpus.chosen(config.held_out) if isinstance(config.held_out, float) else None
    looked_apart = None if apart is None else _Looked.at(apart, _whole_of(config))
    # What is measured on must not be learned, wherever else it stands.
    measured = {whole_corpus.hashes[i] for i in held or ()} | set(looked_apart.hashes if looked_apart else ())
    facts = {
        "version": VERSION,
        "corpus": whole_corpus.digest,
        "held_out": config.held_out if looked_apart is None else looked_apart.digest,
        "tokenizers": {name: r.vocabulary.key for name, r in readers.items()},
        "limit": limit,
        "shard_tokens": shard_tokens,
    }
    key = key_of(facts)
    known(key)
    there = _opened(folder, key)
    if there is not None:
        return there
    folder.mkdir(parents=True, exist_ok=True)
    clear_parts(folder)
    say(f"preparing {whole_corpus.documents:,} documents of {where}")
    counts, held_counts = Counts(), Counts()
    held_out: list[Document] = []
    twice: set[int] = set()

    def to_learn() -> Iterator[tuple[Document, dict[str, int]]]:
        for number, piece, sizes in pieces(read_corpus(where, config), readers, limit, counts):
            if held is not None and number in held:
                held_out.append(piece)
            elif whole_corpus.hashes[number] in measured:
                if number not in twice:
                    twice.add(number)
                    counts.leave_out("held out too: what is measured on is not learned", piece.place)
            else:
                counts.pieces += 1
                yield piece, sizes

    shards = _write_shards(to_learn(), shard_tokens, folder, tuple(readers))
    if apart is not None:
        others = read_corpus(apart, _whole_of(config))
        held_out += [piece for _, piece, _ in pieces(others, readers, limit, held_counts)]
    if not shards:
        raise CorpusError("\n".join([f"{where}: leaves no document to learn from", *counts.lines()]))
    if not held_out:
        told = [*counts.lines(), *held_counts.lines()]
        raise CorpusError("\n".join([f"{apart or where}: leaves no document to measure (corpus.held_out)", *told]))
    _write(held_out, folder / HELD_OUT)
    _write_manifest(folder, key, shards, counts, held_counts)
    found = _opened(folder, key)
    assert found is not None
    return found


def _whole_of(config: CorpusConfig) -> CorpusConfig:
    """How the held-out file is read: all of it."""
    return config.model_copy(update={"documents": None})


@dataclass(frozen=True)
class _Looked:
    """What one look at a corpus gives: its hash, and of each document its own and its domain."""

    digest: str
    hashes: tuple[bytes, ...]
    domains: tuple[str, ...]

    @property
    def documents(self) -> int:
        return len(self.hashes)

    @classmethod
    def at(cls, where: Path, config: CorpusConfig) -> _Looked:
        digest = hashlib.sha256()
        hashes, domains = [], []
        for document in read_corpus(where, config):
            own = bytes.fromhex(document.digest)
            digest.update(own + document.domain.encode() + b"\0")
            hashes.append(own[:8])
            domains.append(document.domain)
        return cls(digest.hexdigest(), tuple(hashes), tuple(domains))

    def chosen(self, share: float) -> frozenset[int]:
        """Numbers of the documents that are held out: of each domain those of least hash, equal documents together."""
        found: set[int] = set()
        by_domain: dict[str, list[int]] = {}
        for i, domain in enumerate(self.domains):
            by_domain.setdefault(domain, []).append(i)
        for own in by_domain.values():
            different = sorted({self.hashes[i] for i in own})
            if len(different) < 2:
                continue
            count = min(max(round(share * len(different)), 1), len(different) - 1)
            kept = set(different[:count])
            found.update(i for i in own if self.hashes[i] in kept)
        return frozenset(found)


def _write_shards(
    pieces: Iterator[tuple[Document, dict[str, int]]], shard_tokens: int, folder: Path, names: Sequence[str]
) -> list[Shard]:
    shards: list[Shard] = []
    held: list[Document] = []
    total: Counter[str] = Counter()

    def flush() -> None:
        if held:
            name = f"documents-{len(shards):05d}.parquet"
            _write(held, folder / name)
            digest = sha256(folder / name)
            assert digest is not None
            said = hashlib.sha256("".join(f"{d.digest} {d.continued:d}" for d in held).encode()).hexdigest()
            shards.append(Shard(name, digest, said, len(held), {n: total[n] for n in names}))
            held.clear()
            total.clear()

    for piece, sizes in pieces:
        held.append(piece)
        total.update(sizes)
        if max(total.values()) >= shard_tokens:
            flush()
    flush()
    return shards


def _write(documents: Sequence[Document], file: Path) -> None:
    rows = [
        {
            "text": None if d.messages else d.text,
            "messages": json.dumps([[m.role, m.content] for m in d.messages], ensure_ascii=False)
            if d.messages
            else None,
            "domain": d.domain,
            "place": d.place,
            "continued": d.continued,
        }
        for d in documents
    ]
    with whole(file) as part:
        pq.write_table(pa.Table.from_pylist(rows, schema=_SCHEMA), part, compression="zstd")


def read_documents(file: Path) -> list[Document]:
    """The documents of one file."""
    found = []
    for row in pq.read_table(file).to_pylist():
        said = row["messages"]
        messages = tuple(Message(role, content) for role, content in json.loads(said)) if said is not None else ()
        found.append(Document(row["text"] or "", messages, row["domain"], row["place"], row["continued"]))
    return found


def learned_texts(folder: Path) -> Iterator[str] | None:
    """What each document to learn from says, of a corpus that lies prepared in a folder; None where none does."""
    manifest = read_json_object(folder / MANIFEST)
    if manifest is None or not isinstance(manifest.get("shards"), list):
        return None
    files = [folder / shard["file"] for shard in manifest["shards"]]
    return ("\n".join(d.contents) for file in files if file.is_file() for d in read_documents(file))


def _write_manifest(folder: Path, key: str, shards: Sequence[Shard], counts: Counts, held: Counts) -> None:
    write_json(
        folder / MANIFEST,
        {
            "key": key,
            "version": VERSION,
            "held_out": {"file": HELD_OUT, "sha256": sha256(folder / HELD_OUT)},
            "shards": [
                {
                    "file": s.name,
                    "sha256": s.sha256,
                    "content": s.content,
                    "documents": s.documents,
                    "tokens": dict(s.tokens),
                }
                for s in shards
            ],
            "counts": counts.to_dict(),
            "held_counts": held.to_dict(),
        },
    )


def _opened(folder: Path, key: str) -> Prepared | None:
    """What lies in a folder, where it was made from the same and is whole."""
    manifest = read_json_object(folder / MANIFEST)
    if manifest is None or manifest.get("key") != key:
        return None
    shards = tuple(Shard(s["file"], s["sha256"], s["content"], s["documents"], s["tokens"]) for s in manifest["shards"])
    if any(sha256(folder / s.name) != s.sha256 for s in shards):
        return None
    held_out_hash = manifest["held_out"]["sha256"]
    if sha256(folder / HELD_OUT) != held_out_hash:
        return None
    counts, held = Counts.read(manifest["counts"]), Counts.read(manifest["held_counts"])
    return Prepared(folder, key, shards, tuple(read_documents(folder / HELD_OUT)), held_out_hash, counts, held)
