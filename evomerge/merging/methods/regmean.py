"""RegMean: regression mean of linear layers (Jin et al., arXiv 2212.09849)."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from evomerge.merging.group import Group
from evomerge.merging.methods.fisher import shares
from evomerge.merging.methods.matrices import ROUNDING, computed_alike


def regmean(group: Group, *, weight: Sequence[float], alpha: float) -> Tensor:
    """The layer that is nearest to each source's layer on that source's own inputs, in least squares.

    For y = W x: W = (sum w_i W_i G_i) (sum w_i G_i)^-1, with G_i = mean of x x^T over the inputs of source i
    (their closed form, transposed; means, so that a longer text does not count more). As they do, G_i's elements off
    the diagonal are multiplied by alpha. Tensors without statistics (embeddings, norms, biases, fused experts) are
    averaged: sum w_i W_i / sum w_i.

    Args:
        weight: Of each source, on top of its inputs; not negative.
        alpha: 1: least squares; 0: each input dimension by itself.

    Raises:
        CandidateError: all weights are 0.
    """
    plain = shares("regmean", weight)
    if not group.statistics or group.elements == 0 or len(group.shape) != 2:
        return group.combine(plain)
    # [1, in, in]: the weight is stored as [in, out], and G stands on its left.
    across = group.statistics[0].dim() == 3
    size = group.statistics[0].shape[-1]
    grams = torch.zeros(size, size, dtype=torch.float64, device=group.device)
    products = torch.zeros(*group.shape, dtype=torch.float64, device=group.device)
    if across:
        products = products.t()
    with computed_alike():
        for i, w in enumerate(weight):
            if w == 0.0:
                continue
            gram = group.statistics[i].reshape(size, size).double()
            gram = alpha * gram + (1.0 - alpha) * torch.diag(gram.diagonal())
            matrix = group.values(i, 0, group.elements).double().reshape(group.shape)
            grams += w * gram
            products += w * ((matrix.t() if across else matrix) @ gram)
        merged = _solved(products, grams, group, plain, across)
    return group.put((merged.t() if across else merged).contiguous())


def _solved(products: Tensor, grams: Tensor, group: Group, plain: Sequence[float], across: bool) -> Tensor:
    """products grams^-1. Where grams is singular (inputs that never vary) the solution nearest to the average."""
    factor, info = torch.linalg.cholesky_ex(grams)
    scales = factor.diagonal().square()
    # What is left of a singular matrix after float32 is positive too: as small as rounding.
    if int(info) == 0 and bool(scales.min() > scales.max() * _singular(grams)):
        solved: Tensor = torch.cholesky_solve(products.t(), factor).t()
        return solved
    if not bool(torch.isfinite(grams).all()):
        return products * torch.nan
    average = torch.zeros_like(products)
    for i, w in enumerate(plain):
        if w != 0.0:
            matrix = group.values(i, 0, group.elements).double().reshape(group.shape)
            average += w * (matrix.t() if across else matrix)
    values, vectors = torch.linalg.eigh(grams)
    alive = values > values[-1] * _singular(grams)
    inverse = torch.where(alive, 1.0 / torch.where(alive, values, 1.0), 0.0)
    nearest: Tensor = average + ((products - average @ grams) @ vectors * inverse) @ vectors.t()
    return nearest


def _singular(grams: Tensor) -> float:
    """Eigenvalues below this share of the largest are rounding of the float32 that Gram matrices are kept in."""
    return len(grams) * ROUNDING
