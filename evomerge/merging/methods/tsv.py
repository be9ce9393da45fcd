"""Merges of singular vectors.

TSV-Merge (Gargiulo et al., arXiv 2412.00081) and Iso-C (Marczak et al., arXiv 2502.04959).
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from evomerge.merging.group import Group
from evomerge.merging.methods.matrices import computed_alike, leading, orthogonalized, singular


def tsv(group: Group, *, weight: Sequence[float], share: float, lambda_: float) -> Tensor:
    """W_0 + lambda U_o S V_o^T: task vectors cut to their first singular vectors, which are made orthogonal.

    With d_i = U_i S_i V_i^T, cut to k vectors each: U = [U_1 ... U_n], S = diag(w_1 S_1, ..., w_n S_n),
    V = [V_1 ... V_n]; U_o and V_o are the nearest matrices of orthonormal columns, so that the tasks' directions do not
    add up where they overlap. Tensors that are no matrices (norms, biases), and those with a row for each token
    (embeddings, heads), get the mean: W_0 + lambda / n sum w_i d_i.

    Args:
        weight: Factor of each source's singular values.
        share: Of each task vector's singular vectors that is kept; 0 takes 1/n of them, as the paper does.
    """
    used = [i for i, w in enumerate(weight) if w != 0.0]
    deltas = _matrices(group, used)
    if deltas is None:
        return _averaged(group, weight, lambda_)
    count = min(group.shape)
    keep = max(1, int(count / len(used) if share == 0.0 else share * count))
    with computed_alike():
        parts = [leading(delta, keep) for delta in deltas]
        left = orthogonalized(torch.cat([u for u, _, _ in parts], dim=1))
        right = orthogonalized(torch.cat([v for _, _, v in parts], dim=1))
        values = torch.cat([weight[i] * s for i, (_, s, _) in zip(used, parts, strict=True)])
        merged = (left * (lambda_ * values)) @ right.t()
    return group.put(merged, on_base=True)


def iso_c(group: Group, *, weight: Sequence[float], lambda_: float) -> Tensor:
    """W_0 + lambda s U V^T, with sum w_i d_i = U S V^T and s the mean of its singular values.

    The sum of task vectors keeps its directions, and each gets the same strength. Directions that the sum does not have
    (adapters of low rank) are left out of U, V and the mean. Other tensors than the layers' matrices get the mean, as
    in `tsv`.
    """
    used = [i for i, w in enumerate(weight) if w != 0.0]
    deltas = _matrices(group, used)
    if deltas is None:
        return _averaged(group, weight, lambda_)
    total = torch.zeros(group.shape, dtype=torch.float64, device=group.device)
    for i, delta in zip(used, deltas, strict=True):
        total += weight[i] * delta.double()
    with computed_alike():
        u, s, v = singular(total)
        merged = (u * (lambda_ * float(s.mean()) if len(s) else 0.0)) @ v.t()
    return group.put(merged, on_base=True)


def _matrices(group: Group, used: Sequence[int]) -> list[Tensor] | None:
    """The task vectors as matrices; None where they are none, or hold what cannot be decomposed (NaN, infinity)."""
    if len(group.shape) != 2 or group.by_token or not group.elements or not used:
        return None
    found = [group.delta(i, 0, group.elements).reshape(group.shape) for i in used]
    return found if all(bool(torch.isfinite(d).all()) for d in found) else None


def _averaged(group: Group, weight: Sequence[float], lambda_: float) -> Tensor:
    count = sum(w != 0.0 for w in weight)
    return group.add([lambda_ * w / count for w in weight] if count else [0.0] * len(weight))
