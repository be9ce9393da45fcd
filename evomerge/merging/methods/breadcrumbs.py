"""Model Breadcrumbs: neither the largest nor the smallest changes (Davari and Belilovsky, arXiv 2312.06795)."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from evomerge.merging.group import Group
from evomerge.merging.masks import Part, Ranked
from evomerge.merging.methods.ties import ranked
from evomerge.merging.methods.weights import divisor


def breadcrumbs(
    group: Group,
    *,
    weight: Sequence[float],
    density: Sequence[float],
    gamma: Sequence[float],
    lambda_: float,
    normalize: bool,
    rescale: bool,
) -> Tensor:
    """W_0 + lambda sum w_i m_i d_i: of each d_i the int(gamma n) largest elements go, the next int(density n) stay.

    Args:
        density: Share of a task vector that is kept. It wins: fewer of the largest go where both do not fit, and at
            density 1 none does.
        gamma: Share of the largest elements by magnitude that is dropped.
        rescale: Scale what is kept of a task vector to the sum of magnitudes that all of it had.
    """
    scale = lambda_ / divisor(weight, normalize)
    return group.masked(_parts(group, weight, density, gamma, rescale, scale), elect_sign=False)


def breadcrumbs_ties(
    group: Group,
    *,
    weight: Sequence[float],
    density: Sequence[float],
    gamma: Sequence[float],
    lambda_: float,
    normalize: bool,
    rescale: bool,
) -> Tensor:
    """The same masks, then TIES's election of signs."""
    parts = _parts(group, weight, density, gamma, rescale, 1.0)
    return group.masked(parts, elect_sign=True, normalize=normalize, lambda_=lambda_)


def middle(elements: int, density: float, gamma: float) -> Ranked:
    """The places that are kept, in the order of descending magnitude."""
    keep = elements if density >= 1.0 else int(density * elements)
    first = min(int(gamma * elements), elements - keep)
    return Ranked(first, first + keep)


def _parts(
    group: Group,
    weight: Sequence[float],
    density: Sequence[float],
    gamma: Sequence[float],
    rescale: bool,
    scale: float,
) -> list[Part | None]:
    return [
        ranked(group, i, w, middle(group.elements, d, g), rescale, scale)
        for i, (w, d, g) in enumerate(zip(weight, density, gamma, strict=True))
    ]
