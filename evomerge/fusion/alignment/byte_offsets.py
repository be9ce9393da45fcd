"""Alignment by byte offsets: two models stand at the same place where the bytes that they have read are the same.

Exact, and linear in the number of tokens. A source's prediction after some bytes is about the same thing as the
target's after the same bytes, however either came there.
"""

from __future__ import annotations

import numpy as np

from evomerge.fusion.alignment.aligner import NONE, Alignment, Array
from evomerge.fusion.tokenized import Tokenized

# Tokens that end at the same byte (one that stands for no byte of the text, and the one before it) are told apart by
# how many more of them follow, up to this many.
_AT_ONE_PLACE = 16


class ByteAligner:
    """See `Aligner`: rows are positions at the same byte, matches tokens that have a byte in common."""

    def align(self, target: Tokenized, source: Tokenized) -> Alignment:
        """Match by bytes; see `Aligner`."""
        return Alignment(*_matches(target, source), rows(target, source))


def rows(target: Tokenized, source: Tokenized) -> Array:
    """For each of the target's positions the source's at the same byte, else -1. int32, [target]."""
    wanted, there = _places(target), _places(source)
    found = np.full(len(target), NONE, np.int32)
    mine, its = np.flatnonzero(wanted >= 0), np.flatnonzero(there >= 0)
    if len(mine) and len(its):
        at = np.searchsorted(there[its], wanted[mine])
        at = np.minimum(at, len(its) - 1)
        same = there[its[at]] == wanted[mine]
        found[mine[same]] = its[at[same]]
    return found


def _places(tokens: Tokenized) -> Array:
    """A rising number for each place that can be aligned, equal for equal places; -1 for what is none."""
    ends = np.where(tokens.boundary & (tokens.ends >= 0), tokens.ends, -1)
    good = np.flatnonzero(ends >= 0)
    places = np.full(len(ends), -1, np.int64)
    if not len(good):
        return places
    own = ends[good]
    # How many more tokens end at the same byte.
    last = np.searchsorted(own, own, side="right") - 1
    more = np.minimum(last - np.arange(len(own)), _AT_ONE_PLACE - 1)
    places[good] = own * _AT_ONE_PLACE + (_AT_ONE_PLACE - 1 - more)
    return places


def _matches(target: Tokenized, source: Tokenized) -> tuple[Array, Array]:
    """First and last of the source's tokens that share a byte with each of the target's; places match as `rows` do."""
    first, last = np.full(len(target), NONE, np.int32), np.full(len(target), NONE, np.int32)
    at = rows(target, source)
    empty = target.sizes == 0
    first[empty], last[empty] = at[empty], at[empty]
    mine, its = np.flatnonzero(target.sizes > 0), np.flatnonzero(source.sizes > 0)
    if len(mine) and len(its):
        begin = np.searchsorted(source.ends[its], target.starts[mine], side="right")
        end = np.searchsorted(source.starts[its], target.ends[mine], side="left") - 1
        some = begin <= end
        first[mine[some]], last[mine[some]] = its[begin[some]], its[end[some]]
    return first, last
