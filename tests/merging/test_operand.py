"""Task vectors of adapters are their product, exactly: on one tensor, between two adapters, under a tokenizer."""

from __future__ import annotations

import gc
import json
import struct
from pathlib import Path

import pytest
import torch
from torch import Tensor

from evomerge.header import read_header
from evomerge.merging.group import Group
from evomerge.merging.mapped import MappedFiles
from evomerge.merging.operand import Gathered, LowRank, Operand, Stored

ROWS, COLUMNS = 40, 24
GENERATOR = torch.Generator().manual_seed(0)
# So large that float32 has nothing left of an adapter's product after it is added.
WEIGHT = 1e4 * torch.randn(ROWS, COLUMNS, generator=GENERATOR)


def adapter(seed: int, tensor: Tensor = WEIGHT, scale: float = 1e-6) -> LowRank:
    generator = torch.Generator().manual_seed(seed)
    left, right = torch.randn(ROWS, 3, generator=generator), torch.randn(3, COLUMNS, generator=generator)
    return LowRank(tensor, left, right, scale)


def product(of: LowRank) -> Tensor:
    return of.scale * of.left.double() @ of.right.double()


def delta(own: Operand, base: Operand, native: bool) -> Tensor:
    group = Group([own], base, native=native)
    found = group.delta(0, 0, group.elements)
    pieces = [group.delta(0, a, min(a + 37, group.elements)) for a in range(0, group.elements, 37)]
    assert torch.equal(torch.cat(pieces), found)
    if native and group.lib is not None:  # what the kernels are handed
        norm = group.delta_gram()[0][0]
        assert norm == pytest.approx(float(found.double().square().sum()), rel=1e-12)
    return found.double().reshape(group.shape)


@pytest.mark.parametrize("native", [True, False])
def test_a_base_that_carries_an_adapter_itself(native: bool) -> None:
    one, two = adapter(1), adapter(2, scale=-3e-6)
    torch.testing.assert_close(delta(one, Stored(WEIGHT), native), product(one), rtol=1e-6, atol=1e-12)
    torch.testing.assert_close(delta(one, two, native), product(one) - product(two), rtol=1e-6, atol=1e-12)
    torch.testing.assert_close(delta(Stored(WEIGHT), two, native), -product(two), rtol=1e-6, atol=1e-12)
    assert not delta(two, two, native).any()
    # Of another tensor, even one of the same values, nothing is known: the difference of what each gives.
    other = adapter(1, WEIGHT.clone())
    expected = (one.chunk(0, WEIGHT.numel()) - WEIGHT.reshape(-1)).double().reshape(WEIGHT.shape)
    assert torch.equal(delta(other, Stored(WEIGHT), native), expected)


@pytest.mark.parametrize("native", [True, False])
def test_rows_gathered_alike(native: bool) -> None:
    index = torch.tensor([3, 0, -1, 39, 3, -2])
    extra, base_extra = torch.randn(2, COLUMNS, generator=GENERATOR), torch.randn(2, COLUMNS, generator=GENERATOR)
    one = adapter(1)
    own, base = Gathered(one, index, extra), Gathered(Stored(WEIGHT), index.clone(), base_extra)
    expected = torch.where(
        index[:, None] >= 0, product(one)[index], (extra - base_extra)[(-1 - index).clamp(0)].double()
    )
    torch.testing.assert_close(delta(own, base, native), expected, rtol=1e-6, atol=1e-12)
    moved = Gathered(Stored(WEIGHT), index.flip(0), base_extra)
    difference = own.chunk(0, 6 * COLUMNS) - moved.chunk(0, 6 * COLUMNS)
    assert torch.equal(delta(own, moved, native), difference.double().reshape(6, COLUMNS))


def test_a_file_whose_data_begins_at_an_odd_byte(tmp_path: Path) -> None:
    """Read by copies: the same one for everybody while it is used, and none that stays."""
    header = json.dumps({"w": {"dtype": "F32", "shape": [ROWS, COLUMNS], "data_offsets": [0, 4 * WEIGHT.numel()]}})
    header += " " * (1 - len(header) % 2)
    file = tmp_path / "model.safetensors"
    file.write_bytes(struct.pack("<Q", len(header)) + header.encode() + WEIGHT.numpy().tobytes())
    info = read_header(file)["w"]
    assert info.start % 2 == 1
    files = MappedFiles()
    base = files.tensor(info)
    assert torch.equal(base, WEIGHT) and not files.is_mapped(info)
    one = adapter(1, files.tensor(info))
    torch.testing.assert_close(delta(one, Stored(base), True), product(one), rtol=1e-6, atol=1e-12)
    del base, one
    gc.collect()
    assert not files._copies
