"""Task arithmetic (Ilharco et al., arXiv 2212.04089)."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from evomerge.merging.group import Group
from evomerge.merging.methods.weights import divisor


def task_arithmetic(group: Group, *, weight: Sequence[float], lambda_: float, normalize: bool) -> Tensor:
    """W_0 + lambda sum w_i (W_i - W_0), the sum divided by sum w_i when normalised (unless that is 0)."""
    scale = lambda_ / divisor(weight, normalize)
    return group.add([w * scale for w in weight])
