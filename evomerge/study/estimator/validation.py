"""Which estimate of full scores to believe: the one with the least error on candidates whose full score is known."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from evomerge.study.estimator.ability import Prior
from evomerge.study.estimator.estimates import KINDS, means, paired, predicted
from evomerge.study.estimator.model import Numbers, fit

MEAN, PAIRED = "plain mean", "paired difference"
FOLDS = 4
# Complete candidates below which a model is not asked.
FEWEST = 8


@dataclass(frozen=True)
class Choice:
    """What was chosen, and by how much.

    Attributes:
        errors: Root mean squared error of full scores, by kind of estimate.
        complete: Number of complete candidates that it rests on.
        why: Why nothing could be compared, in words.
    """

    errors: Mapping[str, float]
    complete: int
    why: str | None = None

    @property
    def kind(self) -> str | None:
        """The model's estimate with the least error; None where it is not less than that of both plain ones."""
        if not self.errors:
            return None
        best = min(KINDS, key=lambda kind: self.errors[kind])
        return best if self.errors[best] < min(self.errors[MEAN], self.errors[PAIRED]) else None

    def __str__(self) -> str:
        if not self.errors:
            return f"estimates: plain means, by their difference to the best ({self.why})"
        best = min(KINDS, key=lambda kind: self.errors[kind])
        plain = " and ".join(f"{_short(self.errors[kind])} of the {kind}" for kind in (PAIRED, MEAN))
        over = f"{self.complete} complete candidates"
        if self.kind is None:
            return (
                "estimates: plain means, by their difference to the best; the item-response model is no better, rmse "
                f"{_short(self.errors[best])} against {plain}, {over}"
            )
        return f"estimates: the item-response model ({best}), rmse {_short(self.errors[best])} against {plain}, {over}"


def compare(sources: Numbers, complete: Numbers, weights: Numbers, ends: Sequence[int]) -> Choice:
    """Cross-validated errors of estimates of full scores.

    A part of the complete candidates is left out, the model is fitted to the others and the sources, and what is left
    out is estimated from as many of the first items as a candidate that stops has.

    Args:
        sources: Answers of base, sources and uniform merge, shape (sources, items), in the order of the draw.
        complete: Answers of the complete candidates, shape (candidates, items).
        weights: What each item counts in the score, shape (items,).
        ends: Numbers of items after which candidates may stop; all of them is not counted.
    """
    rows, count = complete.shape
    looks = [end for end in ends if end < count]
    if rows < FEWEST or not looks:
        few = f"{rows} complete candidates, at least {FEWEST} are needed" if looks else "nobody stops early"
        return Choice({}, rows, few)
    every = np.concatenate([sources, complete])
    if not ((every >= 0) & (every <= 1)).all():
        return Choice({}, rows, "results that are not from 0 to 1")
    truth = means(complete, weights)
    squared: dict[str, list[float]] = {kind: [] for kind in (MEAN, PAIRED, *KINDS)}
    for fold in range(FOLDS):
        out = np.arange(rows) % FOLDS == fold
        model = fit(np.concatenate([sources, complete[~out]]))
        prior = Prior.population(model)
        anchor = complete[~out][int(np.argmax(truth[~out]))]
        for end in looks:
            seen = np.where(np.arange(count) < end, complete[out], np.nan)
            found = {MEAN: means(seen, weights), PAIRED: paired(seen, weights, anchor)}
            for kind, values in (found | predicted(model, seen, weights, prior)).items():
                squared[kind] += ((values - truth[out]) ** 2).tolist()
    return Choice({kind: math.sqrt(float(np.mean(errors))) for kind, errors in squared.items()}, rows)


def _short(error: float) -> str:
    """.0123"""
    return f"{error:.4f}".removeprefix("0")
