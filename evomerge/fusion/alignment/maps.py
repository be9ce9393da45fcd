"""Vocabulary maps: which of the target's tokens stands for each of a source's.

All are int32 arrays over the source's ids, -1 where there is none, the same in every process: where several of the
target's tokens are as good, the one of the lowest id is taken.
"""

from __future__ import annotations

import hashlib
import io
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from rapidfuzz.distance import Levenshtein
from rapidfuzz.process import cdist

from evomerge.cache import cache_folder, keep
from evomerge.fusion.alignment.aligner import NONE, Array
from evomerge.fusion.vocabulary import BYTE_TOKEN, Vocabulary

VERSION = 3
# Tokens of the source whose distances to all of the target's are held at once.
_ROWS = 256


def exact_map(source: Vocabulary, target: Vocabulary) -> Array:
    """Tokens of the same bytes, a space before a word included, however the two write it; and the ends of text.

    Of several of the target's that stand for the same bytes the one that is no <0xNN> is taken.
    """
    by_piece: dict[bytes, int] = {}
    for wanted in (False, True):
        for i, piece in enumerate(target.pieces):
            if piece and bool(BYTE_TOKEN.fullmatch(target.tokens[i])) == wanted:
                by_piece.setdefault(piece, i)
    found = np.array([by_piece.get(piece, NONE) if piece else NONE for piece in source.pieces], np.int32)
    for mine, its in roles(source, target):
        found[mine] = its
    return found


def roles(source: Vocabulary, target: Vocabulary) -> list[tuple[int, int]]:
    """Pairs of ids, the source's and the target's, of tokens that stand for no text and mean the same: the end of a
    text or, in conversations, of a turn."""
    pairs = [(source.eos, target.eos), (source.turn_end, target.turn_end)]
    return [(mine, its) for mine, its in pairs if mine is not None and its is not None]


def edit_distance_map(source: Vocabulary, target: Vocabulary, *, workers: int = 1) -> Array:
    """Exact where it can be; else the target's token of least edit distance in bytes (FuseLLM's MinED).

    Args:
        workers: Threads.
    """
    found = exact_map(source, target)
    ids = [i for i, piece in enumerate(target.pieces) if piece]
    # One character a byte: pieces need not be whole characters.
    others = [target.pieces[i].decode("latin-1") for i in ids]
    missing = [i for i, piece in enumerate(source.pieces) if piece and found[i] == NONE]
    if not others:
        return found
    for at in range(0, len(missing), _ROWS):
        rows = missing[at : at + _ROWS]
        own = [source.pieces[i].decode("latin-1") for i in rows]
        distances = cdist(own, others, scorer=Levenshtein.distance, dtype=np.uint16, workers=workers)
        found[rows] = np.array(ids, np.int32)[distances.argmin(axis=1)]
    return found


def kept_edit_distance_map(
    source: Vocabulary, target: Vocabulary, *, workers: int = 1, say: Callable[[str], None] = lambda _: None
) -> Array:
    """`edit_distance_map`, worked out once for two tokenizers and kept in the user's cache folder.

    Args:
        say: Told in words where what was kept is damaged.
    """
    key = hashlib.sha256(f"{VERSION} {source.key} {target.key}".encode()).hexdigest()
    file = cache_folder() / "vocabularies" / f"{key}.npy"
    there = read_map(file, source, target, say)
    if there is not None:
        return there
    found = edit_distance_map(source, target, workers=workers)
    keep(file, kept_map(file.name, found))
    return found


def kept_map(name: str, found: Array) -> bytes:
    """A map as a file of that name keeps it: NumPy's format, and behind it, as a second array, the hash of both."""
    content = io.BytesIO()
    np.save(content, found, allow_pickle=False)
    np.save(content, _hash(name, found), allow_pickle=False)
    return content.getvalue()


def read_map(file: Path, source: Vocabulary, target: Vocabulary, say: Callable[[str], None]) -> Array | None:
    """A map that was kept; None where there is none, or something else: it can always be worked out again.

    Args:
        say: Told in words where there is something else.
    """
    try:
        with file.open("rb") as stream:
            found: Array = np.load(stream, allow_pickle=False)
            written = np.load(stream, allow_pickle=False)
    except FileNotFoundError:
        return None
    except (OSError, ValueError, EOFError):
        pass
    else:
        fits = found.shape == (source.size,) and found.dtype == np.int32
        inside = fits and int(found.min(initial=NONE)) >= NONE and int(found.max(initial=NONE)) < target.size
        if inside and np.array_equal(written, _hash(file.name, found)):
            return found
    say(f"{file}: is not what was written there; made again")
    return None


def _hash(name: str, found: Array) -> Array:
    return np.frombuffer(hashlib.sha256(name.encode() + b"\0" + found.tobytes()).digest(), np.uint8)


@dataclass(frozen=True)
class Pairs:
    """How often a source's token was matched with one of the target's.

    Attributes:
        source, target: Their ids, int64, each pair once, in order.
        counts: int64.
    """

    source: Array
    target: Array
    counts: Array

    @classmethod
    def of(cls, source: Array, target: Array) -> Pairs:
        """Counted from pairs as they come."""
        return cls.summed([cls(source.astype(np.int64), target.astype(np.int64), np.ones(len(source), np.int64))])

    @classmethod
    def summed(cls, parts: Sequence[Pairs]) -> Pairs:
        """Those of several texts together."""
        source, target, counts = (
            np.concatenate([np.zeros(0, np.int64), *(getattr(p, name) for p in parts)])
            for name in ("source", "target", "counts")
        )
        width = int(target.max(initial=0)) + 1
        pairs, places = np.unique(source * width + target, return_inverse=True)
        total = np.bincount(places, counts, minlength=len(pairs)).astype(np.int64)
        return cls(pairs // width, pairs % width, total)


def statistics_map(source: Vocabulary, target: Vocabulary, pairs: Pairs, *, published: bool = False) -> Array:
    """The target's token that each of the source's was matched with most often (FuseChat, arXiv 2402.16107, section
    3.2).

    Tokens that were never matched have the one of the same bytes, if any.

    Args:
        published: Choose by FuseChat's code instead: the least of sigmoid(count) times the edit distance, a tenth of it
            where one string holds the other, among the tokens matched; a rising function of the count, so that frequent
            pairs lose. The same strings are taken first, as there.
    """
    found = exact_map(source, target)
    if not len(pairs.counts):
        return found
    score = _published(source, target, pairs) if published else -pairs.counts
    order = np.lexsort((pairs.target, score, pairs.source))
    own, others = pairs.source[order], pairs.target[order]
    best = np.flatnonzero(np.concatenate([[True], own[1:] != own[:-1]]))
    chosen = own[best]
    if published:
        best, chosen = best[found[chosen] == NONE], chosen[found[chosen] == NONE]
    found[chosen] = others[best]
    for mine, its in roles(source, target):
        found[mine] = its
    return found


def _published(source: Vocabulary, target: Vocabulary, pairs: Pairs) -> Array:
    scores = np.empty(len(pairs.counts))
    for i, (s, t, count) in enumerate(
        zip(pairs.source.tolist(), pairs.target.tolist(), pairs.counts.tolist(), strict=True)
    ):
        one, other = (v.pieces[k].decode("utf-8", "replace").replace(" ", "") for v, k in ((source, s), (target, t)))
        weight = 0.1 if one in other or other in one else 1.0
        scores[i] = weight * Levenshtein.distance(one, other) / (1 + math.exp(-count))
    return scores
