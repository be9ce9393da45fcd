"""The largest elements of a task vector, exactly so many of them, whatever the machine, threads and chunks.

Task vectors of 16-bit checkpoints have many equal magnitudes, so ties are the rule; they are broken by position.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from evomerge.merging.chunks import Chunks

_NO_SIGN = {torch.float32: 0x7FFFFFFF, torch.float64: 0x7FFFFFFFFFFFFFFF}
_INTEGERS = {torch.float32: torch.int32, torch.float64: torch.int64}
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

    Two exact histograms of 16 bits each and a look for the position: no sorting, and nothing of the tensor's size.
    (For float64 the magnitudes are held and sorted at once.)

    Args:
        values: Gives the elements of a range, flat, of type `dtype`.
    """
    if keep >= count:
        return EVERYTHING
    if keep <= 0:
        return nothing(dtype)
    ranges = chunks.ranges(count)
    if dtype == torch.float64:
        every = torch.cat([magnitude_bits(values(start, stop)) for start, stop in ranges])
        limit = int(every.kthvalue(count - keep + 1).values)
    else:
        upper = sum(chunks.run(lambda a, b: _histogram(magnitude_bits(values(a, b)) >> 16, 1 << 15), ranges))
        assert isinstance(upper, Tensor)
        high, above = bin_of(upper, keep)

        def low(start: int, stop: int) -> Tensor:
            bits = magnitude_bits(values(start, stop))
            return _histogram(bits[(bits >> 16) == high] & _LOW, 1 << 16)

        lower = sum(chunks.run(low, ranges))
        assert isinstance(lower, Tensor)
        limit = (high << 16) | bin_of(lower, keep - above)[0]

    def compared(start: int, stop: int) -> tuple[int, int]:
        bits = magnitude_bits(values(start, stop))
        return int((bits > limit).sum()), int((bits == limit).sum())

    counts = chunks.run(compared, ranges)
    wanted = keep - sum(larger for larger, _ in counts)
    for (start, stop), (_, equal) in zip(ranges, counts, strict=True):
        if equal >= wanted:
            places = (magnitude_bits(values(start, stop)) == limit).nonzero().flatten()
            return Cut(limit, start + int(places[wanted - 1]))
        wanted -= equal
    raise AssertionError("the histogram counted more elements than there are")


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


def _histogram(numbers: Tensor, bins: int) -> Tensor:
    return torch.bincount(numbers, minlength=bins)
