"""Fréchet distance between two sets of pictures, on fixed features (Heusel et al., arXiv 1706.08500, eq. 6)."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from evomerge.errors import InputError
from evomerge.merging.allocation import out_of_memory

Array = NDArray[np.float64]
# Pictures in [-1, 1], [n, channels, height, width] -> what they are compared by, [n, d].
Features = Callable[[Tensor], Array]
# Widths of the two layers of random convolutions.
_FIRST, _SECOND = 16, 32
# Larger pictures are brought to this size first.
_MOST = 64


@dataclass(frozen=True)
class Gaussian:
    """Mean [d] and covariance [d, d] of the features of a set of pictures."""

    mean: Array
    covariance: Array


class RandomFeatures:
    """Features by two layers of convolutions with fixed random weights, averaged over the picture.

    What they tell apart are colours, contrasts and small shapes, of any size of picture and without any download: right
    for comparing models of one kind with each other, no measure of what people see. Distances are not those of
    Inception features, which are published as FID.

    Args:
        channels: Of the pictures.
        seed: Of the weights.
    """

    size = _FIRST + _SECOND

    def __init__(self, channels: int = 3, seed: int = 0) -> None:
        generator = torch.Generator().manual_seed(seed)
        widths = ((channels, _FIRST), (_FIRST, _SECOND))
        self._weights = [
            torch.randn(b, a, 3, 3, generator=generator) * (2 / (9 * a)) ** 0.5 for a, b in widths
        ]

    @torch.no_grad()
    def __call__(self, pictures: Tensor) -> Array:
        """Features of pictures in [-1, 1], [n, channels, height, width]: [n, 48]."""
        x = pictures.float()
        if max(x.shape[-2:]) > _MOST:
            x = nn.functional.interpolate(x, size=(_MOST, _MOST), mode="area")
        first = nn.functional.relu(nn.functional.conv2d(x, self._weights[0], padding=1))
        pooled = nn.functional.avg_pool2d(first, 2) if min(first.shape[-2:]) > 1 else first
        second = nn.functional.relu(nn.functional.conv2d(pooled, self._weights[1], padding=1))
        found: Array = torch.cat([first.mean((2, 3)), second.mean((2, 3))], dim=1).double().numpy()
        return found


def own_features(function: Callable[[Tensor], Any], where: str) -> Features:
    """Features by a function of the user's.

    Args:
        where: How messages call the key that names it.
    """

    def features(pictures: Tensor) -> Array:
        try:
            with torch.no_grad():
                found = function(pictures)
        except Exception as e:  # the user's own function may raise anything; the message needs its name
            if out_of_memory(e):
                raise
            raise InputError(f"{where}: fails: {e!r}; expected features of {list(pictures.shape)}") from e
        found = found.detach().cpu().numpy() if isinstance(found, Tensor) else found
        array: Array = np.asarray(found, dtype=np.float64)
        if array.ndim != 2 or len(array) != len(pictures) or not np.isfinite(array).all():
            raise InputError(
                f"{where}: gave {list(array.shape)} for {len(pictures)} pictures; expected finite numbers of shape "
                f"[{len(pictures)}, features]"
            )
        return array

    return features


def gaussian(features: Array) -> Gaussian:
    """Mean and covariance of features, [n, d]."""
    return Gaussian(features.mean(0), np.atleast_2d(np.cov(features, rowvar=False)))


def frechet_distance(a: Gaussian, b: Gaussian) -> float:
    """||m_a - m_b||^2 + tr(C_a + C_b - 2 (C_a C_b)^(1/2)); 0 or more.

    (C_a C_b)^(1/2) has the trace of (C_a^(1/2) C_b C_a^(1/2))^(1/2), which is symmetric: no complex rounding.
    """
    root = _root(a.covariance)
    values = np.linalg.eigvalsh(root @ b.covariance @ root)
    cross = np.sqrt(np.clip(values, 0.0, None)).sum()
    distance = float(((a.mean - b.mean) ** 2).sum() + np.trace(a.covariance) + np.trace(b.covariance) - 2 * cross)
    return max(distance, 0.0)


def _root(matrix: Array) -> Array:
    values, vectors = np.linalg.eigh(matrix)
    found: Array = (vectors * np.sqrt(np.clip(values, 0.0, None))) @ vectors.T
    return found
