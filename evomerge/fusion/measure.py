"""Bits per byte of models of any kind on the held-out documents: the one figure that compares them all."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from evomerge.fusion.files import key_of, read_json_object, write_json
from evomerge.fusion.loading import computed_in, loaded
from evomerge.fusion.prepared import read_documents
from evomerge.fusion.teachers.cache import check_tokens, nats_and_bytes
from evomerge.fusion.teachers.observe import observe
from evomerge.fusion.tokenized import Reader
from evomerge.fusion.training.trainer import bits_per_byte
from evomerge.fusion.vocabulary import Vocabulary
from evomerge.fusion.workers import Watcher, Workers
from evomerge.sources import Source

VERSION = 3


@dataclass(frozen=True)
class Measuring:
    """What is measured, and on what; crosses to other machines.

    Attributes:
        held_out: File of the documents.
        key: Its hash.
        domains: Their domains.
    """

    held_out: Path
    key: str
    domains: tuple[str, ...]
    batch_tokens: int
    dtype: str
    trust_remote_code: bool = False


def measure(
    models: Mapping[str, Source], asked: Measuring, kept: Path, workers: Workers, watcher: Watcher
) -> dict[str, dict[str, float]]:
    """Bits per byte of each model, by domain; "mean" is that of the domains.

    Args:
        kept: JSON file of what was measured before.
    """
    own = {name: computed_in(s, asked.dtype, workers.device) for name, s in models.items()}
    keys = {
        name: key_of({"version": VERSION, "model": s.content_hash(), "held_out": asked.key, "dtype": own[name]})
        for name, s in models.items()
    }
    there = read_json_object(kept) or {}
    missing = [name for name in models if keys[name] not in there]
    if missing:
        watcher.begin("held-out bits per byte", len(missing), "models")
        try:
            for number, found in workers.run(_Maker(asked), [(name, models[name]) for name in missing]):
                there[keys[missing[number]]] = found
                write_json(kept, there)
                watcher.advance(1, missing[number])
        finally:
            watcher.end()
    return {name: {k: float(v) for k, v in there[keys[name]].items()} for name in models}


@dataclass(frozen=True)
class _Maker:
    asked: Measuring

    def __call__(self, device: str) -> Callable[[Any], dict[str, float]]:
        return _Measurer(self.asked, device)


@dataclass(frozen=True)
class _Measurer:
    asked: Measuring
    device: str

    def __call__(self, item: tuple[str, Source]) -> dict[str, float]:
        name, source = item
        asked = self.asked
        model, tokenizer = loaded(source, asked.dtype, self.device, trust_remote_code=asked.trust_remote_code)
        documents = read_documents(asked.held_out)
        tokens = Reader(Vocabulary(tokenizer, name), name).read(documents)
        check_tokens(tokens, model, name)
        pairs = [
            nats_and_bytes(t, o) for t, o in zip(tokens, observe(model, tokens, 0, asked.batch_tokens), strict=True)
        ]
        groups = [asked.domains.index(d.domain) for d in documents]
        found = bits_per_byte([n for n, _ in pairs], [b for _, b in pairs], groups, asked.domains)
        by_name = {domain or "all": bits for domain, bits in found.items()}
        return {**by_name, "mean": mean(list(by_name.values()))}


def mean(values: Sequence[float]) -> float:
    """Of the domains, each counting alike."""
    return sum(values) / max(len(values), 1)
