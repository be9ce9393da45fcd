"""Weighted average (model soups, Wortsman et al., arXiv 2203.05482)."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from evomerge.merging.group import Group
from evomerge.merging.methods.weights import check_weights


def linear(group: Group, *, weight: Sequence[float], normalize: bool) -> Tensor:
    """sum w_i W_i, divided by sum w_i when normalised.

    Args:
        weight: One for each tensor of the group.

    Raises:
        CandidateError: weights to normalise that sum to 0.
    """
    total = check_weights("linear", weight) if normalize else 1.0
    return group.combine([w / total for w in weight])
