"""DARE: drop at random and rescale (Yu et al., arXiv 2311.03099), then task arithmetic or TIES's election."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from evomerge.merging.draws import BITS, threshold
from evomerge.merging.group import Group
from evomerge.merging.masks import Drawn, Part
from evomerge.merging.methods.weights import divisor


def dare_linear(
    group: Group,
    *,
    weight: Sequence[float],
    density: Sequence[float],
    lambda_: float,
    normalize: bool,
    rescale: bool,
) -> Tensor:
    """W_0 + lambda sum w_i mask_i d_i / density_i, mask_i drawn with probability density_i per element.

    Args:
        density: Probability that an element of a task vector is kept.
        rescale: Divide what is kept by the density, so that its mean stays.
    """
    scale = lambda_ / divisor(weight, normalize)
    parts = [dropped(w, d, rescale, scale) for w, d in zip(weight, density, strict=True)]
    return group.masked(parts, elect_sign=False)


def dare_ties(
    group: Group,
    *,
    weight: Sequence[float],
    density: Sequence[float],
    lambda_: float,
    normalize: bool,
    rescale: bool,
) -> Tensor:
    """DARE's mask and rescaling in the place of TIES's trimming."""
    parts = [dropped(w, d, rescale) for w, d in zip(weight, density, strict=True)]
    return group.masked(parts, elect_sign=True, normalize=normalize, lambda_=lambda_)


def dropped(weight: float, density: float, rescale: bool, scale: float = 1.0) -> Part | None:
    """The part of a source of which elements are dropped at random; None where nothing is left of it."""
    if density <= 0.0:
        return None
    below = threshold(density)
    mask = Drawn(below) if below < 1 << BITS else None
    return Part(weight * scale / (density if rescale else 1.0), mask, share=weight)
