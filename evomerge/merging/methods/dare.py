"""DARE: drop at random and rescale (Yu et al., arXiv 2311.03099), then task arithmetic or TIES's election."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from evomerge.merging.draws import threshold
from evomerge.merging.group import Group
from evomerge.merging.methods.task_arithmetic import divisor
from evomerge.merging.methods.ties import elect


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
    parts = [
        part
        for i, (w, d) in enumerate(zip(weight, density, strict=True))
        if (part := dropped(group, i, w * scale, d, rescale)) is not None
    ]
    if not parts:
        return group.base_values.clone().reshape(group.shape)
    delta = parts[0]
    for part in parts[1:]:
        delta += part
    return delta.add_(group.base_values).reshape(group.shape)


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
    parts = [dropped(group, i, w, d, rescale) for i, (w, d) in enumerate(zip(weight, density, strict=True))]
    return elect(group, parts, weight, lambda_, normalize)


def dropped(group: Group, source: int, weight: float, density: float, rescale: bool) -> Tensor | None:
    """w_i mask_i d_i / density_i, flat; None where nothing is left of it."""
    if weight == 0.0 or density <= 0.0:
        return None
    part = group.deltas[source] * (weight / density if rescale else weight)
    if density < 1.0:
        part *= group.drawn(source, threshold(density))
    return part
