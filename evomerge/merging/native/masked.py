"""Masked task vectors become one, by the kernels: `Group.masked` in one pass over the sources.

A magnitude cut need not be known before. The histogram of magnitudes, kept between candidates, says in which bin of
the histogram the cut for a density lies; the merge lists the elements of that bin (a hundredth of all, or less) as it
passes, takes them to lie after the cut, and merges those once more that the list then shows to lie before it.
"""

from __future__ import annotations

import ctypes
import functools
import operator
from collections.abc import Mapping, Sequence
from ctypes import byref, c_float, c_int64
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from torch import Tensor

from evomerge.merging.masks import Drawn, DrawnByRank, Part, Ranked, least_share
from evomerge.merging.native.cuts import DENSE, SMALL, Bin, Cuts, Found, joined, nth
from evomerge.merging.native.structs import (
    BoundaryStruct,
    FoundStruct,
    Inputs,
    Numbers,
    PartStruct,
    boundary,
    output,
    pointer,
)  # fmt: skip
from evomerge.merging.selection import Cut

if TYPE_CHECKING:
    from evomerge.merging.group import Group

_MASKS: dict[type, int] = {type(None): 0, Ranked: 1, Drawn: 2, DrawnByRank: 3}

# What a pass says that did not go well.
_NOT_FINITE, _NO_ROOM = 1, 2

# Lower and upper end of what a source keeps, by the number of the source.
Bounds = Mapping[int, tuple[Cut | Bin, Cut | Bin]]


@dataclass(frozen=True)
class Job:
    """What is asked of `Group.masked`."""

    lib: ctypes.CDLL
    group: Group
    present: Sequence[tuple[int, Part]]
    elect_sign: bool
    normalize: bool
    lambda_: float
    selection: Cut | None
    out: Tensor


def masked(job: Job) -> None:
    """Write the merge."""
    ranked = {i: p.mask for i, p in job.present if isinstance(p.mask, Ranked)}
    bounds: Bounds = {i: (_bound(job, i, m.stop), _bound(job, i, m.first)) for i, m in ranked.items()}
    # Elements of a bin that lie close together find no room in the lists: remembered, so that no candidate tries again.
    crowded: set[tuple[int, int]] = job.group.fact("crowded bins", set)
    unresolved = {(i, end.place) for i, ends in bounds.items() for end in ends if isinstance(end, Bin)}
    if not unresolved:
        _settled(job, bounds)
        return
    if crowded.isdisjoint(unresolved):
        status, found = _everywhere(job, bounds)
        if status == 0:
            _resolve(job, bounds, found)
            return
        if status & _NO_ROOM:
            crowded |= unresolved
        # Or a result is not finite: perhaps only while what belongs to the largest counts as cut off.
    _settled(job, {i: (job.group.cut(i, m.stop), job.group.cut(i, m.first)) for i, m in ranked.items()})


def _settled(job: Job, cuts: Bounds) -> None:
    if _everywhere(job, cuts)[0] & _NOT_FINITE:
        job.group.note_not_finite()


def _resolve(job: Job, bounds: Bounds, found: Sequence[Sequence[Found]]) -> None:
    """Find the cuts in what was listed of their bins, and merge anew what lies before them."""
    cuts = dict(bounds)
    positions: list[Numbers] = []
    for number, (i, _) in enumerate(job.present):
        ends = list(bounds.get(i, ()))
        for side, end in enumerate(ends):
            if isinstance(end, Bin):
                bits, places = joined([chunk[2 * number + side] for chunk in found])
                ends[side], before = nth(bits, places, end.wanted)
                positions.append(np.sort(before))
        if ends:
            cuts[i] = (ends[0], ends[1])
    for listed in positions:
        _at(job, cuts, listed)


def _bound(job: Job, source: int, keep: int) -> Cut | Bin:
    group = job.group
    if not 0 < keep < group.elements or group.elements <= SMALL or job.selection is not None:
        return group.cut(source, keep)
    cuts = Cuts(job.lib, group, source)
    found = cuts.bin(keep)
    return group.cut(source, keep) if cuts.is_dense(found) else found


def _everywhere(job: Job, bounds: Bounds) -> tuple[int, list[list[Found]]]:
    """One pass: what went wrong in it, and for each range the elements of the bins that are not resolved."""
    group, flat = job.group, job.out.reshape(-1)
    by_row = any(isinstance(p.mask, DrawnByRank) for _, p in job.present)
    row = group.columns if by_row else 0
    open_ = any(isinstance(end, Bin) for ends in bounds.values() for end in ends)

    def work(start: int, stop: int) -> tuple[int, list[Found]]:
        inputs = Inputs(group, start, stop)
        found = (
            [
                Found(_room(stop - start) if isinstance(end, Bin) else 0)
                for i, _ in job.present
                for end in bounds.get(i, (None, None))
            ]
            if open_
            else []
        )
        structs = (FoundStruct * len(found))(*[f.struct for f in found]) if open_ else None
        votes = inputs.sources(range(group.n), deltas=True) if job.selection is not None else None
        target = output(flat, start, group.out_dtype)
        status: int = job.lib.evomerge_masked(
            len(job.present), _parts(job, inputs, bounds), byref(inputs.base()), c_int64(start), inputs.count,
            c_int64(row), int(job.elect_sign), int(job.normalize), c_float(job.lambda_), _least(job),
            byref(boundary(job.selection)) if job.selection is not None else None, group.n, votes, structs,
            byref(target),
        )  # fmt: skip
        for f, struct in zip(found, structs or (), strict=True):
            f.struct = struct
        return status, found

    every = group.pieces.run(work, group.pieces.ranges(group.elements, max(row, 1)))
    return functools.reduce(operator.or_, (status for status, _ in every), 0), [found for _, found in every]


def _at(job: Job, bounds: Bounds, positions: Numbers) -> None:
    """Merge single elements anew; positions ascend."""
    group, flat = job.group, job.out.reshape(-1)

    def work(start: int, stop: int) -> None:
        first, last = np.searchsorted(positions, (start, stop))
        if first == last:
            return
        own = np.ascontiguousarray(positions[first:last])
        inputs = Inputs(group, start, stop)
        target = output(flat, start, group.out_dtype)
        bad = job.lib.evomerge_masked_at(
            len(job.present), _parts(job, inputs, bounds), byref(inputs.base()), c_int64(start), pointer(own),
            c_int64(len(own)), int(job.elect_sign), int(job.normalize), c_float(job.lambda_), _least(job),
            byref(target),
        )  # fmt: skip
        if bad:
            group.note_not_finite()

    group.pieces.run(work, group.pieces.ranges(group.elements))


def _least(job: Job) -> c_float:
    return c_float(least_share([p.share for _, p in job.present]))


def _room(count: int) -> int:
    """How many elements of a bin a range may have: more than twice what makes a bin dense."""
    return int(count * DENSE * 2) + 1024


def _parts(job: Job, inputs: Inputs, bounds: Bounds) -> ctypes.Array[PartStruct]:
    parts = (PartStruct * max(len(job.present), 1))()
    for place, (i, p) in zip(parts, job.present, strict=False):
        place.operand = inputs.source(i, delta=True)
        place.weight, place.share = p.weight, p.share
        place.has_vote, place.vote = int(p.vote is not None), p.vote or 0.0
        place.mask = _MASKS[type(p.mask)]
        if isinstance(p.mask, Ranked):
            place.lower, place.upper = (_struct(end) for end in bounds[i])
        elif isinstance(p.mask, Drawn):
            place.key, place.below = job.group.key(i), p.mask.below
        elif isinstance(p.mask, DrawnByRank):
            place.key, place.rescale = job.group.key(i), int(p.mask.rescale)
            place.low, place.high = p.mask.low, p.mask.high
    return parts


def _struct(end: Cut | Bin) -> BoundaryStruct:
    return BoundaryStruct(-1, -1, end.place) if isinstance(end, Bin) else boundary(end)
