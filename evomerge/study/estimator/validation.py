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
        order: Share of pairs that come in the right order, by kind: of the nearer half, the others being easy.
        complete: Number of complete candidates that it rests on.
        why: Why nothing could be compared, in words.
    """

    errors: Mapping[str, float]
    order: Mapping[str, float]
    complete: int
    why: str | None = None

    @classmethod
    def none(cls, complete: int, why: str) -> Choice:
        """Plain means, for a reason."""
        return cls({}, {}, complete, why)

    @property
    def kind(self) -> str | None:
        """The model's estimate with the least error among those that order as well as what is told without one.

        None where there is none, or its error is not less than that of both plain ones.
        """
        fit_to_rank = [kind for kind in KINDS if kind in self.order and self.order[kind] >= self.order[PAIRED]]
        best = min(fit_to_rank, key=lambda kind: self.errors[kind], default=None)
        plain = min(self.errors.get(MEAN, 0.0), self.errors.get(PAIRED, 0.0))
        return best if best is not None and self.errors[best] < plain else None

    def __str__(self) -> str:
        plain = "estimates: plain means, by their difference to the best"
        if not self.errors:
            return f"{plain} ({self.why})"
        shown = self.kind or min(KINDS, key=lambda kind: self.errors[kind])
        figures = (
            f"rmse {_short(self.errors[shown])} against {_short(self.errors[PAIRED])} of the {PAIRED} and "
            f"{_short(self.errors[MEAN])} of the {MEAN}, {_percent(self.order[shown])} of near pairs in order against "
            f"{_percent(self.order[PAIRED])}, {self.complete} complete candidates"
        )
        if self.kind is None:
            return f"{plain}; the item-response model ({shown}) is no better: {figures}"
        return f"estimates: the item-response model ({shown}), {figures}"


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
        return Choice.none(rows, few)
    every = np.concatenate([sources, complete])
    if not ((every >= 0) & (every <= 1)).all():
        return Choice.none(rows, "results that are not from 0 to 1")
    truth = means(complete, weights)
    kinds = (MEAN, PAIRED, *KINDS)
    squared: dict[str, list[float]] = {kind: [] for kind in kinds}
    apart: list[float] = []
    ordered: dict[str, list[float]] = {kind: [] for kind in kinds}
    for fold in range(FOLDS):
        out = np.arange(rows) % FOLDS == fold
        model = fit(np.concatenate([sources, complete[~out]]))
        prior = Prior.population(model)
        first = int(np.argmax(truth[~out]))
        anchor, best = complete[~out][first], truth[~out][first]
        # An optimizer is told estimates beside the score of the best.
        true = np.append(truth[out], best)
        one, other = np.triu_indices(len(true), 1)
        for end in looks:
            seen = np.where(np.arange(count) < end, complete[out], np.nan)
            found = {MEAN: means(seen, weights), PAIRED: paired(seen, weights, anchor)}
            apart += np.abs(true[one] - true[other]).tolist()
            for kind, values in (found | predicted(model, seen, weights, prior)).items():
                squared[kind] += ((values - truth[out]) ** 2).tolist()
                told = np.append(values, best)
                agree = np.sign(told[one] - told[other]) * np.sign(true[one] - true[other])
                ordered[kind] += (0.5 + 0.5 * agree).tolist()
    distance = np.array(apart)
    near = (distance > 0) & (distance <= np.median(distance))
    order = {kind: float(np.array(shares)[near].mean()) if near.any() else 0.5 for kind, shares in ordered.items()}
    return Choice({kind: math.sqrt(float(np.mean(errors))) for kind, errors in squared.items()}, order, rows)


def _short(error: float) -> str:
    """.0123"""
    return f"{error:.4f}".removeprefix("0")


def _percent(share: float) -> str:
    return f"{100 * share:.1f} %"
