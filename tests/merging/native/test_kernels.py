"""The compiled kernels against torch, bit for bit: types, odd sizes, ties, cuts at every place, threads, chunks."""

from __future__ import annotations

import sys
from collections.abc import Callable, Hashable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
import torch
from torch import Tensor

from evomerge.merging.chunks import BLOCK, Chunks
from evomerge.merging.group import Group
from evomerge.merging.masks import Drawn, DrawnByRank, Part, Ranked
from evomerge.merging.native import Job, library
from evomerge.merging.operand import LowRank, Stored

pytestmark = pytest.mark.skipif(library() is None, reason="no C++ compiler on this machine")

# Below and above the size from which histograms are used (65,536), and not a multiple of any block.
SHAPES = [(7,), (33, 5), (301, 517), (3, 40_001)]
TYPES = [torch.float32, torch.bfloat16, torch.float16]
KEYS = [3, 2**63 + 7, 99]


@pytest.fixture(scope="module")
def pool() -> Iterator[ThreadPoolExecutor]:
    with ThreadPoolExecutor(3) as pool:
        yield pool


def inputs(shape: tuple[int, ...], dtype: torch.dtype, step: float = 0.0) -> tuple[list[Tensor], Tensor]:
    """Three sources and a base; with `step`, task vectors have few distinct values, so that ties are the rule."""
    generator = torch.Generator().manual_seed(0)
    base = torch.randn(shape, generator=generator)
    if step:
        deltas = [step * torch.randint(-3, 4, shape, generator=generator) for _ in KEYS]
    else:
        deltas = [0.1 * torch.randn(shape, generator=generator) for _ in KEYS]
    return [(base + d).to(dtype) for d in deltas], base.to(dtype)


def bits(x: Tensor) -> Tensor:
    return x.view(torch.int32 if x.dtype == torch.float32 else torch.int16)


def keep(n: int, share: float) -> int:
    return max(1, int(n * share))


RESULTS: dict[str, Callable[[Group, int], Tensor]] = {
    "combine": lambda g, n: g.combine([0.3, -0.2, 0.9], 0.1),
    "combine without base": lambda g, n: g.combine([0.3, 0.0, 0.9]),
    "combine nothing": lambda g, n: g.combine([0.0, 0.0, 0.0]),
    "add": lambda g, n: g.add([0.3, 0.0, -0.9]),
    "ties": lambda g, n: g.masked(
        [Part(0.5, Ranked(0, keep(n, 0.3)), share=0.5), Part(-0.3, Ranked(0, keep(n, 0.1))), Part(0.2, Ranked(0, n))],
        elect_sign=True, normalize=True, lambda_=1.3,
    ),
    "breadcrumbs": lambda g, n: g.masked(
        [Part(0.5, Ranked(keep(n, 0.02), keep(n, 0.3))), Part(-0.3, Ranked(1, keep(n, 0.2))), None], elect_sign=False
    ),
    "dare": lambda g, n: g.masked(
        [Part(0.5, Drawn(2**30)), Part(-0.3, Drawn(2**29)), Part(1.0)], elect_sign=True, normalize=True
    ),
    "dare, five of them": lambda g, n: Group(
        [*g.sources, *g.sources[:2]], g.base, keys=[*KEYS, 4, 5], out_dtype=g.out_dtype, chunks=g.chunks,
        native=g.lib is not None,
    ).masked([Part(0.5, Drawn(2**30), share=0.4)] * 5, elect_sign=True, normalize=True),
    "della": lambda g, n: g.masked(
        [Part(0.5, DrawnByRank(0.3, 0.7, True)), Part(-0.3, DrawnByRank(0.2, 0.5, False)), Part(1.0)], elect_sign=True
    ),
    "sce": lambda g, n: g.masked(
        [Part(0.5, share=0.5, vote=1.0), None, Part(0.2, share=0.2, vote=1.0)],
        elect_sign=True, normalize=True, selection=g.variance_cut(keep(n, 0.3)),
    ),
    "nothing": lambda g, n: g.masked([None, None, None], elect_sign=True),
}  # fmt: skip


@pytest.mark.parametrize("name", RESULTS)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize(("dtype", "step"), [(t, 0.0) for t in TYPES] + [(torch.float32, 0.25), (torch.bfloat16, 0.02)])
def test_results_are_the_same_bits(
    name: str, shape: tuple[int, ...], dtype: torch.dtype, step: float, pool: ThreadPoolExecutor
) -> None:
    sources, base = inputs(shape, dtype, step)
    for out_dtype in TYPES:

        def group(native: bool, chunks: Chunks | None = None, out_dtype: torch.dtype = out_dtype) -> Group:
            return Group(sources, base, keys=KEYS, out_dtype=out_dtype, native=native, chunks=chunks)

        expected = RESULTS[name](group(False), base.numel())
        assert torch.equal(bits(RESULTS[name](group(True), base.numel())), bits(expected))
        in_pieces = RESULTS[name](group(True, Chunks(BLOCK, pool)), base.numel())
        assert torch.equal(bits(in_pieces), bits(expected))


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize(("dtype", "step"), [(torch.float32, 0.0), (torch.bfloat16, 0.0), (torch.float32, 0.25)])
def test_cuts_are_the_same(shape: tuple[int, ...], dtype: torch.dtype, step: float, pool: ThreadPoolExecutor) -> None:
    sources, base = inputs(shape, dtype, step)
    n = base.numel()
    kernels = Group(sources, base, chunks=Chunks(BLOCK, pool))  # remembers its histograms from cut to cut
    torch_ = Group(sources, base, native=False)
    assert kernels.differing() == torch_.differing()
    for count in sorted({1, 2, n // 7, n // 2, n // 2 + 1, n - 1} - {0}):
        assert kernels.cut(0, count) == torch_.cut(0, count)
        assert kernels.cut(2, count) == torch_.cut(2, count)
        assert kernels.variance_cut(count) == torch_.variance_cut(count)


@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_dot_products_agree_and_do_not_depend_on_pieces(shape: tuple[int, ...], pool: ThreadPoolExecutor) -> None:
    sources, base = inputs(shape, torch.bfloat16)
    kernels, torch_ = Group(sources, base), Group(sources, base, native=False)
    pieces = Group(sources, base, chunks=Chunks(BLOCK, pool))
    cut = kernels.variance_cut(keep(base.numel(), 0.4))
    for products in (lambda g: g.gram(), lambda g: g.delta_gram(), lambda g: g.delta_gram(cut)):
        assert products(kernels) == products(pieces)
        assert products(kernels) == products(torch_)


def test_a_wider_output_holds_rounded_values() -> None:
    sources, base = inputs((301, 517), torch.bfloat16)
    live = torch.empty(301, 517)
    Group(sources, base, out=live, out_dtype=torch.bfloat16).add([0.3, 0.2, 0.1])
    narrow = Group(sources, base, out_dtype=torch.bfloat16).add([0.3, 0.2, 0.1])
    assert torch.equal(live, narrow.float())


@pytest.mark.parametrize("native", [True, False])
@pytest.mark.parametrize("out_dtype", TYPES)
@pytest.mark.parametrize("bad", [float("nan"), float("inf"), -float("inf")])
def test_what_is_not_finite_is_seen(native: bool, out_dtype: torch.dtype, bad: float) -> None:
    sources, base = inputs((301, 517), torch.float32)
    group = Group(sources, base, out_dtype=out_dtype, native=native)
    group.combine([0.1, 0.1, 0.1])
    assert group.finite()
    sources[1][300, 516] = bad
    group.combine([0.1, 0.1, 0.1])
    assert not group.finite()
    group.masked([Part(1.0), Part(1.0), Part(1.0)], elect_sign=True)
    assert not group.finite()


def test_float16_that_overflows_is_seen() -> None:
    sources, base = inputs((33, 5), torch.float16)
    group = Group(sources, base, out_dtype=torch.float16)
    group.combine([1e6, 0.0, 0.0])
    assert not group.finite()


def test_adapters_are_the_same_bits_in_any_pieces() -> None:
    generator = torch.Generator().manual_seed(1)
    base = torch.randn(301, 517, generator=generator).bfloat16()
    left, right = torch.randn(301, 3, generator=generator), torch.randn(3, 517, generator=generator)
    adapter = LowRank(base, left, right, -0.37)
    other = Stored((base.float() + 0.1).bfloat16())
    expected = Group([adapter, other], base, native=False).add([0.5, 0.25])
    for size in (BLOCK, 1 << 20):
        assert torch.equal(Group([adapter, other], base, chunks=Chunks(size)).add([0.5, 0.25]), expected)
    exact = (left.double() @ right.double() * -0.37).reshape(-1)
    torch.testing.assert_close(adapter.delta(1000, 100_000).double(), exact[1000:100_000], rtol=1e-6, atol=1e-9)


def test_a_bin_that_is_crowded_in_one_place_is_tried_once(monkeypatch: pytest.MonkeyPatch) -> None:
    module: Any = sys.modules["evomerge.merging.native.masked"]  # the package has a function of that name
    everywhere, passes = module._everywhere, []

    def counted(job: Job, bounds: object) -> object:
        passes.append(bounds)
        return everywhere(job, bounds)

    monkeypatch.setattr(module, "_everywhere", counted)
    n = 1 << 20
    base = torch.zeros(n)
    source = 0.01 * torch.rand(n, generator=torch.Generator().manual_seed(0))
    source[5000:25_000] = 1.0 + torch.rand(20_000, generator=torch.Generator().manual_seed(1)) / 256
    facts: dict[Hashable, object] = {}
    for kept, expected in ((10_000, 2), (12_000, 1), (10_000, 1), (500_000, 1)):
        passes.clear()
        parts = [Part(0.5, Ranked(0, kept))]
        merged = Group([source], base, chunks=Chunks(BLOCK), facts=facts).masked(parts, elect_sign=True)
        assert len(passes) == expected
        assert torch.equal(merged, Group([source], base, native=False).masked(parts, elect_sign=True))
