"""Full scores from answers to a part of the items, with and without an item-response model."""

from __future__ import annotations

import numpy as np

from evomerge.study.estimator.ability import Prior, abilities
from evomerge.study.estimator.model import ItemResponse, Numbers

P_IRT, GP_IRT, DIFFERENCE = "p-IRT", "gp-IRT", "difference"
KINDS = (P_IRT, GP_IRT, DIFFERENCE)


def means(answers: Numbers, weights: Numbers) -> Numbers:
    """Weighted means of the answers that are there (NaN: not seen), shape (candidates,).

    Args:
        answers: Shape (candidates, items).
        weights: What each item counts in the score, shape (items,).
    """
    seen = ~np.isnan(answers)
    found: Numbers = (np.where(seen, answers, 0.0) * weights).sum(axis=1) / (seen * weights).sum(axis=1)
    return found


def paired(answers: Numbers, weights: Numbers, anchor: Numbers) -> Numbers:
    """An anchor's score, and each one's difference to it on the items that were seen, shape (candidates,).

    Args:
        anchor: Answers of a candidate that has all items, shape (items,).
    """
    seen = ~np.isnan(answers)
    full = float((anchor * weights).sum() / weights.sum())
    return full + means(answers - np.where(seen, anchor, np.nan), weights)


def predicted(model: ItemResponse, answers: Numbers, weights: Numbers, prior: Prior) -> dict[str, Numbers]:
    """Estimates that use a model, by kind, each of shape (candidates,).

    "p-IRT" puts the probability of a right answer where an item was not seen; "gp-IRT" is halfway between that and the
    plain mean (Maia Polo et al., tinyBenchmarks, arXiv 2402.14992; one half as in MERGE^3). "difference" is the mean of
    the probabilities over all items, and the mean by which answers differed from them on those that were seen: survey
    sampling's difference estimator, which on random items corrects what a model gets wrong everywhere (Särndal,
    Swensson and Wretman, Model Assisted Survey Sampling, 1992, section 6.3).
    """
    total = weights.sum()
    seen = ~np.isnan(answers)
    plain = means(answers, weights)
    p = model.probabilities(abilities(model, answers, prior))
    filled = (np.where(seen, answers, p) * weights).sum(axis=1) / total
    difference = (p * weights).sum(axis=1) / total + means(np.where(seen, answers - p, np.nan), weights)
    return {P_IRT: filled, GP_IRT: 0.5 * (filled + plain), DIFFERENCE: difference}
