"""Methods that find their weights themselves, against their formulas: SCE, Model Stock, VaRM, RAM, Arcee Fusion."""

from __future__ import annotations

from itertools import combinations

import numpy as np
import pytest
import torch

from evomerge.merging.group import Group
from evomerge.merging.methods import function
from tests.merging.oracles import SHAPES, TYPES, Array, check, merged, models

# ---- SCE


def sce(base: Array, sources: list[Array], share: float) -> Array:
    deltas = np.stack([s - base for s in sources])
    variance = deltas.var(axis=0)
    differing = (deltas != deltas[:1]).any(axis=0)
    keep = deltas[0].size if share == 1 else int(differing.sum() * share)
    mask = np.zeros(base.size)
    mask[np.argsort(-variance.ravel(), kind="stable")[:keep]] = 1
    deltas = deltas * mask.reshape(base.shape)
    energy = (deltas**2).reshape(len(deltas), -1).sum(1)
    if not energy.sum():
        return base
    eta = (energy / energy.sum()).reshape(-1, *[1] * base.ndim)
    agree = np.sign(deltas) == np.where(deltas.sum(0) >= 0, 1.0, -1.0)
    below = (eta * agree).sum(0)
    return np.asarray(base + (eta * agree * deltas).sum(0) / np.where(below == 0, 1.0, below))


@pytest.mark.parametrize("dtype", TYPES)
@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("share", [1.0, 0.5, 0.1, 0.0])
@pytest.mark.parametrize("count", [1, 2, 3])
def test_sce(shape: tuple[int, ...], dtype: str, share: float, count: int) -> None:
    sources, base = models(shape, dtype, count)
    sources = [s * k for s, k in zip(sources, (1.0, 2.0, 0.5), strict=False)]
    check("sce", sources, base, sce(base, sources, share), dtype, select_topk=share)


WORKED = [np.array([1.0, 2.0, 0.0]), np.array([-1.0, 1.0, 0.0]), np.array([3.0, 0.0, 0.0])]


@pytest.mark.parametrize(("share", "expected"), [(1.0, [2.2857142857, 1.7142857143, 0]), (0.5, [2.8, 0, 0])])
def test_sce_worked_example(share: float, expected: list[float]) -> None:
    # FuseChat's own code on these (facts/fusion.md): eta = (.3125, .125, .5625) and (.0909, .0909, .8182).
    np.testing.assert_allclose(merged("sce", WORKED, np.zeros(3), select_topk=share), expected, rtol=1e-6)


def test_sce_counts_its_share_over_the_positions_that_differ() -> None:
    # Two of four positions differ, so half of them is one; over all positions it would be both.
    sources = [np.array([1.0, 2.0, 0.0, 0.0]), np.array([-1.0, 1.0, 0.0, 0.0]), np.array([3.0, 0.0, 0.0, 0.0])]
    np.testing.assert_allclose(merged("sce", sources, np.zeros(4), select_topk=0.5), [2.8, 0, 0, 0], rtol=1e-6)


@pytest.mark.parametrize("scale", [1.0, 1e-4, 1e-12])
def test_sce_weighs_small_task_vectors_as_large_ones(scale: float) -> None:
    # mergekit takes equal coefficients where the mean squares sum to less than 1e-6.
    sources = [np.array([[1.0, 2.0], [-1.0, 0.0]]), np.array([[3.0, -2.0], [-1.0, 4.0]])]
    got = merged("sce", [scale * s for s in sources], np.zeros((2, 2)))
    np.testing.assert_allclose(got / scale, [[8 / 3, 2], [-1, 4]], rtol=1e-6)


def test_sce_selects_by_all_sources_though_one_has_nothing_selected() -> None:
    sources = [np.array([0.0, 0.0, 0.5]), np.array([4.0, -3.0, 0.0]), np.array([0.0, 3.0, 0.0])]
    base = np.zeros(3)
    check("sce", sources, base, sce(base, sources, 0.7), select_topk=0.7)


# ---- Model Stock


def model_stock(base: Array, sources: list[Array], axis: int | None) -> Array:
    deltas = [s - base for s in sources]

    def total(x: Array) -> Array:
        return np.asarray(x.sum(axis=axis, keepdims=axis is not None))

    cosines = [total(a * b) / np.sqrt(total(a * a) * total(b * b)) for a, b in combinations(deltas, 2)]
    c, n = np.mean(cosines, axis=0), len(sources)
    below = 1 + (n - 1) * c
    t = np.where(np.abs(below) < 1e-6, 0.0, n * c / np.where(below == 0, 1.0, below))  # no finite ratio: the base
    return np.asarray(t * np.mean(sources, axis=0) + (1 - t) * base)


@pytest.mark.parametrize("dtype", TYPES)
@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("filter_wise", [True, False])
@pytest.mark.parametrize("count", [2, 4])
def test_model_stock(shape: tuple[int, ...], dtype: str, filter_wise: bool, count: int) -> None:
    sources, base = models(shape, dtype, count)
    shared = 0.25 * np.round(4 * np.random.default_rng(8).normal(size=shape))
    sources = [torch.tensor(s + shared).to(TYPES[dtype]).double().numpy() for s in sources]
    expected = model_stock(base, sources, -1 if filter_wise else None)
    check("model_stock", sources, base, expected, dtype, filter_wise=filter_wise)


def test_model_stock_worked_example() -> None:
    # An angle of 60 degrees: c = 1/2, t = 2 c / (1 + c) = 2/3 of the way to the average.
    sources = [np.array([1.0, 0.0]), np.array([0.5, np.sqrt(0.75)])]
    got = merged("model_stock", sources, np.zeros(2), "float64")
    np.testing.assert_allclose(got, 2 / 3 * np.mean(sources, axis=0), rtol=1e-12)


def test_model_stock_of_task_vectors_without_an_angle_is_the_base() -> None:
    (a, b), base = models((6, 5), count=2)
    check("model_stock", [base, b], base, base)  # zeros are perpendicular
    exact = np.round(8 * a) / 8
    check("model_stock", [exact, -exact], np.zeros_like(a), np.zeros_like(a))  # opposite: no finite ratio
    check("model_stock", [exact, -exact], np.zeros_like(a), np.zeros_like(a), filter_wise=True)


@pytest.mark.parametrize("filter_wise", [True, False])
def test_model_stock_has_angles_of_small_task_vectors_too(filter_wise: bool) -> None:
    # mergekit divides by at least 1e-6, which shrinks the cosine of task vectors of norm below 1e-3.
    sources, _ = models((6, 5), count=2)
    base = np.zeros((6, 5))
    sources = [1e-6 * s for s in sources]
    expected = model_stock(base, sources, -1 if filter_wise else None)
    np.testing.assert_allclose(merged("model_stock", sources, base, filter_wise=filter_wise), expected, rtol=1e-4)


# ---- VaRM


def varm(base: Array, sources: list[Array], axis: tuple[int, ...] | None) -> Array:
    moved = np.stack([((s - base) ** 2).mean(axis=axis, keepdims=True) if axis else (s - base) ** 2 for s in sources])
    total = moved.sum(0)
    weights = np.where(total == 0, 1 / len(sources), moved / np.where(total == 0, 1.0, total))
    return np.asarray((weights * np.stack(sources)).sum(0))


@pytest.mark.parametrize("dtype", TYPES)
@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("count", [1, 2, 3])
def test_varm_by_matrix_and_by_element(shape: tuple[int, ...], dtype: str, count: int) -> None:
    sources, base = models(shape, dtype, count)
    for s in sources:
        s.flat[5] = base.flat[5]
    axes = tuple(range(len(shape)))
    check("varm", sources, base, varm(base, sources, axes), dtype, unit="matrix")
    check("varm", sources, base, varm(base, sources, None), dtype, unit="element")


def test_varm_by_larger_units_takes_their_sums() -> None:
    (a, b), base = models((6, 5), count=2)
    tensors = [torch.tensor(x, dtype=torch.float32) for x in (a, b, base)]
    for unit in ("layer", "model"):
        group = Group(tensors[:2], tensors[2], energy=(3.0, 1.0))
        got = function("varm")(group, unit=unit).double().numpy()
        np.testing.assert_allclose(got, 0.75 * a + 0.25 * b, rtol=1e-6, atol=1e-7)
        alone = merged("varm", [a, b], base, unit=unit)
        np.testing.assert_array_equal(alone, merged("varm", [a, b], base, unit="matrix"))


def test_varm_of_what_nobody_moved_is_the_base() -> None:
    _, base = models((6, 5))
    for unit in ("model", "layer", "matrix", "element"):
        assert np.array_equal(merged("varm", [base, base], base, unit=unit), base)


def test_varm_by_element_does_not_lose_tiny_task_vectors() -> None:
    sources = [np.array([1e-25, -3e-30]), np.array([3e-25, 1e-30])]
    got = merged("varm", sources, np.zeros(2), unit="element")
    np.testing.assert_allclose(got, [2.8e-25, -2.6e-30], rtol=1e-5)


# ---- RAM


def ram(base: Array, sources: list[Array], epsilon: float, r: float = 0.0, alpha: float = 0.0) -> Array:
    deltas = np.stack([s - base for s in sources])
    changed = np.abs(deltas) > epsilon
    count = changed.sum(0)
    out = np.zeros_like(base)
    for delta, own in zip(deltas, changed, strict=True):
        alone, shared = own & (count == 1), own & (count > 1)
        rho = shared.sum() / alone.sum() if alone.sum() else np.inf if shared.sum() else 0.0
        out += delta * alone * (1 + r * min(rho, alpha)) + delta * shared / np.maximum(count, 1)
    return np.asarray(base + out)


@pytest.mark.parametrize("dtype", TYPES)
@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("count", [1, 3])
@pytest.mark.parametrize("epsilon", [1e-5, 0.2])
def test_ram(shape: tuple[int, ...], dtype: str, count: int, epsilon: float) -> None:
    sources, base = models(shape, dtype, count)
    random = np.random.default_rng(4)
    sources = [np.where(random.random(shape) < 0.5, s, base) for s in sources]
    check("ram", sources, base, ram(base, sources, epsilon), dtype, epsilon=epsilon)
    for r, alpha in ((0.1, 0.2), (0.5, 10.0), (-0.3, 0.0)):
        expected = ram(base, sources, epsilon, r, alpha)
        check("ramplus_tl", sources, base, expected, dtype, epsilon=epsilon, r=r, alpha=alpha)


def test_ram_worked_example() -> None:
    sources = [np.array([1.0, 2.0, 0.0, 4.0]), np.array([0.0, 4.0, 0.0, 0.0])]
    np.testing.assert_allclose(merged("ram", sources, np.zeros(4)), [1, 3, 0, 4])
    # Source 1 shares one element and has two alone: 1 + .1 * min(1/2, .2) = 1.02 for these.
    np.testing.assert_allclose(merged("ramplus_tl", sources, np.zeros(4)), [1.02, 3, 0, 4.08], rtol=1e-6)


# ---- Arcee Fusion


def arcee(a: Array, b: Array) -> Array:
    def soft(x: Array) -> Array:
        e = np.exp(x - x.max(axis=-1, keepdims=True))
        return np.asarray(e / e.sum(axis=-1, keepdims=True) + 1e-8)

    p, q = soft(b), soft(a)
    importance = np.abs(b - a) * (p * np.log(p / q)).sum(axis=-1, keepdims=True)
    ordered = np.sort(importance.ravel())
    q1, median, q3 = (ordered[(ordered.size - 1) * k // 4] for k in (1, 2, 3))
    return np.asarray(a + (b - a) * (importance >= median + 1.5 * (q3 - q1)))


@pytest.mark.parametrize("dtype", TYPES)
@pytest.mark.parametrize("shape", [*SHAPES, (4,), (1, 1), (3,), (257, 129)])
def test_arcee_fusion(shape: tuple[int, ...], dtype: str) -> None:
    (b,), a = models(shape, dtype, 1)
    if shape == (37, 1):  # a softmax over one element: no row diverges, everything is at the threshold
        check("arcee_fusion", [b], a, b, dtype)
        return
    expected = arcee(a, b)
    if np.prod(shape) > 100:
        assert 0 < (expected != a).mean() < 0.3
    check("arcee_fusion", [b], a, expected, dtype)
