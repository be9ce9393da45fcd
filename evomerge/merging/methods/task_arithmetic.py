"""Task arithmetic (Ilharco et al., arXiv 2212.04089)."""

from __future__ import annotations

import math
from collections.abc import Sequence

from torch import Tensor

from evomerge.merging.group import Group
from evomerge.merging.methods.weighted import NOTHING, weighted_sum


def task_arithmetic(group: Group, *, weight: Sequence[float], lambda_: float, normalize: bool) -> Tensor:
    """W_0 + lambda sum w_i (W_i - W_0), the sum divided by sum w_i when normalised (unless that is 0)."""
    return add_task_vectors(group, weight, [lambda_ / divisor(weight, normalize)] * len(weight))


def add_task_vectors(group: Group, weight: Sequence[float], scale: Sequence[float]) -> Tensor:
    """W_0 + sum s_i w_i (W_i - W_0)."""
    delta = weighted_sum(group, group.deltas, [w * s for w, s in zip(weight, scale, strict=True)])
    return delta.add_(group.base_values).reshape(group.shape)


def divisor(weight: Sequence[float], normalize: bool) -> float:
    """What a sum of task vectors is divided by: the sum of weights, or 1 where it is 0 or not asked for."""
    total = math.fsum(weight)
    return total if normalize and abs(total) >= NOTHING else 1.0
