"""What several sources say of a document becomes what the target learns from: one source chosen, or an average.

Everything is at the target's positions, whose next token is to be learned. Sources are compared by how well they
expected the text: nats per byte of it, which is fair to tokenizers of any size, or nats per token of their own, as
published.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

from evomerge.fusion.alignment import NONE, Alignment
from evomerge.fusion.teachers.observe import Observed, wanted
from evomerge.fusion.tokenized import BYTE_NATS, Tokenized, unwritable

Array = np.ndarray[Any, Any]
Compare = Literal["bytes", "tokens"]


@dataclass(frozen=True)
class Said:
    """What one source says of a document, at the target's positions.

    Attributes:
        rows: Which row of `ids` and `probabilities` is about what follows each of the target's positions, -1 where none
            is, [n].
        ids: The target's tokens that the source's likeliest ones stand for, -1 for those that have none, [m, k].
        probabilities: Theirs, [m, k].
        nats, size, tokens: Of the text to learn, in all: negative log-likelihood, bytes, tokens of the source.
        ahead: Nats per byte, or per token, from each of the target's positions to the next place where both stand, [n];
            infinite where the source does not stand there.
        chunks: Which chunk the next token is in, -1: none, [n]; see `chunk_likelihoods`.
        chunk_likelihoods: The source's log-likelihood of each chunk: the bytes between two places where both stand.
    """

    rows: Array
    ids: Array
    probabilities: Array
    nats: float
    size: int
    tokens: int
    ahead: Array
    chunks: Array
    chunk_likelihoods: Array

    def surprise(self, compare: Compare) -> float:
        """How badly the source expected the text; infinite where it could write nothing of it."""
        by = self.size if compare == "bytes" else self.tokens
        return self.nats / by if by else np.inf


def said(
    target: Tokenized, source: Tokenized, observed: Observed, alignment: Alignment, to_target: Array,
    compare: Compare = "bytes",
) -> Said:  # fmt: skip
    """A source's observations brought to the target's positions.

    Args:
        to_target: The vocabulary map.
    """
    n = len(target)
    learned = np.zeros(n, bool)
    learned[wanted(target)] = True
    # From positions of the source to rows of what was observed.
    row_of = np.full(len(source), NONE, np.int64)
    row_of[observed.positions] = np.arange(len(observed.positions))
    # What follows could not be written: what the source says is about <unk>.
    known_next = np.append(source.known[1:], False)
    row_of[~known_next] = NONE
    rows = np.where(alignment.rows >= 0, row_of[alignment.rows], NONE)
    rows[~learned] = NONE

    mapping = np.append(to_target, NONE)  # ids beyond the tokenizer's, of padded embeddings, stand for nothing
    ids = mapping[np.minimum(observed.top_ids, len(mapping) - 1)]
    follows = observed.positions + 1
    scored = source.scored[follows] & source.known[follows]
    nats = -observed.likelihoods.astype(np.float64)
    lost = unwritable(source)
    ahead, chunks, likelihoods = _ahead(target, source, observed, alignment, learned, rows, nats, compare)
    return Said(
        rows, ids, np.exp(observed.top_logprobs.astype(np.float32)), float(nats[scored].sum()) + lost * BYTE_NATS,
        int(source.sizes[follows][scored].sum()) + lost, int(scored.sum()), ahead, chunks, likelihoods,
    )  # fmt: skip


def _ahead(
    target: Tokenized, source: Tokenized, observed: Observed, alignment: Alignment, learned: Array, rows: Array,
    nats: Array, compare: Compare,
) -> tuple[Array, Array, Array]:  # fmt: skip
    """`Said.ahead`, `Said.chunks` and `Said.chunk_likelihoods`."""
    n = len(target)
    ahead, chunks = np.full(n, np.inf), np.full(n, NONE, np.int32)
    shared = np.flatnonzero(alignment.rows >= 0)
    if not len(shared):
        return ahead, chunks, np.zeros(0, np.float32)
    at = alignment.rows[shared]
    each = np.zeros(len(source))
    each[observed.positions] = nats
    seen = np.zeros(len(source), bool)
    seen[observed.positions] = True
    total, count = np.concatenate([[0.0], np.cumsum(each)]), np.concatenate([[0], np.cumsum(seen)])
    # Chunk i reaches from shared place i to the next one, the last to the end.
    ends = np.append(at[1:], len(source) - 1)
    places = np.append(shared[1:], n - 1)
    cost = total[ends] - total[at]
    whole_source = count[ends] - count[at] == ends - at
    own = np.concatenate([[0], np.cumsum(learned)])
    whole_target = own[places] - own[shared] == places - shared
    sizes = np.where(target.ends[places] >= 0, target.ends[places] - target.ends[shared], 0)
    by = np.maximum(sizes if compare == "bytes" else ends - at, 1)
    own_rows = rows[shared] >= 0
    ahead[shared[own_rows]] = (cost / by)[own_rows]
    # The end of the text is no bytes, but a token of both.
    good = whole_source & whole_target & (ends > at) & (places > shared)
    known = np.concatenate([[0], np.cumsum(~source.known)])
    good &= known[np.minimum(ends + 1, len(source))] == known[np.minimum(at + 1, len(source))]
    numbers = np.cumsum(good) - 1
    for i in np.flatnonzero(good).tolist():
        chunks[shared[i] : places[i]] = numbers[i]
    return ahead, chunks, -cost[good].astype(np.float32)


@dataclass(frozen=True)
class Fused:
    """What the target learns from at some of its positions, beside the text.

    Attributes:
        positions: Which positions, rising, [m].
        counts: How many tokens each distribution is about, [m].
        ids: Those tokens, one position after the other, the likeliest first.
        probabilities: Theirs; a distribution's rest is about none of them in particular.
    """

    positions: Array
    counts: Array
    ids: Array
    probabilities: Array


def min_ce(sources: Sequence[Said], chosen: Array) -> Fused:
    """The distribution of the chosen source at each position; no position where it has none (FuseLLM's MinCE).

    Args:
        chosen: Which source, [n].
    """
    return _fused([np.where(chosen == i, 1.0, 0.0) for i in range(len(sources))], sources)


def avg_ce(sources: Sequence[Said], weights: Array) -> Fused:
    """The average of the distributions of those sources that have one at a position (FuseLLM's AvgCE).

    Args:
        weights: Of each source at each position, [sources, n].
    """
    there = np.stack([np.where(s.rows >= 0, w, 0.0) for s, w in zip(sources, weights, strict=True)])
    total = there.sum(axis=0)
    return _fused(list(there / np.where(total > 0, total, 1.0)), sources)


def _fused(weights: Sequence[Array], sources: Sequence[Said]) -> Fused:
    """Sum of distributions; probabilities of tokens that stand for the same one of the target's are added."""
    places, tokens, shares = [], [], []
    for weight, s in zip(weights, sources, strict=True):
        positions = np.flatnonzero((s.rows >= 0) & (weight > 0))
        rows = s.rows[positions]
        k = s.ids.shape[1]
        places.append(np.repeat(positions, k))
        tokens.append(s.ids[rows].ravel())
        shares.append((s.probabilities[rows] * weight[positions, None]).ravel())
    place, token, share = (np.concatenate(x) if x else np.zeros(0) for x in (places, tokens, shares))
    good = (token >= 0) & (share > 0)
    place, token, share = place[good].astype(np.int64), token[good].astype(np.int64), share[good]
    width = int(token.max(initial=0)) + 1
    pairs, where = np.unique(place * width + token, return_inverse=True)
    summed = np.bincount(where, share, minlength=len(pairs))
    place, token = pairs // width, pairs % width
    order = np.lexsort((token, -summed, place))
    positions, counts = np.unique(place, return_counts=True)
    return Fused(
        positions.astype(np.int32),
        counts.astype(np.int32),
        token[order].astype(np.int32),
        summed[order].astype(np.float32),
    )


def choice(surprises: Array) -> Array:
    """The least of the sources' surprises at each position, the first of equal ones, [n]; of [sources, n]."""
    found: Array = np.argmin(surprises, axis=0)
    return found


def weights(surprises: Array, bytes_per_token: float, compare: Compare) -> Array:
    """AvgCE's weights, [sources, n].

    They fall with exp(-CE), CE in nats per token of the target (so that no tokenizer of a source counts); with
    compare="tokens" they are softmax(exp(-CE)), CE in nats per token of each source, as published.
    """
    finite = np.where(np.isfinite(surprises), surprises, np.inf)
    scores = np.exp(-finite) if compare == "tokens" else -finite * bytes_per_token
    best = scores.max(axis=0, keepdims=True)
    found = np.exp(scores - np.where(np.isfinite(best), best, 0.0))
    total = found.sum(axis=0, keepdims=True)
    result: Array = found / np.where(total > 0, total, 1.0)
    return result
