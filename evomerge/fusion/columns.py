"""What the target learns from in each document, as the columns of a table."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from evomerge.fusion import fused
from evomerge.fusion.config import MAPPED, FunctionConfig
from evomerge.fusion.losses import IGNORED
from evomerge.fusion.teachers.observe import wanted
from evomerge.fusion.tokenized import Tokenized

if TYPE_CHECKING:
    from evomerge.fusion.targets import Job

Array = np.ndarray[Any, Any]


def columns_of(
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
    return columns, {"learned": sum(len(wanted(t)) for t in own), "aligned": aligned, "taken": taken}


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
