"""The loops for a few bfloat16 tensors, one to five of them (from five on the general kernel works), against torch."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from evomerge.merging.draws import threshold
from evomerge.merging.group import Group
from evomerge.merging.masks import Drawn, Mask, Part, Ranked
from evomerge.merging.native import library

pytestmark = pytest.mark.skipif(library() is None, reason="no C++ compiler on this machine")

WEIGHTS = (0.5, -0.3, 0.2, 0.0625, 0.7)
# Around a vector, a block, and the size from which histograms are used.
SIZES = (0, 1, 31, 33, 511, 513, 70_001)


def inputs(sources: int, size: int, step: float) -> tuple[list[Tensor], Tensor]:
    generator = torch.Generator().manual_seed(sources)
    base = torch.randn(size, generator=generator)
    shifts = [
        step * torch.randint(-3, 4, (size,), generator=generator) if step else torch.randn(size, generator=generator)
        for _ in range(sources)
    ]
    return [(base + 0.1 * s).bfloat16() for s in shifts], base.bfloat16()


def ranked(i: int, size: int) -> Mask | None:
    return Ranked(0, max(1, size // (2 + i)))


def banded(i: int, size: int) -> Mask | None:
    return Ranked(min(size, 1 + i), max(2 + i, size // 2))


def drawn(i: int, size: int) -> Mask | None:
    return Drawn(threshold(0.2 + 0.15 * i))


def all_kept(i: int, size: int) -> Mask | None:
    return None


def some_ranked(i: int, size: int) -> Mask | None:
    return ranked(i, size) if i % 2 else None


def some_drawn(i: int, size: int) -> Mask | None:
    return None if i % 2 else drawn(i, size)


MASKS = [ranked, banded, drawn, all_kept, some_ranked, some_drawn]


@pytest.mark.parametrize("mask", MASKS)
@pytest.mark.parametrize("sources", range(1, 6))
@pytest.mark.parametrize("step", [0.0, 0.25])
def test_masked_merges_are_the_same_bits(mask: Callable[[int, int], Mask | None], sources: int, step: float) -> None:
    for size in SIZES:
        tensors, base = inputs(sources, size, step)
        parts = [Part(WEIGHTS[i], mask(i, size) if size else None, share=WEIGHTS[i]) for i in range(sources)]
        for elect_sign, normalize, lambda_ in ((False, False, 1.0), (True, False, 0.7), (True, True, -1.3)):
            merged = [
                Group(tensors, base, keys=list(range(sources)), out_dtype=torch.bfloat16, native=native).masked(
                    parts, elect_sign=elect_sign, normalize=normalize, lambda_=lambda_
                )
                for native in (True, False)
            ]
            assert torch.equal(merged[0].view(torch.int16), merged[1].view(torch.int16)), (size, elect_sign, normalize)


@pytest.mark.parametrize("sources", range(1, 6))
def test_sums_are_the_same_bits(sources: int) -> None:
    for size in SIZES:
        tensors, base = inputs(sources, size, 0.0)
        for method in (Group.add, Group.combine):
            native, torch_ = (
                method(Group(tensors, base, out_dtype=torch.bfloat16, native=n), WEIGHTS[:sources])
                for n in (True, False)
            )
            assert torch.equal(native.view(torch.int16), torch_.view(torch.int16)), (size, method)


@pytest.mark.parametrize("offset", [0, 1, 3, 31])
def test_nothing_is_written_beside_the_target(offset: int) -> None:
    # From 262,144 elements on results are written past the caches, in whole lines where the target is aligned.
    tensors, base = inputs(2, 270_001, 0.0)
    memory = torch.full((offset + base.numel() + 40,), 7.0, dtype=torch.bfloat16)
    out = memory[offset : offset + base.numel()]
    Group(tensors, base, out=out).add([0.5, 0.25])
    assert torch.equal(out, Group(tensors, base, out_dtype=torch.bfloat16, native=False).add([0.5, 0.25]))
    assert (memory[:offset] == 7.0).all()
    assert (memory[offset + base.numel() :] == 7.0).all()


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), -3.39e38])
@pytest.mark.parametrize("place", [0, 40, 70_000])
def test_what_is_not_finite_is_seen_and_written_as_torch_writes_it(bad: float, place: int) -> None:
    tensors, base = inputs(2, 70_001, 0.0)
    tensors[1][place] = bad
    parts = [Part(1.5, Ranked(0, 30_000)), Part(1.5, Ranked(0, 20_000))]
    for merge in (
        lambda g: g.masked(parts, elect_sign=True, normalize=True),
        lambda g: g.combine([1.0, 1.5]),
        lambda g: g.add([1.0, 1.5]),
    ):
        native, torch_ = (Group(tensors, base, out_dtype=torch.bfloat16, native=n) for n in (True, False))
        torch.testing.assert_close(merge(native), merge(torch_), rtol=0, atol=0, equal_nan=True)
        assert not native.finite()
        assert not torch_.finite()


def test_what_overflows_only_while_its_cut_is_looked_for_is_not_refused() -> None:
    # The largest of one source takes the other's back: as long as it counts as cut off, float16 overflows there.
    n, place = 1 << 17, 1000
    generator = torch.Generator().manual_seed(0)
    base = torch.zeros(n)
    first, second = torch.rand(n, generator=generator) * 300, torch.zeros(n)
    base[place], first[place], second[place] = 60_000.0, 59_712.0, 65_400.0
    tensors, base = [first.half(), second.half()], base.half()
    magnitudes = (tensors[0].float() - base.float()).abs()
    parts = [Part(2.0, Ranked(0, int((magnitudes >= magnitudes[place]).sum()))), Part(1.1)]
    for native in (True, False):
        group = Group(tensors, base, out_dtype=torch.float16, native=native)
        assert torch.isfinite(group.masked(parts, elect_sign=False)).all()
        assert group.finite()


@pytest.mark.parametrize("native", [True, False])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
def test_shares_that_cancel_each_other_are_no_divisor(native: bool, dtype: torch.dtype) -> None:
    # In float32 .01 + .04 - .05 is -3.7e-9: divided by it, task vectors of size 1 became millions.
    base = torch.zeros(100, dtype=dtype)
    sources = [torch.full((100,), sign, dtype=dtype) for sign in (1.0, 1.0, -1.0)]
    weights = (0.01, 0.04, -0.05)
    merged = Group(sources, base, out_dtype=dtype, native=native).masked(
        [Part(w, share=w) for w in weights], elect_sign=True, normalize=True
    )
    assert merged.abs().max() < 0.2
