"""One source's tensor as it is: for stacking layers of several models."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from evomerge.merging.group import Group


def passthrough(group: Group, *, scale: Sequence[float]) -> Tensor:
    """s W."""
    return group.combine(scale)
