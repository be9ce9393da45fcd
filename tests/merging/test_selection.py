"""The largest elements: exactly so many, equal ones by position, whatever the chunks."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

import pytest
import torch

from evomerge.merging.chunks import Chunks
from evomerge.merging.group import Group
from evomerge.merging.selection import find_cut, magnitude_bits, row_ranks, value_of

COUNT = 70_001


def numbers(dtype: torch.dtype, coarse: bool) -> torch.Tensor:
    x = torch.randn(COUNT, generator=torch.Generator().manual_seed(1)).to(torch.bfloat16 if coarse else dtype).to(dtype)
    x[::50] = 0.0
    x[1] = -0.0
    x[3::1000] = -x[3]
    return x


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("coarse", [False, True])
def test_selection_equals_ranking(dtype: torch.dtype, coarse: bool) -> None:
    x = numbers(dtype, coarse)
    order = torch.sort(x.abs(), descending=True, stable=True).indices
    assert torch.equal(torch.argsort(row_ranks(x.reshape(1, -1)).flatten()), order)
    with ThreadPoolExecutor(3) as pool:
        for keep in (0, 1, 2, 500, 35_000, 68_600, 69_990, COUNT - 1, COUNT, COUNT + 1):
            expected = torch.zeros(COUNT, dtype=torch.bool)
            expected[order[:keep]] = True
            cuts = [find_cut(lambda a, b: x[a:b], COUNT, keep, dtype, c) for c in (Chunks(1 << 30), Chunks(1, pool))]
            for native in (True, False):
                cuts.append(Group([x], torch.zeros_like(x), native=native).cut(0, keep))
            assert len(set(cuts)) == 1
            for start in (0, 17, COUNT - 5):  # an element is told by itself
                found = cuts[0].before(magnitude_bits(x[start:]), start)
                assert torch.equal(found, expected[start:])
            if 0 < keep < COUNT:
                assert value_of(cuts[0].bits, dtype) == float(x.abs()[order[keep - 1]])


def test_ranks_are_row_by_row() -> None:
    x = numbers(torch.float32, True)[:6000].reshape(60, 100)
    assert torch.equal(row_ranks(x), torch.cat([row_ranks(row.reshape(1, -1)) for row in x]))
