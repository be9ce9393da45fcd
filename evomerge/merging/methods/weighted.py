"""Weighted sums, the end of most methods."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from evomerge.errors import CandidateError
from evomerge.merging.group import Group

# Below this a sum of weights counts as 0 (mergekit's limit).
NOTHING = 1e-8


def weighted_sum(group: Group, tensors: Sequence[Tensor], weights: Sequence[float]) -> Tensor:
    """Sum of w_i x_i in the order given, flat, newly allocated; a source of weight 0 is left out."""
    out: Tensor | None = None
    for tensor, weight in zip(tensors, weights, strict=True):
        if weight == 0.0:
            continue
        if out is None:
            out = tensor * weight
        else:
            out += tensor * weight
    return torch.zeros(group.elements, dtype=group.dtype, device=group.device) if out is None else out


def check_weights(method: str, weights: Sequence[float]) -> float:
    """The sum of weights that are normalised.

    Raises:
        CandidateError: the sum is 0, so that there is no average.
    """
    total = math.fsum(weights)
    if abs(total) < NOTHING:
        raise CandidateError(f"{method}: the weights {list(weights)} sum to 0, so they cannot be normalised; "
                             "set `normalize: false` or other weights")  # fmt: skip
    return total
