"""Every method against formulas in float64 NumPy, written from the papers and sharing no code with the program."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from evomerge.errors import CandidateError
from evomerge.merging.draws import draws, stream_key, threshold
from evomerge.merging.group import Group
from evomerge.merging.magnitude import largest, ranks
from evomerge.merging.methods import function

Array = np.ndarray[Any, np.dtype[np.float64]]
WEIGHTS, DENSITIES = (0.8, 0.5, -0.3), (0.7, 0.31, 0.5)
KEYS = (7, 2**63 + 5, 12345)


@pytest.fixture(scope="module")
def models() -> tuple[list[Array], Array]:
    """Three sources and their base, 41 x 13."""
    random = np.random.default_rng(3)
    base = random.normal(size=(41, 13)).astype(np.float32)
    return [(base + 0.2 * random.normal(size=base.shape)).astype(np.float32).astype(np.float64) for _ in range(3)], (
        base.astype(np.float64)
    )


def merged(method: str, sources: list[Array], base: Array | None, dtype: Any = torch.float32, **given: Any) -> Array:
    tensors = [torch.tensor(s, dtype=dtype) for s in sources]
    group = Group(tensors, None if base is None else torch.tensor(base, dtype=dtype), keys=KEYS[: len(sources)])
    return function(method)(group, **given).double().numpy()


def close(got: Array, expected: Array) -> None:
    np.testing.assert_allclose(got, expected, rtol=2e-6, atol=1e-6)


# ---- oracles


def splitmix64(seed: int, count: int) -> list[int]:
    """Vigna's splitmix64.c, in Python integers."""
    out = []
    for _ in range(count):
        seed = (seed + 0x9E3779B97F4A7C15) % 2**64
        z = seed
        z = (z ^ (z >> 30)) * 0xBF58476D1CE4E5B9 % 2**64
        z = (z ^ (z >> 27)) * 0x94D049BB133111EB % 2**64
        out.append(z ^ (z >> 31))
    return out


def top(delta: Array, density: float) -> Array:
    """Keeps the int(density n) elements largest by magnitude."""
    keep = int(density * delta.size)
    order = np.argsort(-np.abs(delta).ravel(), kind="stable")
    mask = np.zeros(delta.size)
    mask[order[:keep]] = 1
    return delta * mask.reshape(delta.shape)


def dare(delta: Array, density: float, key: int, rescale: bool) -> Array:
    u = np.array(splitmix64(key, delta.size), dtype=np.uint64) >> np.uint64(33)
    mask = (u < round(density * 2**31)).reshape(delta.shape)
    return delta * mask / (density if rescale else 1.0)


def election(base: Array, deltas: list[Array], normalize: bool, lam: float) -> Array:
    weighted = np.stack([w * d for w, d in zip(WEIGHTS, deltas, strict=True)])
    elected = np.where(weighted.sum(0) >= 0, 1.0, -1.0)
    agree = np.sign(weighted) == elected
    total = (weighted * agree).sum(0)
    if normalize:
        share = (np.array(WEIGHTS)[:, None, None] * agree).sum(0)
        total = total / np.where(share == 0, 1.0, share)
    return base + lam * total


# ---- the methods


@pytest.mark.parametrize("normalize", [True, False])
def test_linear(models: tuple[list[Array], Array], normalize: bool) -> None:
    sources, _ = models
    expected = sum(w * s for w, s in zip(WEIGHTS, sources, strict=True)) / (sum(WEIGHTS) if normalize else 1.0)
    close(merged("linear", sources, None, weight=WEIGHTS, normalize=normalize), expected)


def test_linear_refuses_weights_that_cancel(models: tuple[list[Array], Array]) -> None:
    with pytest.raises(CandidateError, match="sum to 0"):
        merged("linear", models[0][:2], None, weight=(0.5, -0.5), normalize=True)


@pytest.mark.parametrize("t", [0.0, 0.25, 1.0, 1.3])
def test_slerp(models: tuple[list[Array], Array], t: float) -> None:
    _, a = models
    b = np.random.default_rng(9).normal(size=a.shape).astype(np.float32).astype(np.float64)
    angle = np.arccos((a * b).sum() / np.linalg.norm(a) / np.linalg.norm(b))
    expected = (np.sin((1 - t) * angle) * a + np.sin(t * angle) * b) / np.sin(angle)
    close(merged("slerp", [b], a, t=t), expected)


def test_slerp_of_nearly_parallel_tensors_is_a_straight_line(models: tuple[list[Array], Array]) -> None:
    _, a = models
    b = (a * 1.7).astype(np.float32).astype(np.float64)
    close(merged("slerp", [b], a, t=0.3), 0.7 * a + 0.3 * b)
    close(merged("slerp", [np.zeros_like(a)], np.zeros_like(a), t=0.3), np.zeros_like(a))


@pytest.mark.parametrize(("normalize", "lam"), [(False, 1.0), (True, 0.4)])
def test_task_arithmetic(models: tuple[list[Array], Array], normalize: bool, lam: float) -> None:
    sources, base = models
    total = sum(w * (s - base) for w, s in zip(WEIGHTS, sources, strict=True))
    expected = base + lam * total / (sum(WEIGHTS) if normalize else 1.0)
    close(merged("task_arithmetic", sources, base, weight=WEIGHTS, lambda_=lam, normalize=normalize), expected)


@pytest.mark.parametrize(("normalize", "lam"), [(False, 1.0), (True, 1.0), (True, 0.4)])
def test_ties(models: tuple[list[Array], Array], normalize: bool, lam: float) -> None:
    sources, base = models
    deltas = [top(s - base, d) for s, d in zip(sources, DENSITIES, strict=True)]
    got = merged("ties", sources, base, weight=WEIGHTS, density=DENSITIES, lambda_=lam, normalize=normalize)
    close(got, election(base, deltas, normalize, lam))


def test_ties_worked_example() -> None:
    # By hand: trim to 2 of 3, elect a sign for each column, average what agrees.
    sources = [np.array([[3.0, -2.0, 0.1]]), np.array([[1.0, 4.0, -5.0]])]
    got = merged(
        "ties", sources, np.zeros((1, 3)), weight=(1.0, 1.0), density=(0.67, 0.67), lambda_=1.0, normalize=True
    )
    close(got, np.array([[3.0, 4.0, -5.0]]))  # source 2's 1.0 and source 1's 0.1 are trimmed; -2 loses against 4


def test_ties_elects_plus_when_the_sum_is_zero() -> None:
    sources = [np.array([0.5, -0.5]), np.array([-0.5, 0.5])]
    got = merged("ties", sources, np.zeros(2), weight=(1.0, 1.0), density=(1.0, 1.0), lambda_=1.0, normalize=True)
    close(got, np.array([0.5, 0.5]))


@pytest.mark.parametrize(("density", "kept"), [(0.0, 0), (1e-9, 1), (0.31, 165), (0.999, 532), (1.0, 533)])
def test_ties_keeps_exactly_its_share(models: tuple[list[Array], Array], density: float, kept: int) -> None:
    # Equal magnitudes everywhere: the count must hold all the same.
    source = np.where(models[0][0] > 0, 1.0, -1.0)
    zero = np.zeros_like(source)
    got = merged("ties", [source], zero, weight=(1.0,), density=(density,), lambda_=1.0, normalize=False)
    assert np.count_nonzero(got) == kept
    assert np.array_equal(np.flatnonzero(got), np.arange(kept)), "ties are broken by position"


@pytest.mark.parametrize("rescale", [True, False])
@pytest.mark.parametrize(("normalize", "lam"), [(False, 1.0), (True, 0.4)])
def test_dare(models: tuple[list[Array], Array], rescale: bool, normalize: bool, lam: float) -> None:
    sources, base = models
    deltas = [dare(s - base, d, k, rescale) for s, d, k in zip(sources, DENSITIES, KEYS, strict=True)]
    given = {"weight": WEIGHTS, "density": DENSITIES, "lambda_": lam, "normalize": normalize, "rescale": rescale}
    total = sum(w * d for w, d in zip(WEIGHTS, deltas, strict=True)) / (sum(WEIGHTS) if normalize else 1.0)
    close(merged("dare_linear", sources, base, **given), base + lam * total)
    close(merged("dare_ties", sources, base, **given), election(base, deltas, normalize, lam))


def test_passthrough(models: tuple[list[Array], Array]) -> None:
    sources, _ = models
    close(merged("passthrough", sources[:1], None, scale=(-0.7,)), -0.7 * sources[0])
    assert np.array_equal(merged("passthrough", sources[:1], None, scale=(1.0,)), sources[0])


def test_float64_stays_float64(models: tuple[list[Array], Array]) -> None:
    sources, base = ([s + 1e-12 for s in models[0]], models[1])
    expected = base + sum(w * (s - base) for w, s in zip(WEIGHTS, sources, strict=True))
    got = merged("task_arithmetic", sources, base, torch.float64, weight=WEIGHTS, lambda_=1.0, normalize=False)
    np.testing.assert_allclose(got, expected, rtol=1e-15, atol=1e-15)


def test_weights_are_not_rounded_to_the_checkpoints_type() -> None:
    # mergekit in bfloat16 makes .502 into .5039.
    one = torch.full((4,), 256.0, dtype=torch.bfloat16)
    got = function("task_arithmetic")(
        Group([one], torch.zeros_like(one)), weight=(0.502,), lambda_=1.0, normalize=False
    )
    assert got.tolist() == pytest.approx([256 * 0.502] * 4, rel=1e-6)


# ---- random numbers and selection


def test_draws_are_the_published_splitmix64() -> None:
    # First outputs for seed 1234567, as published with the reference implementation (Rosetta Code, Java's tests).
    published = [6457827717110365317, 3203168211198807973, 9817491932198370423, 4593380528125082431,
                 16408922859458223821]  # fmt: skip
    assert splitmix64(1234567, 5) == published
    assert draws(1234567, 5).tolist() == [v >> 33 for v in published]
    assert draws(2**64 - 3, 900).tolist() == [v >> 33 for v in splitmix64(2**64 - 3, 900)]


def test_draws_do_not_depend_on_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    whole = draws(99, 5000)
    monkeypatch.setattr("evomerge.merging.draws._CHUNK", 77)
    assert torch.equal(draws(99, 5000), whole)


def test_draws_are_uniform_and_streams_are_independent() -> None:
    a, b = (draws(stream_key(0, "content", name), 200_000) for name in ("a", "b"))
    for density in (0.1, 0.5, 0.93):
        assert float((a < threshold(density)).double().mean()) == pytest.approx(density, abs=0.004)
    assert abs(float(np.corrcoef(a.numpy(), b.numpy())[0, 1])) < 0.01
    assert abs(float(np.corrcoef(a.numpy()[1:], a.numpy()[:-1])[0, 1])) < 0.01
    keys = [stream_key(s, c, t) for s in (0, 1) for c in ("x", "y") for t in ("v", "w")]
    assert len(set(keys)) == 8


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("coarse", [False, True])
def test_selection_equals_ranking(dtype: torch.dtype, coarse: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("evomerge.merging.magnitude._CHUNK", 100)
    x = torch.randn(1001, generator=torch.Generator().manual_seed(1)).to(torch.bfloat16 if coarse else dtype).to(dtype)
    x[::50] = 0.0
    x[1] = -0.0
    order = sorted(range(len(x)), key=lambda i: (-abs(float(x[i])), i))
    for keep in (0, 1, 2, 500, 990, 1000, 1001, 1002):
        expected = set(order[:keep])
        assert set(torch.nonzero(largest(x, keep)).flatten().tolist()) == expected
        assert set(torch.nonzero(ranks(x) < keep).flatten().tolist()) == expected
