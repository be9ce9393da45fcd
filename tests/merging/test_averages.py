"""Averages and interpolations against their formulas: from linear and slerp to karcher, nearswap and passthrough."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from evomerge.errors import CandidateError
from evomerge.merging.group import Group
from evomerge.merging.methods import function
from evomerge.methods import METHODS
from tests.merging.oracles import SHAPES, TYPES, WEIGHTS, Array, check, merged, models


@pytest.mark.parametrize("dtype", TYPES)
@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("normalize", [True, False])
@pytest.mark.parametrize("weight", [WEIGHTS, (0.0, 0.25, 1.5)])
def test_linear(shape: tuple[int, ...], dtype: str, normalize: bool, weight: tuple[float, ...]) -> None:
    sources, _ = models(shape, dtype)
    total = sum(w * s for w, s in zip(weight, sources, strict=True)) / (sum(weight) if normalize else 1.0)
    check("linear", sources, None, np.asarray(total), dtype, weight=weight, normalize=normalize)


def test_linear_refuses_weights_that_cancel() -> None:
    with pytest.raises(CandidateError, match="sum to 0"):
        merged("linear", models((3, 4))[0][:2], None, weight=(0.5, -0.5), normalize=True)


@pytest.mark.parametrize("count", [1, 2])
@pytest.mark.parametrize("name", [m.name for m in METHODS.values() if m.parameter("weight") and m.models is None])
def test_what_a_method_refuses_is_told_before_it_is_asked(name: str, count: int) -> None:
    """Weights that sum to 0: what the table says of them and what the method does."""
    method = METHODS[name]
    negative = method.parameter("weight").low is None  # type: ignore[union-attr]
    weight = (1.0, -1.0) if negative and count == 2 else (0.0,) * count
    values = {p.name + "_" * (p.name == "lambda"): (p.default,) * count if p.per_source else p.default
              for p in method.parameters} | {"weight": weight}  # fmt: skip
    sources, base = models((3, 4))
    told = list(method.check_sum(values)) if method.check_sum else []
    try:
        merged(name, sources[:count], base if method.apart else None, **values)
    except CandidateError as e:
        assert [str(e)] == [f"{name}: {problem}" for problem in told]
    else:
        assert not told


def arc(a: Array, b: Array, t: float, axis: int | None = None) -> Array:
    """Spherical interpolation along an axis (None: of the whole)."""

    def total(x: Array) -> Array:
        return np.asarray(x.sum(axis=axis, keepdims=axis is not None))

    angle = np.arccos(np.clip(total(a * b) / np.sqrt(total(a * a)) / np.sqrt(total(b * b)), -1, 1))
    return np.asarray((np.sin((1 - t) * angle) * a + np.sin(t * angle) * b) / np.sin(angle))


@pytest.mark.parametrize("dtype", TYPES)
@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("t", [0.0, 0.25, 1.0, 1.3])
def test_slerp(shape: tuple[int, ...], dtype: str, t: float) -> None:
    (b,), a = models(shape, dtype, 1, scale=2.0)
    check("slerp", [b], a, arc(a, b, t), dtype, t=t)


def test_slerp_of_nearly_parallel_tensors_is_a_straight_line() -> None:
    _, a = models((41, 13))
    b = (a * 1.75).astype(np.float64)
    check("slerp", [b], a, 0.7 * a + 0.3 * b, t=0.3)
    check("slerp", [np.zeros_like(a)], np.zeros_like(a), np.zeros_like(a), t=0.3)


# ---- nuslerp


@pytest.mark.parametrize("dtype", TYPES)
@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("based", [True, False])
@pytest.mark.parametrize("weight", [(0.6, 0.2), (1.2, -0.3), (0.0, 1.0)])
def test_nuslerp(shape: tuple[int, ...], dtype: str, based: bool, weight: tuple[float, float]) -> None:
    (a, b), base = models(shape, dtype, 2)
    start = base if based else np.zeros_like(base)
    t = weight[1] / sum(weight)
    given = {"weight": weight, "nuslerp_flatten": True}
    check("nuslerp", [a, b], base if based else None, start + arc(a - start, b - start, t), dtype, **given)


@pytest.mark.parametrize("shape", [(41, 13), (5, 3, 7), (29,)])
@pytest.mark.parametrize("by_first", [True, False])
@pytest.mark.parametrize("based", [True, False])
def test_nuslerp_of_vectors(shape: tuple[int, ...], by_first: bool, based: bool) -> None:
    (a, b), base = models(shape, count=2)
    start = base if based else np.zeros_like(base)
    expected = start + arc(a - start, b - start, 0.25, 0 if by_first else -1)
    given = {"weight": (0.6, 0.2), "nuslerp_flatten": False, "nuslerp_row_wise": by_first}
    check("nuslerp", [a, b], base if based else None, expected, **given)


def test_columns_of_a_tall_matrix_are_summed_over_many_pieces() -> None:
    (a, b), _ = models((70_001, 13), count=2)
    given = {"weight": (0.6, 0.2), "nuslerp_flatten": False, "nuslerp_row_wise": True}
    check("nuslerp", [a, b], None, arc(a, b, 0.25, 0), **given)


def test_nuslerp_without_a_direction() -> None:
    (a, _), base = models((6, 5), count=2)
    flat = {"nuslerp_flatten": True}
    check("nuslerp", [a, 2 * a], None, 0.75 * a + 0.25 * 2 * a, weight=(3.0, 1.0), **flat)  # parallel
    check("nuslerp", [a, -a], None, 0.5 * a, weight=(3.0, 1.0), **flat)  # opposite
    # A vector of zeros counts as perpendicular, as in mergekit; two of them are zeros.
    check("nuslerp", [a, base], base, base + np.sin(0.375 * np.pi) * (a - base), weight=(3.0, 1.0), **flat)
    check("nuslerp", [base, base], base, base, weight=(3.0, 1.0), **flat)
    # Weights that sum to nothing: the middle.
    check("nuslerp", [a, base], None, arc(a, base, 0.5), weight=(1.0, -1.0), **flat)
    rows, others = a.copy(), a.copy()
    rows[2] = 0.0
    others[3] *= 2.0
    expected = a.copy()
    expected[2] *= np.sin(0.125 * np.pi)
    expected[3] *= 1.25
    check("nuslerp", [rows, others], None, expected, weight=(3.0, 1.0), nuslerp_flatten=False)
    by_first = {"nuslerp_flatten": False, "nuslerp_row_wise": True}
    transposed = [np.ascontiguousarray(x.T) for x in (rows, others)]
    check("nuslerp", transposed, None, expected.T, weight=(3.0, 1.0), **by_first)


# ---- multislerp


def mean_direction(vectors: list[Array], weights: tuple[float, ...]) -> Array:
    """Step by step as published: tangent vectors at the mean, added up, back to the sphere."""
    norms = [np.linalg.norm(v) for v in vectors]
    units = [v / n for v, n in zip(vectors, norms, strict=True)]
    mean = sum(w * u for w, u in zip(weights, units, strict=True))
    mean = mean / np.linalg.norm(mean)
    tangent = sum(w * (u - (u * mean).sum() * mean) for w, u in zip(weights, units, strict=True))
    length = np.linalg.norm(tangent) + 1e-30
    on_sphere = mean * np.cos(length) + tangent * np.sin(length) / length
    return np.asarray(on_sphere * sum(w * n for w, n in zip(weights, norms, strict=True)))


@pytest.mark.parametrize("dtype", TYPES)
@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("based", [True, False])
@pytest.mark.parametrize("normalize", [True, False])
@pytest.mark.parametrize("weight", [WEIGHTS, (0.0, 0.5, 0.75)])
def test_multislerp(
    shape: tuple[int, ...], dtype: str, based: bool, normalize: bool, weight: tuple[float, ...]
) -> None:
    sources, base = models(shape, dtype)
    start = base if based else np.zeros_like(base)
    used = tuple(w / sum(weight) for w in weight) if normalize else weight
    expected = start + mean_direction([s - start for s in sources], used)
    given = {"weight": weight, "normalize_weights": normalize}
    check("multislerp", sources, base if based else None, expected, dtype, **given)


def test_multislerp_without_a_direction() -> None:
    (a, b), base = models((6, 5), count=2)
    check("multislerp", [a], base, a, weight=(0.5,), normalize_weights=False)  # one source as it is
    check("multislerp", [a, -a], None, np.zeros_like(a), weight=(0.5, 0.5))  # two that cancel: a straight line
    check("multislerp", [base, base], base, base, weight=(0.5, 0.5))
    check("multislerp", [a, base], base, base + 0.5 * (a - base), weight=(0.5, 0.5))  # zeros have no direction
    with pytest.raises(CandidateError, match="cancel out"):
        merged("multislerp", [a, b, -a, -b], None, weight=(1.0, 1.0, 1.0, 1.0))
    with pytest.raises(CandidateError, match="normalize_weights: false"):
        merged("multislerp", [a, b], None, weight=(1.0, -1.0))


# ---- karcher


def karcher(vectors: list[Array], steps: int, tol: float = 1e-5) -> Array:
    """Exp and log maps on the vectors themselves."""
    norms = [np.linalg.norm(v) for v in vectors]
    units = [v / n for v, n in zip(vectors, norms, strict=True)]
    mean = np.mean(units, axis=0)
    mean /= np.linalg.norm(mean)
    for _ in range(steps):
        step = np.zeros_like(mean)
        for u in units:
            angle = np.arccos(np.clip((u * mean).sum(), -1, 1))
            if angle >= tol:
                step += angle / np.sin(angle) * (u - np.cos(angle) * mean) / len(units)
        length = np.linalg.norm(step)
        if length < tol:
            break
        mean = np.cos(length) * mean + np.sin(length) * step / length
    return np.asarray(mean * np.mean(norms))


@pytest.mark.parametrize("dtype", TYPES)
@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("max_iter", [0, 1, 10])
def test_karcher(shape: tuple[int, ...], dtype: str, max_iter: int) -> None:
    sources, _ = models(shape, dtype, 4, scale=1.0)
    sources = [sources[0], 4.0 * sources[1], -0.5 * sources[2], sources[3]]  # norms far apart, one turned round
    check("karcher", sources, None, karcher(sources, max_iter), dtype, max_iter=max_iter)


def test_karcher_is_the_point_of_least_squared_angles() -> None:
    sources, _ = models((41, 13), count=4, scale=2.0)
    got = merged("karcher", sources, None, "float64", max_iter=1000, tol=1e-12).ravel()
    units = [s.ravel() / np.linalg.norm(s) for s in sources]

    def cost(x: Array) -> float:
        return float(sum(np.arccos(x @ u / np.linalg.norm(x)) ** 2 for u in units))

    random = np.random.default_rng(1)
    for _ in range(50):
        aside = random.normal(size=got.shape)
        assert cost(got + 1e-3 * aside / np.linalg.norm(aside) * np.linalg.norm(got)) > cost(got)


def test_karcher_stops_at_its_tolerance() -> None:
    sources, _ = models((41, 13), count=4)
    loose, none, all_ = (
        merged("karcher", sources, None, "float64", tol=tol, max_iter=n)
        for tol, n in ((0.05, 50), (1e-9, 0), (1e-9, 50))
    )
    assert np.array_equal(loose, none)
    assert not np.array_equal(loose, all_)


def test_karcher_without_a_direction() -> None:
    (a, b), base = models((6, 5), count=2)
    zero = np.zeros_like(a)
    check("karcher", [a], None, a)
    check("karcher", [zero, zero], None, zero)
    check("karcher", [a, zero], None, a / 2)  # the norm is averaged over all of them
    check("karcher", [a, -a], None, a)  # opposite: stays at the first
    assert np.isfinite(merged("karcher", [a, b, -a, base], None)).all()


# ---- the simple ones


@pytest.mark.parametrize("dtype", TYPES)
@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("t", [0.0, 0.05, 0.3, 1e3])
def test_nearswap(shape: tuple[int, ...], dtype: str, t: float) -> None:
    (b,), a = models(shape, dtype, 1)
    b.flat[3] = a.flat[3]
    with np.errstate(divide="ignore", invalid="ignore"):
        w = np.where(a == b, 1.0, np.clip(t / np.abs(a - b), 0, 1))
    check("nearswap", [b], a, w * b + (1 - w) * a, dtype, t=t)


def test_passthrough() -> None:
    (a, *_), _ = models((41, 13))
    check("passthrough", [a], None, -0.7 * a, scale=(-0.7,))
    assert np.array_equal(merged("passthrough", [a], None, scale=(1.0,)), a)


def test_weights_are_not_rounded_to_the_checkpoints_type() -> None:
    # mergekit in bfloat16 makes .502 into .5039.
    one = torch.full((4,), 256.0, dtype=torch.bfloat16)
    group = Group([one], torch.zeros_like(one), out_dtype=torch.float32)
    got = function("task_arithmetic")(group, weight=(0.502,), lambda_=1.0, normalize=False)
    assert got.tolist() == pytest.approx([256 * 0.502] * 4, rel=1e-6)


def test_float64_stays_float64() -> None:
    sources, base = models((41, 13))
    sources = [s + 1e-12 for s in sources]
    expected = base + sum(w * (s - base) for w, s in zip(WEIGHTS, sources, strict=True))
    got = merged("task_arithmetic", sources, base, "float64", weight=WEIGHTS)
    np.testing.assert_allclose(got, expected, rtol=1e-15, atol=1e-15)
