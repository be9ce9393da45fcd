"""DELLA: drop at random, the smaller of a row the rather, and rescale (Deep et al., arXiv 2406.11617, section 3.1)."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from evomerge.errors import CandidateError
from evomerge.merging.group import Group
from evomerge.merging.masks import DrawnByRank, Part
from evomerge.merging.methods.weights import divisor
from evomerge.methods import band_problems


def della_linear(
    group: Group,
    *,
    weight: Sequence[float],
    density: Sequence[float],
    epsilon: Sequence[float],
    lambda_: float,
    normalize: bool,
    rescale: bool,
) -> Tensor:
    """W_0 + lambda sum w_i mask_i d_i / p_i, mask_i drawn with p_i from density - epsilon to density + epsilon.

    Args:
        density: Mean probability that an element of a task vector is kept; 1 keeps all, 0 none.
        epsilon: How far the smallest and the largest element of a row are from it.
        rescale: Divide what is kept by its own probability, so that its mean stays.

    Raises:
        CandidateError: density - epsilon or density + epsilon is not between 0 and 1.
    """
    parts = _parts(weight, density, epsilon, rescale, lambda_ / divisor(weight, normalize))
    return group.masked(parts, elect_sign=False)


def della(
    group: Group,
    *,
    weight: Sequence[float],
    density: Sequence[float],
    epsilon: Sequence[float],
    lambda_: float,
    normalize: bool,
    rescale: bool,
) -> Tensor:
    """The same masks and rescaling (MagPrune), then TIES's election of signs."""
    parts = _parts(weight, density, epsilon, rescale, 1.0)
    return group.masked(parts, elect_sign=True, normalize=normalize, lambda_=lambda_)


def _parts(
    weight: Sequence[float], density: Sequence[float], epsilon: Sequence[float], rescale: bool, scale: float
) -> list[Part | None]:
    problems = list(band_problems({"density": density, "epsilon": epsilon}))
    if problems:
        raise CandidateError("\n".join(problems))
    return [
        None if d <= 0.0 else Part(w * scale, DrawnByRank(d - e, d + e, rescale) if d < 1.0 else None, share=w)
        for w, d, e in zip(weight, density, epsilon, strict=True)
    ]
