"""Masked task vectors against their formulas: task arithmetic, TIES, DARE, DELLA, Breadcrumbs."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from evomerge.errors import CandidateError
from evomerge.merging.group import Group
from evomerge.merging.methods.dare import dare_linear, dare_ties
from tests.merging.oracles import (
    DENSITIES,
    KEYS,
    SHAPES,
    TYPES,
    WEIGHTS,
    Array,
    as_before,
    check,
    election,
    kept,
    linear_end,
    merged,
    models,
    order,
    top,
    uniform,
)

ENDS = [(False, 1.0), (True, 0.4)]
# Mixed, with all and with nothing of a source, and with a weight of zero.
MIXES = [(WEIGHTS, DENSITIES), ((0.5, -0.2, 0.0), (1.0, 0.02, 0.9)), ((0.3, 0.3, 0.6), (0.5, 0.0, 1.0))]


@pytest.mark.parametrize("dtype", TYPES)
@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize(("normalize", "lam"), ENDS)
def test_task_arithmetic(shape: tuple[int, ...], dtype: str, normalize: bool, lam: float) -> None:
    sources, base = models(shape, dtype)
    expected = linear_end(base, [s - base for s in sources], WEIGHTS, normalize, lam)
    check("task_arithmetic", sources, base, expected, dtype, weight=WEIGHTS, lambda_=lam, normalize=normalize)


def test_task_arithmetic_of_weights_that_cancel_is_not_normalised() -> None:
    (a, b), base = models((6, 5), count=2)
    check("task_arithmetic", [a, b], base, base + a - b, weight=(1.0, -1.0), normalize=True)


# ---- TIES


def trimmed(delta: Array, density: float, rescale: bool) -> Array:
    stays = kept(delta, 0, max(1, int(density * delta.size)) if density else 0)
    return as_before(delta, stays) if rescale else stays


@pytest.mark.parametrize("dtype", TYPES)
@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize(("normalize", "lam"), ENDS)
@pytest.mark.parametrize("rescale", [True, False])
@pytest.mark.parametrize("mix", MIXES)
def test_ties(shape: tuple[int, ...], dtype: str, normalize: bool, lam: float, rescale: bool, mix: Any) -> None:
    sources, base = models(shape, dtype)
    weight, density = mix
    deltas = [trimmed(s - base, d, rescale) for s, d in zip(sources, density, strict=True)]
    given = {"weight": weight, "density": density, "lambda_": lam, "normalize": normalize, "rescale": rescale}
    check("ties", sources, base, election(base, deltas, weight, normalize, lam), dtype, **given)


def test_ties_worked_example() -> None:
    # By hand: trim to 2 of 3, elect a sign for each column, average what agrees.
    sources = [np.array([[3.0, -2.0, 0.1]]), np.array([[1.0, 4.0, -5.0]])]
    got = merged("ties", sources, np.zeros((1, 3)), weight=(1.0, 1.0), density=(0.67, 0.67))
    # Source 2's 1.0 and source 1's 0.1 are trimmed; -2 loses against 4.
    np.testing.assert_allclose(got, [[3.0, 4.0, -5.0]])


def test_ties_elects_plus_when_the_sum_is_zero() -> None:
    sources = [np.array([0.5, -0.5]), np.array([-0.5, 0.5])]
    got = merged("ties", sources, np.zeros(2), weight=(1.0, 1.0), density=(1.0, 1.0))
    np.testing.assert_allclose(got, [0.5, 0.5])


@pytest.mark.parametrize(("density", "left"), [(0.0, 0), (1e-9, 1), (0.31, 165), (0.999, 532), (1.0, 533)])
def test_ties_keeps_exactly_its_share(density: float, left: int) -> None:
    # Equal magnitudes everywhere: the count must hold all the same.
    source = np.where(models((41, 13))[0][0] > 0, 1.0, -1.0)
    got = merged("ties", [source], np.zeros_like(source), weight=(1.0,), density=(density,), normalize=False)
    assert np.array_equal(np.flatnonzero(got), np.arange(left)), "ties are broken by position"


# ---- DARE


def dare(delta: Array, density: float, key: int, rescale: bool) -> Array:
    stays = uniform(key, delta.shape) < round(density * 2**31) / 2**31
    return delta * stays / (density if rescale and density else 1.0)


@pytest.mark.parametrize("dtype", TYPES)
@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("rescale", [True, False])
@pytest.mark.parametrize(("normalize", "lam"), ENDS)
@pytest.mark.parametrize("mix", MIXES)
def test_dare(shape: tuple[int, ...], dtype: str, rescale: bool, normalize: bool, lam: float, mix: Any) -> None:
    sources, base = models(shape, dtype)
    weight, density = mix
    deltas = [dare(s - base, d, k, rescale) for s, d, k in zip(sources, density, KEYS, strict=True)]
    given = {"weight": weight, "density": density, "lambda_": lam, "normalize": normalize, "rescale": rescale}
    check("dare_linear", sources, base, linear_end(base, deltas, weight, normalize, lam), dtype, **given)
    check("dare_ties", sources, base, election(base, deltas, weight, normalize, lam), dtype, **given)


@pytest.mark.parametrize("native", [True, False])
def test_dare_of_nearly_everything_drops_nothing(native: bool) -> None:
    # No 31-bit draw lies above such a density; the limit itself, 2^31, is no int32.
    sources, base = models((40, 30), count=1)
    group = Group([torch.tensor(sources[0]).float()], torch.tensor(base).float(), keys=KEYS[:1], native=native)
    whole = group.add([0.5])
    for method in (dare_linear, dare_ties):
        found = method(group, weight=[0.5], density=[1 - 1e-12], lambda_=1.0, normalize=False, rescale=True)
        torch.testing.assert_close(found, whole)


# ---- DELLA


def della(delta: Array, density: float, epsilon: float, key: int, rescale: bool) -> Array:
    """Row by row: probabilities in equal steps by rank, the largest element's the largest."""
    if density in (0.0, 1.0):
        return delta * density
    rows = delta.reshape(delta.shape[0], -1) if delta.ndim > 1 else delta.reshape(1, -1)
    out = np.zeros_like(rows)
    draws = uniform(key, rows.shape)
    for r, row in enumerate(rows):
        probability = np.empty(len(row))
        probability[order(row)] = np.linspace(density + epsilon, density - epsilon, len(row))
        out[r] = row * (draws[r] < probability) / (probability if rescale else 1.0)
    return out.reshape(delta.shape)


@pytest.mark.parametrize("dtype", TYPES)
@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("rescale", [True, False])
@pytest.mark.parametrize(("normalize", "lam"), ENDS)
@pytest.mark.parametrize(("density", "epsilon"), [(DENSITIES, (0.15, 0.3, 0.0)), ((1.0, 0.6, 0.0), (0.15, 0.25, 0.15))])
def test_della(
    shape: tuple[int, ...],
    dtype: str,
    rescale: bool,
    normalize: bool,
    lam: float,
    density: tuple[float, ...],
    epsilon: tuple[float, ...],
) -> None:
    sources, base = models(shape, dtype)
    deltas = [della(s - base, d, e, k, rescale) for s, d, e, k in zip(sources, density, epsilon, KEYS, strict=True)]
    given: dict[str, Any] = {"weight": WEIGHTS, "density": density, "epsilon": epsilon, "lambda_": lam}
    given |= {"normalize": normalize, "rescale": rescale}
    check("della_linear", sources, base, linear_end(base, deltas, WEIGHTS, normalize, lam), dtype, **given)
    check("della", sources, base, election(base, deltas, WEIGHTS, normalize, lam), dtype, **given)


def test_della_keeps_the_large_rather_and_the_mean_where_it_rescales() -> None:
    random = np.random.default_rng(2)
    delta = random.normal(size=(400, 500))
    got = merged("della_linear", [delta], np.zeros_like(delta), weight=(1.0,), density=(0.5,), epsilon=(0.3,))
    by_size = np.argsort(np.abs(delta), axis=1)
    shares = [np.take_along_axis(got != 0, by_size[:, part], axis=1).mean() for part in (slice(50), slice(-50, None))]
    assert shares == pytest.approx([0.23, 0.77], abs=0.01)
    assert np.abs(got).sum() == pytest.approx(np.abs(delta).sum(), rel=0.01)


@pytest.mark.parametrize(("density", "epsilon"), [(0.9, 0.15), (0.1, 0.1), (0.5, 0.5)])
def test_della_refuses_probabilities_beyond_0_and_1(density: float, epsilon: float) -> None:
    (a,), base = models((6, 5), count=1)
    for method in ("della", "della_linear"):
        with pytest.raises(CandidateError, match="must lie between 0 and 1; here epsilon must be less than"):
            merged(method, [a], base, weight=(1.0,), density=(density,), epsilon=(epsilon,))


# ---- Breadcrumbs


def crumbs(delta: Array, density: float, gamma: float, rescale: bool) -> Array:
    keep = int(density * delta.size)
    first = min(int(gamma * delta.size), delta.size - keep)
    stays = kept(delta, first, first + keep)
    return as_before(delta, stays) if rescale else stays


@pytest.mark.parametrize("dtype", TYPES)
@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("rescale", [True, False])
@pytest.mark.parametrize(("normalize", "lam"), ENDS)
@pytest.mark.parametrize(
    ("mix", "gamma"), list(zip(MIXES, [(0.01, 0.2, 0.0), (0.6, 0.9, 0.05), (0.2, 0.0, 0.01)], strict=True))
)
def test_breadcrumbs(
    shape: tuple[int, ...], dtype: str, rescale: bool, normalize: bool, lam: float, mix: Any, gamma: tuple[float, ...]
) -> None:
    sources, base = models(shape, dtype)
    weight, density = mix
    deltas = [crumbs(s - base, d, g, rescale) for s, d, g in zip(sources, density, gamma, strict=True)]
    given = {"weight": weight, "density": density, "gamma": gamma, "lambda_": lam, "normalize": normalize}
    given["rescale"] = rescale
    check("breadcrumbs", sources, base, linear_end(base, deltas, weight, normalize, lam), dtype, **given)
    check("breadcrumbs_ties", sources, base, election(base, deltas, weight, normalize, lam), dtype, **given)


def test_breadcrumbs_worked_example() -> None:
    # Ten elements: the largest goes (gamma .1), the next five stay (density .5), the four smallest go.
    delta = np.array([1.0, -9, 3, 0.5, -5, 7, -2, 0.1, 4, -6])
    got = merged("breadcrumbs", [delta], np.zeros(10), weight=(1.0,), density=(0.5,), gamma=(0.1,))
    np.testing.assert_array_equal(got, [0, 0, 3, 0, -5, 7, 0, 0, 4, -6])


def test_breadcrumbs_at_small_gamma_are_the_trimmed_task_vector() -> None:
    (a,), base = models((9, 5), count=1)  # int(.01 * 45) = 0 of the largest go
    check("breadcrumbs", [a], base, base + top(a - base, 0.5), weight=(1.0,), density=(0.5,), gamma=(0.01,))
