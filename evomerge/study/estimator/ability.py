"""The ability of a candidate from its few answers, the items being known: the most probable one under a prior."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from evomerge.study.estimator.model import ItemResponse, Numbers, product, sigmoid

STEPS, LONGEST, ENOUGH = 30, 2.0, 1e-8
# Of a population that does not differ in some direction.
LEAST_VARIANCE = 1e-3


@dataclass(frozen=True)
class Prior:
    """Where abilities lie: θ = centre + basisᵀ λ, λ normal with variance 1 / ridge.

    Attributes:
        centre: Shape (dimensions,).
        basis: Shape (number of λ, dimensions).
    """

    centre: Numbers
    basis: Numbers
    ridge: float = 1.0

    @classmethod
    def population(cls, model: ItemResponse, ridge: float = 1.0) -> Prior:
        """Free abilities, drawn towards the mean of those that the model was fitted to, by their covariance."""
        found = model.abilities
        off = found - found.mean(axis=0)
        covariance = product(off.T, off.T) / max(1, len(found) - 1)
        lower = np.linalg.cholesky(covariance + LEAST_VARIANCE * np.eye(len(covariance)))
        return cls(found.mean(axis=0), np.array(lower.T, dtype=np.float64), ridge)

    @classmethod
    def combinations(cls, model: ItemResponse, sources: Sequence[int], ridge: float = 1.0) -> Prior:
        """θ = Σ λ_k θ_k over the sources, λ drawn towards equal shares (mp-IRT of MERGE^3, arXiv 2502.10436).

        Args:
            sources: Their rows among the responders.
        """
        basis = model.abilities[list(sources)]
        return cls(basis.mean(axis=0), basis, ridge)


def abilities(model: ItemResponse, answers: Numbers, prior: Prior) -> Numbers:
    """Of some candidates, by Newton's steps on the penalised likelihood, which has one maximum.

    Args:
        answers: From 0 to 1, NaN where an item was not seen, shape (candidates, items).

    Returns:
        Shape (candidates, dimensions).
    """
    seen = ~np.isnan(answers)
    right = np.where(seen, answers, 0.0)
    slopes = product(model.discriminations, prior.basis)
    fixed = product(prior.centre[None], model.discriminations)[0] - model.difficulties
    count = len(prior.basis)
    squares = (slopes[:, :, None] * slopes[:, None, :]).reshape(len(slopes), count * count)
    found = np.zeros((len(answers), count))
    for _ in range(STEPS):
        p = sigmoid(product(found, slopes) + fixed)
        slope = np.einsum("cn,nk->ck", seen * (p - right), slopes) + prior.ridge * found
        curve = np.einsum("cn,nk->ck", seen * p * (1.0 - p), squares).reshape(-1, count, count)
        step = np.linalg.solve(curve + prior.ridge * np.eye(count), slope[:, :, None])[:, :, 0]
        length = np.abs(step).max(axis=1, keepdims=True)
        found = found - step * np.minimum(1.0, LONGEST / np.maximum(length, ENOUGH))
        if float(length.max(initial=0.0)) < ENOUGH:
            break
    # product(...) has the λ in columns: θ = centre + λ basis.
    return prior.centre + product(found, prior.basis.T)
