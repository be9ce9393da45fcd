"""Model Stock: between base and average, by the angle of the task vectors (Jang et al., arXiv 2403.19522, eq. 5)."""

from __future__ import annotations

import math
from itertools import combinations

import torch
from torch import Tensor

from evomerge.merging.group import Group
from evomerge.merging.methods.weights import finite

# Where the denominator is less than this there is no finite ratio: the base stays (mergekit's limit).
SINGULAR = 1e-6


def model_stock(group: Group, *, filter_wise: bool) -> Tensor:
    """t * mean W_i + (1 - t) W_0, t = N c / (1 + (N - 1) c), c the mean cosine over pairs of task vectors.

    A task vector of zeros counts as perpendicular to any other.

    Args:
        filter_wise: One t for each vector along the last dimension (a row of a matrix) instead of the whole tensor.
    """
    pairs = list(combinations(range(group.n), 2))
    if filter_wise:
        rows = group.by_last()
        gram = rows.row_delta_gram()
        norms = gram.diagonal(dim1=1, dim2=2).sqrt()
        total = torch.zeros(rows.rows, dtype=torch.float64, device=group.device)
        for i, j in pairs:
            product = norms[:, i] * norms[:, j]
            total += torch.where(product == 0.0, 0.0, gram[:, i, j] / product).clamp(-1.0, 1.0)
        cosine = total / len(pairs)
        below = 1.0 + (group.n - 1) * cosine
        shares = torch.where(below.abs() < SINGULAR, 0.0, cosine / below)
        return rows.add([shares] * group.n)
    products = group.delta_gram()
    if not finite(products):
        return group.add([1.0] * group.n)  # so that it shows
    norm = [math.sqrt(products[i][i]) for i in range(group.n)]
    cosines = [
        max(-1.0, min(1.0, products[i][j] / (norm[i] * norm[j]))) if norm[i] and norm[j] else 0.0 for i, j in pairs
    ]
    c = math.fsum(cosines) / len(pairs)
    denominator = 1.0 + (group.n - 1) * c
    return group.add([0.0 if abs(denominator) < SINGULAR else c / denominator] * group.n)
