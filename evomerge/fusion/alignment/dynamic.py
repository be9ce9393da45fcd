"""Alignment by dynamic time warping over token strings, as FuseLLM and FuseChat publish it: for comparison.

M[i, j] = c(i, j) + min(M[i-1, j], M[i, j-1], M[i-1, j-1]), c the Levenshtein distance of the two tokens' strings
without markers of spaces. The path is traced back from the end over the least of the three, and where they tie over the
diagonal; next FuseLLM (arXiv 2401.10491) prefers the one with the source's token before, FuseChat (2402.16107) the
target's.
"""

from __future__ import annotations

import ctypes
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Literal

import numpy as np
from rapidfuzz.distance import Levenshtein
from rapidfuzz.process import cdist

from evomerge.fusion.alignment.aligner import NONE, Alignment, Array
from evomerge.fusion.tokenized import Tokenized
from evomerge.fusion.vocabulary import Vocabulary
from evomerge.merging.native.build import Kernels, library

KERNELS = Kernels(
    "alignment", Path(__file__).with_name("warp.cpp"), "token strings are warped by NumPy, to the same path, slower"
)
Order = Literal["fusellm", "fusechat"]


def warp(target: Sequence[str], source: Sequence[str], order: Order = "fusellm") -> tuple[int, Array, Array]:
    """The cheapest monotone path through two sequences of strings.

    Distances are worked out once for each pair of different strings; all are integers, so that the compiled programme
    and the one without a compiler give the same path.

    Returns:
        The path's cost, and the first and the last of the source's strings on it for each of the target's. int32.
    """
    n, m = len(source), len(target)
    if not n or not m:
        return 0, np.full(m, NONE, np.int32), np.full(m, NONE, np.int32)
    (of_source, i), (of_target, j) = _different(source), _different(target)
    costs: Array = cdist(of_source, of_target, scorer=Levenshtein.distance, dtype=np.int32)
    compiled = library(KERNELS)
    return _by_rows(costs, i, j, order) if compiled is None else _compiled(compiled, costs, i, j, order)


def _compiled(
    kernels: ctypes.CDLL, costs: Array, source: Array, target: Array, order: Order
) -> tuple[int, Array, Array]:
    first, last = np.empty(len(target), np.int32), np.empty(len(target), np.int32)
    run = kernels.evomerge_warp
    run.restype = ctypes.c_int64
    sizes = [ctypes.c_int64(k) for k in (costs.shape[1], len(source), len(target))]
    own, others, c, a, b = (x.ctypes.data_as(ctypes.c_void_p) for x in (target, source, costs, first, last))
    cost = run(c, sizes[0], others, sizes[1], own, sizes[2], ctypes.c_int32(order == "fusellm"), a, b)
    return int(cost), first, last


def _by_rows(costs: Array, source: Array, target: Array, order: Order) -> tuple[int, Array, Array]:
    """Without a compiler, a row of M at once.

    It is a running minimum once the sum of its costs is taken off: with C[i, j] = c(i, 0) + ... + c(i, j),
    M[i, j] - C[i, j] is the least, over k <= j, of min(M[i-1, k], M[i-1, k-1]) - C[i, k-1].
    """
    n, m = len(source), len(target)
    # One row for each different string of the source: what a row of M takes from c is the same wherever it stands.
    totals = np.cumsum(costs[:, target], axis=1, dtype=np.int64)
    before = totals[:, :-1]
    table = np.empty((n, m), np.int64)
    table[0] = totals[source[0]]
    best = np.empty(m, np.int64)
    rest, row = best[1:], table[0]
    for i, k in enumerate(source[1:].tolist(), start=1):
        above, row = row, table[i]
        best[0] = above[0]
        np.minimum(above[1:], above[:-1], out=rest)
        np.subtract(rest, before[k], out=rest)
        np.minimum.accumulate(best, out=row)
        np.add(row, totals[k], out=row)
    first, last = [0] * m, [NONE] * m
    for i, j in _path(table, order):  # from the end: the last that comes is the first
        first[j] = i
        if last[j] < 0:
            last[j] = i
    return int(table[-1, -1]), np.array(first, np.int32), np.array(last, np.int32)


def _different(strings: Sequence[str]) -> tuple[list[str], Array]:
    """Each string once, and for each place which of them stands there, int64."""
    numbers: dict[str, int] = {}
    places = [numbers.setdefault(s, len(numbers)) for s in strings]
    return list(numbers), np.array(places, np.int64)


def _path(table: Array, order: Order) -> list[tuple[int, int]]:
    """Cells of the path, from the last to the first."""
    found = []
    i, j = table.shape[0] - 1, table.shape[1] - 1
    cell = table.item
    while i and j:
        found.append((i, j))
        diagonal, up, left = cell(i - 1, j - 1), cell(i - 1, j), cell(i, j - 1)
        if diagonal <= up and diagonal <= left:
            i, j = i - 1, j - 1
        elif up < left or (up == left and order == "fusellm"):
            i -= 1
        else:
            j -= 1
    # Along an edge there is one way.
    found += [(k, j) for k in range(i, 0, -1)] if i else [(i, k) for k in range(j, 0, -1)]
    return [*found, (0, 0)]


class DynamicAligner:
    """See `Aligner`: the published alignment of token strings.

    A target's position takes a source's row where one source token is matched, and the two are the same string or the
    vocabulary map says so (FuseLLM). FuseChat adds several source tokens that are the target's together (the last one's
    row), and one source token for several of the target's (for the last of them). What is left has no row; the
    published code teaches it a token of the text instead.

    Args:
        to_target: The vocabulary map: for each of the source's ids the target's, or -1.
    """

    def __init__(self, target: Vocabulary, source: Vocabulary, to_target: Array, order: Order = "fusellm") -> None:
        self._target, self._source = _strings(target), _strings(source)
        self._to_target: Array = to_target
        self._order = order

    def align(self, target: Tokenized, source: Tokenized) -> Alignment:
        """Match by strings, message by message; see `Aligner`."""
        first, last = np.full(len(target), NONE, np.int32), np.full(len(target), NONE, np.int32)
        rows = np.full(len(target), NONE, np.int32)
        self._ends(target, source, first, last, rows)
        for mine, its in _paired(target, source):
            own = [self._target[i] for i in target.ids[mine].tolist()]
            others = [self._source[i] for i in source.ids[its].tolist()]
            _, a, b = warp(own, others, self._order)
            first[mine], last[mine] = np.where(a >= 0, its[a], NONE), np.where(b >= 0, its[b], NONE)
            chosen = self._rows(target.ids[mine], source.ids[its], own, others, a, b)
            rows[mine] = np.where(chosen >= 0, its[chosen], NONE)
        return Alignment(first, last, rows)

    def _rows(
        self, ids: Array, source_ids: Array, own: Sequence[str], others: Sequence[str], first: Array, last: Array
    ) -> Array:
        found = np.full(len(own), NONE, np.int64)
        counts = np.bincount(first[first == last], minlength=len(others)) if len(own) else np.zeros(0, int)
        for t, (a, b) in enumerate(zip(first.tolist(), last.tolist(), strict=True)):
            if a < 0:
                continue
            if a == b and (own[t] == others[a] or self._to_target[source_ids[a]] == ids[t]):
                found[t] = a
            elif self._order == "fusechat" and a < b and "".join(others[a : b + 1]) == own[t]:
                found[t] = b
            elif self._order == "fusechat" and a == b and counts[a] > 1:
                group = np.flatnonzero((first == a) & (last == a))
                if t == group[-1] and "".join(own[k] for k in group.tolist()) == others[a]:
                    found[t] = a
        return found

    @staticmethod
    def _ends(target: Tokenized, source: Tokenized, first: Array, last: Array, rows: Array) -> None:
        """Tokens that stand for no text have no strings: those before a text (or message) begins are one another's."""
        mine, its = np.flatnonzero(_opening(target)), np.flatnonzero(_opening(source))
        _, i, j = np.intersect1d(target.ends[mine], source.ends[its], return_indices=True)
        first[mine[i]] = last[mine[i]] = rows[mine[i]] = its[j]


def _opening(tokens: Tokenized) -> Array:
    found: Array = (tokens.ends >= 0) & (tokens.sizes == 0) & ~tokens.learned
    return found


def _segments(tokens: Tokenized) -> list[Array]:
    """Positions of the tokens of each message (or of the text)."""
    own = np.flatnonzero((tokens.ends >= 0) & ~_opening(tokens))
    if not len(own):
        return []
    return np.split(own, np.flatnonzero(np.diff(tokens.starts[own]) > np.maximum(tokens.sizes[own[:-1]], 0)) + 1)


def _paired(target: Tokenized, source: Tokenized) -> Iterator[tuple[Array, Array]]:
    """The segments of both that are of one message; one that a template leaves out, for it says nothing, has none."""
    own, others = _segments(target), _segments(source)
    i = j = 0
    while i < len(own) and j < len(others):
        mine, its = own[i], others[j]
        if target.ends[mine[-1]] <= source.starts[its[0]]:
            i += 1
        elif source.ends[its[-1]] <= target.starts[mine[0]]:
            j += 1
        else:
            yield mine, its
            i, j = i + 1, j + 1


def _strings(vocabulary: Vocabulary) -> list[str]:
    """Tokens without what marks a space."""
    return [p.decode("utf-8", "replace").replace(" ", "") for p in vocabulary.pieces]
