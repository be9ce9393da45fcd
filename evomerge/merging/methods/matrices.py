"""Linear algebra on whole tensors: in float64, and on a CPU by one thread, so that a result is the same everywhere."""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor

# Singular values below this share of the largest are rounding of float32 inputs, not directions of the matrix.
ROUNDING = float(torch.finfo(torch.float32).eps)


@contextmanager
def computed_alike() -> Iterator[None]:
    """One torch thread: a library splits sums between threads, and they come out different in the last places."""
    before = torch.get_num_threads()
    if before == 1:
        yield
        return
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def singular(matrix: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Singular vectors and values of a matrix, without those that are rounding.

    Returns:
        U [rows, k], s [k] (falling), V [columns, k]; float64.
    """
    u, s, vh = torch.linalg.svd(matrix.double(), full_matrices=False)
    k = int((s > s[0] * _cut(matrix)).sum())
    return u[:, :k], s[:k], vh[:k].t()


def leading(matrix: Tensor, keep: int) -> tuple[Tensor, Tensor, Tensor]:
    """The `keep` largest singular values of a matrix with their vectors, as `singular` has them, but faster.

    From the eigenvectors of the dot products of its rows, or columns where they are fewer: exact to rounding for large
    singular values, less so for those near the cut.
    """
    wide = matrix.double() if matrix.shape[0] <= matrix.shape[1] else matrix.double().t()
    squares, vectors = torch.linalg.eigh(wide @ wide.t())
    squares, vectors = squares.flip(0).clamp_(min=0.0)[:keep], vectors.flip(1)[:, :keep]
    k = int((squares.sqrt() > squares[0].sqrt() * _cut(matrix)).sum())
    values, one = squares[:k].sqrt(), vectors[:, :k]
    other = wide.t() @ one / values
    return (one, values, other) if wide.shape == matrix.shape else (other, values, one)


def _cut(matrix: Tensor) -> float:
    return ROUNDING * math.sqrt(max(matrix.shape))


def orthogonalized(vectors: Tensor) -> Tensor:
    """The nearest matrix with orthonormal columns (orthogonal Procrustes): P Q^T of the decomposition P D Q^T.

    By the eigenvalues of the columns' dot products: X (X^T X)^-1/2. Where columns depend on each other, the directions
    that they lack are left out (two equal columns become one direction, shared).

    Args:
        vectors: [rows, k].
    """
    if not vectors.shape[1]:
        return vectors
    values, basis = torch.linalg.eigh(vectors.t() @ vectors)
    alive = values > values[-1] * ROUNDING
    inverse = torch.where(alive, 1.0 / torch.where(alive, values, 1.0).sqrt(), 0.0)
    found: Tensor = vectors @ (basis * inverse) @ basis.t()
    return found
