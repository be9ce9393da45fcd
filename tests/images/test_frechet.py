"""Fréchet distances against SciPy's matrix square root, and what they must be by definition."""

from __future__ import annotations

import numpy as np
import pytest
import scipy.linalg
import torch

from evomerge.images.frechet import Gaussian, RandomFeatures, frechet_distance, gaussian


def drawn(seed: int, size: int = 12, count: int = 400) -> np.ndarray:
    rng = np.random.default_rng(seed)
    return rng.normal(size=(count, size)) @ rng.normal(size=(size, size)) + rng.normal(size=size)


def by_definition(a: Gaussian, b: Gaussian) -> float:
    root = scipy.linalg.sqrtm(a.covariance @ b.covariance).real
    return float(((a.mean - b.mean) ** 2).sum() + np.trace(a.covariance + b.covariance - 2 * root))


@pytest.mark.parametrize("seed", range(5))
def test_equals_the_definition(seed: int) -> None:
    a, b = gaussian(drawn(seed)), gaussian(drawn(seed + 100))
    assert frechet_distance(a, b) == pytest.approx(by_definition(a, b), rel=1e-7)
    assert frechet_distance(b, a) == pytest.approx(frechet_distance(a, b), rel=1e-7)


def test_a_worked_example() -> None:
    """One dimension: (m_a - m_b)^2 + (s_a - s_b)^2."""
    a, b = (Gaussian(np.array([m]), np.array([[s * s]])) for m, s in ((1.0, 2.0), (4.0, 0.5)))
    assert frechet_distance(a, b) == pytest.approx(9 + 2.25)


def test_nothing_between_equal_sets_even_of_few_pictures() -> None:
    few = gaussian(drawn(0, size=30, count=10))  # a covariance without full rank
    assert frechet_distance(few, few) == pytest.approx(0.0, abs=1e-6)


def test_features_are_fixed_and_tell_colours_apart() -> None:
    generator = torch.Generator().manual_seed(1)
    pictures = torch.rand(64, 3, 8, 8, generator=generator) * 2 - 1
    one, other = RandomFeatures()(pictures), RandomFeatures()(pictures)
    assert one.shape == (64, RandomFeatures.size) and np.array_equal(one, other)
    assert not np.array_equal(one, RandomFeatures(seed=1)(pictures))
    red = pictures * torch.tensor([1.0, 0.2, 0.2]).view(1, 3, 1, 1)
    again = torch.rand(64, 3, 8, 8, generator=generator) * 2 - 1
    base = gaussian(one)
    assert frechet_distance(base, gaussian(RandomFeatures()(red))) > 5 * frechet_distance(
        base, gaussian(RandomFeatures()(again))
    )


def test_features_of_large_and_of_grey_pictures() -> None:
    assert RandomFeatures(1)(torch.zeros(2, 1, 200, 120)).shape == (2, RandomFeatures.size)
    assert RandomFeatures()(torch.zeros(2, 3, 1, 1)).shape == (2, RandomFeatures.size)
