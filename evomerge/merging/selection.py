"""The largest elements of a task vector, exactly so many of them, whatever the machine, threads and chunks.

Task vectors of 16-bit checkpoints have many equal magnitudes, so ties are the rule; they are broken by position.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from threading import Lock

import torch
from torch import Tensor

from evomerge.merging.chunks import Chunks, Range

_NO_SIGN = {torch.float32: 0x7FFFFFFF, torch.float64: 0x7FFFFFFFFFFFFFFF}
_INTEGERS = {torch.float32: torch.int32, torch.float64: torch.int64}
_DIGITS = {torch.float32: (16, 0), torch.float64: (48, 32, 16, 0)}
_LOW = 0xFFFF

Values = Callable[[int, int], Tensor]


@dataclass(frozen=True)
class Cut:
    """A place in the descending order of magnitudes: what lies before it is as large, what lies after is not.

    Magnitudes of IEEE numbers are in the order of their bits (NaN above all), so a cut is two integers, and one element
    can be told to lie before it by itself.

    Attributes:
        bits: Magnitude of the last element before the cut, as bits of the type of computation.
        position: Its position: of equal magnitudes the earlier ones lie before the cut.
    """

    bits: int
    position: int

    def before(self, bits: Tensor, start: int) -> Tensor:
        """Mask (bool) of the elements before the cut, for magnitude bits of positions from `start` on. Flat."""
        found = bits > self.bits
        equal = bits == self.bits
        end = self.position + 1 - start
        if end < len(bits):
            equal[max(end, 0) :] = False
        return found | equal


EVERYTHING = Cut(-1, -1)


def nothing(dtype: torch.dtype) -> Cut:
    """The cut that no element lies before."""
    return Cut(_NO_SIGN[dtype], -1)


def magnitude_bits(values: Tensor) -> Tensor:
    """Magnitudes as integers in the same order. Flat float32 or float64 input."""
    return values.contiguous().view(_INTEGERS[values.dtype]) & _NO_SIGN[values.dtype]


def value_of(bits: int, dtype: torch.dtype) -> float:
    """The magnitude that has these bits."""
    return float(torch.tensor(bits, dtype=_INTEGERS[dtype]).view(dtype))


def find_cut(values: Values, count: int, keep: int, dtype: torch.dtype, chunks: Chunks) -> Cut:
    """The cut with `keep` of `count` elements before it.

    Exact histograms of 16 bits each, two or (float64) four, and a look for the position: no sorting, and nothing of
    the tensor's size.

    Args:
        values: Gives the elements of a range, flat, of type `dtype`.
    """
    if keep >= count:
        return EVERYTHING
    if keep <= 0:
        return nothing(dtype)
    ranges = chunks.ranges(count)
    # The limit digit by digit, the highest first: of the elements that have the digits so far, which have which next.
    limit, left = 0, keep
    for shift in _DIGITS[dtype]:
        found, above = bin_of(_next_digit(values, ranges, limit, shift, chunks), left)
        limit, left = (limit << 16) | found, left - above

    def compared(start: int, stop: int) -> tuple[int, int]:
        bits = magnitude_bits(values(start, stop))
        return int((bits > limit).sum()), int((bits == limit).sum())

    compares = chunks.run(compared, ranges)
    wanted = keep - sum(larger for larger, _ in compares)
    for (start, stop), (_, equal) in zip(ranges, compares, strict=True):
        if equal >= wanted:
            places = (magnitude_bits(values(start, stop)) == limit).nonzero().flatten()
            return Cut(limit, start + int(places[wanted - 1]))
        wanted -= equal
    raise AssertionError("the histogram counted more elements than there are")


def _next_digit(values: Values, ranges: Sequence[Range], known: int, shift: int, chunks: Chunks) -> Tensor:
    """Of the magnitudes whose bits begin with `known`, how many have which next 16 bits (those from `shift` on)."""
    total = torch.zeros(1 << 16, dtype=torch.int64, device=values(0, 0).device)
    adding = Lock()

    def count(start: int, stop: int) -> None:
        bits = magnitude_bits(values(start, stop)) >> shift
        own = torch.bincount(bits[(bits >> 16) == known] & _LOW, minlength=1 << 16)
        with adding:  # at once: a histogram for each range would be more than the tensor's part that it counts
            total.add_(own)

    chunks.run(count, ranges)
    return total


def bin_of(counts: Tensor, n: int) -> tuple[int, int]:
    """The bin that holds the n-th element counted from the top, and how many elements are in the bins above it."""
    reached = counts.flip(0).cumsum(0).flip(0)
    found = int((reached >= n).nonzero()[-1])
    return found, int(reached[found] - counts[found])


def row_ranks(values: Tensor) -> Tensor:
    """Place of each element in its row by descending magnitude, equal ones by position; int64, like `values`."""
    order = torch.argsort(magnitude_bits(values.reshape(-1)).reshape(values.shape), dim=1, descending=True, stable=True)
    places = torch.arange(values.shape[1], device=values.device).expand_as(order)
    return torch.empty_like(order).scatter_(1, order, places)
