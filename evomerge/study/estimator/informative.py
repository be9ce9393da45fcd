"""Few items that tell much: chosen by an item-response model's information, or to stand for all of them."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from evomerge.study.estimator.model import ItemResponse, Numbers

Indices = npt.NDArray[np.intp]


def informative(model: ItemResponse, count: int, at: Numbers | None = None) -> Indices:
    """Items that together tell most of abilities: greedy, D-optimal.

    Each next item is the one that adds most to the mean over abilities of log det(1 + Σ p (1 − p) a aᵀ), the Fisher
    information with the prior's (Chaloner and Verdinelli, Bayesian Experimental Design, Statistical Science 1995; the
    gain shrinks as items are added, so that the greedy choice is within 1 − 1/e of the best).

    Args:
        at: Abilities that candidates may have, shape (any, dimensions); default those that the model was fitted to.

    Returns:
        Indices, the most informative item first.
    """
    at = model.abilities if at is None else at
    p = model.probabilities(at)
    variance = p * (1.0 - p)
    a = model.discriminations
    inverse = np.repeat(np.eye(a.shape[1])[None], len(at), axis=0)
    left = np.ones(model.items, dtype=bool)
    chosen = []
    for _ in range(min(count, model.items)):
        # By the matrix determinant lemma one more item adds log(1 + v aᵀ M⁻¹ a).
        half = np.einsum("nd,rde->rne", a, inverse)
        gain = np.log1p(variance * (half * a).sum(axis=2)).mean(axis=0)
        best = int(np.argmax(np.where(left, gain, -np.inf)))
        left[best] = False
        chosen.append(best)
        side = half[:, best, :]
        scale = variance[:, best] / (1.0 + variance[:, best] * (side * a[best]).sum(axis=1))
        inverse = inverse - scale[:, None, None] * side[:, :, None] * side[:, None, :]
    return np.array(chosen, dtype=np.intp)


def anchors(model: ItemResponse, count: int, weights: Numbers, seed: int = 0) -> tuple[Indices, Numbers]:
    """Items that stand for those near them: k-means over (a, b), of each cluster the item nearest to its middle.

    The anchor points of tinyBenchmarks (arXiv 2402.14992, section 3.2), with an item-response model's embedding.

    Returns:
        Indices of at most `count` items, and of each the summed weight of its cluster.
    """
    from scipy.cluster.vq import kmeans2

    points = np.concatenate([model.discriminations, model.difficulties[:, None]], axis=1)
    middles, label = kmeans2(points, min(count, model.items), minit="++", rng=np.random.default_rng(seed))
    chosen, mass = [], []
    for cluster in range(len(middles)):
        members = np.flatnonzero(label == cluster)
        if len(members):
            off = ((points[members] - middles[cluster]) ** 2).sum(axis=1)
            chosen.append(int(members[np.argmin(off)]))
            mass.append(float(weights[members].sum()))
    return np.array(chosen, dtype=np.intp), np.array(mass)
