"""Where the largest elements end, by histogram: `selection.find_cut` for the kernels."""

from __future__ import annotations

import ctypes
from collections.abc import Sequence
from ctypes import byref, c_int64, c_uint32
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from evomerge.merging.chunks import BLOCK, Range
from evomerge.merging.native.structs import FoundStruct, Inputs, Numbers, pointer
from evomerge.merging.selection import Cut

if TYPE_CHECKING:
    from evomerge.merging.reductions import Reductions

# Smaller tensors are looked at whole; of others a histogram of magnitudes is kept.
SMALL = 1 << 16
# A bin with a larger share of the elements is looked into by counting, not by listing what is in it.
DENSE = 1 / 32
_BINS = 1 << 15


@dataclass(frozen=True)
class Bin:
    """A bin of the histogram in which a cut lies.

    Attributes:
        place: Its number: the upper 16 bits of the magnitudes in it.
        wanted: How many of its elements lie before the cut.
        inside: How many it has.
    """

    place: int
    wanted: int
    inside: int


class Found:
    """Room for elements of a bin: their magnitude bits and positions."""

    def __init__(self, capacity: int) -> None:
        self.bits = np.empty(capacity, dtype=np.uint32)
        self.positions = np.empty(capacity, dtype=np.int64)
        self.struct = FoundStruct(self.bits.ctypes.data, self.positions.ctypes.data, capacity, 0)


class Cuts:
    """Cuts of one score of a group.

    Args:
        source: Whose task vector's magnitudes are the score; None: the variance over all task vectors.
    """

    def __init__(self, lib: ctypes.CDLL, group: Reductions, source: int | None) -> None:
        self.lib = lib
        self.group = group
        self.source = source
        self.ranges = group.pieces.ranges(group.elements)

    def find(self, keep: int) -> Cut:
        """The cut with `keep` elements before it; 0 < keep < elements."""
        if self.group.elements <= SMALL:
            return self._nth(keep)
        found = self.bin(keep)
        if self.is_dense(found):
            return self._counted(found)
        return nth(*self._listed(found.place, found.inside), found.wanted)[0]

    def _nth(self, n: int) -> Cut:
        inputs, bits, position = Inputs(self.group, 0, self.group.elements), c_uint32(), c_int64()
        self.lib.evomerge_nth(*self._scored(inputs), inputs.count, c_int64(n), byref(bits), byref(position))
        return Cut(bits.value, position.value)

    def bin(self, keep: int) -> Bin:
        """The bin that the cut lies in."""
        first, above = self.group.fact(("histogram", self.source), self._histogram)
        place, left, inside = _found(above, keep)
        return Bin(first + place, left, inside)

    def is_dense(self, found: Bin) -> bool:
        """Whether too much lies in the bin to be listed."""
        return found.inside > self.group.elements * DENSE

    def _histogram(self) -> tuple[int, Numbers]:
        """The first bin used, and `_above` of the counts from there to the last: a few thousand numbers, kept."""

        def work(start: int, stop: int) -> Numbers:
            inputs, out = Inputs(self.group, start, stop), np.zeros(_BINS, dtype=np.int64)
            self.lib.evomerge_histogram(*self._scored(inputs), inputs.count, pointer(out))
            return out

        total: Numbers = np.sum(self.group.pieces.run(work, self.ranges), axis=0)
        used = np.nonzero(total)[0]
        return int(used[0]), _above(total[used[0] : used[-1] + 1])

    def _listed(self, place: int, capacity: int, ranges: Sequence[Range] | None = None) -> tuple[Numbers, Numbers]:
        """Bits and positions of the elements in a bin, in order of position."""

        def work(start: int, stop: int) -> Found:
            inputs, found = Inputs(self.group, start, stop), Found(min(stop - start, capacity) + 64)
            self.lib.evomerge_collect(*self._scored(inputs), c_int64(start), inputs.count, place, byref(found.struct))
            return found

        return joined(self.group.pieces.run(work, self.ranges if ranges is None else ranges))

    def _counted(self, found: Bin) -> Cut:
        """Where much of a tensor has nearly one magnitude (few distinct values): by counting, remembered too."""
        values, above = self.group.fact(("low", self.source, found.place), lambda: self._low_histogram(found.place))
        place, left, _ = _found(above, found.wanted)
        bits = int(values[place])
        until = self.group.fact(("equal", self.source, bits), lambda: self._equal(bits))
        block = int(np.searchsorted(until, left))
        start = block * BLOCK
        inputs = Inputs(self.group, start, min(start + BLOCK, self.group.elements))
        before = int(until[block - 1]) if block else 0
        place = self.lib.evomerge_position(*self._scored(inputs), inputs.count, c_uint32(bits), c_int64(left - before))
        return Cut(bits, start + place)

    def _low_histogram(self, place: int) -> tuple[Numbers, Numbers]:
        """The magnitudes (bits) of a bin that occur, and `_above` of how often."""

        def work(start: int, stop: int) -> Numbers:
            inputs, out = Inputs(self.group, start, stop), np.zeros(1 << 16, dtype=np.int64)
            self.lib.evomerge_low_histogram(*self._scored(inputs), inputs.count, place, pointer(out))
            return out

        total: Numbers = np.sum(self.group.pieces.run(work, self.ranges), axis=0)
        used = np.nonzero(total)[0]
        return (place << 16) | used, _above(total[used])

    def _equal(self, bits: int) -> Numbers:
        """How many elements have that magnitude up to the end of each block."""

        def work(start: int, stop: int) -> Numbers:
            inputs, out = Inputs(self.group, start, stop), np.zeros(-(-(stop - start) // BLOCK), dtype=np.int64)
            self.lib.evomerge_equal(*self._scored(inputs), inputs.count, c_uint32(bits), pointer(out))
            return out

        return np.cumsum(np.concatenate(self.group.pieces.run(work, self.ranges)))

    def _scored(self, inputs: Inputs) -> tuple[Any, ...]:
        """First arguments of the kernels that look at scores."""
        numbers = range(self.group.n) if self.source is None else (self.source,)
        return len(numbers), inputs.sources(numbers, deltas=True), byref(inputs.base())


def _above(counts: Numbers) -> Numbers:
    """For each place how many are there or above it, negated so that it rises, as `np.searchsorted` wants it."""
    return np.append(-np.cumsum(counts[::-1])[::-1], 0)


def _found(above: Numbers, n: int) -> tuple[int, int, int]:
    """The place of the n-th counted from the top, how many of those there are up to it, and how many are there."""
    place = int(np.searchsorted(above, -n, side="right")) - 1
    return place, n + int(above[place + 1]), int(above[place + 1] - above[place])


def joined(found: Sequence[Found]) -> tuple[Numbers, Numbers]:
    """What was found range by range, together."""
    return (
        np.concatenate([f.bits[: f.struct.count] for f in found]),
        np.concatenate([f.positions[: f.struct.count] for f in found]),
    )


def nth(bits: Numbers, positions: Numbers, n: int) -> tuple[Cut, Numbers]:
    """The cut after the n-th largest of a bin's elements, and the positions of those before it, in no order.

    Args:
        positions: In order.
    """
    # Stable, so that of equal ones the earlier come first; NumPy sorts 16-bit numbers by radix, in linear time.
    order = np.argsort(0xFFFF - (bits & 0xFFFF).astype(np.uint16), kind="stable")[:n]
    return Cut(int(bits[order[-1]]), int(positions[order[-1]])), positions[order]
