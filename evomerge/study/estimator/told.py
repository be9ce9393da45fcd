"""What candidates that stopped would score on all items, as an optimizer is told it."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import numpy as np

from evomerge.evaluation.draw import Draw
from evomerge.score import Score, State, Trial
from evomerge.study.candidates import best
from evomerge.study.estimator.ability import Prior
from evomerge.study.estimator.estimates import predicted
from evomerge.study.estimator.model import ItemResponse, Numbers, fit
from evomerge.study.estimator.validation import FEWEST, PAIRED, Choice, compare

# Complete candidates that a model is fitted to, the latest: more take longer and are further from those to come.
LATEST = 48
# Kinds of estimates are compared again when there are so many times as many complete candidates.
AGAIN = 1.25


def differences(draw: Draw, generation: Sequence[Trial], earlier: Sequence[Trial]) -> dict[int, float]:
    """By place in the generation: the score of a candidate that has all items, and the difference to it on those seen.

    That is the generation's best, or else the best so far. All that is known of those that were stopped is how they did
    on the first items, which may be easy ones.

    Args:
        draw: The items in the order in which the generation had them.
    """
    stopped = {i: t for i, t in enumerate(generation) if t.state is State.PRUNED}
    anchor = _anchor(generation, earlier)
    shifts = dict.fromkeys({t.seen or 0 for t in stopped.values()}, 0.0)
    if anchor is not None and anchor.score is not None:
        shifts = {n: anchor.score.value - draw.estimate(anchor.score, n) for n in shifts}
    found = {}
    for i, trial in stopped.items():
        assert trial.estimate is not None
        found[i] = trial.estimate + shifts[trial.seen or 0]
    return found


def _anchor(generation: Sequence[Trial], earlier: Sequence[Trial]) -> Trial | None:
    """Who has all items and is compared with: the generation's best, or else the best so far."""
    return next(iter([*best(list(generation)), *best(list(earlier))]), None)


class Estimates:
    """Estimates by an item-response model, where they have proved to be better than plain ones.

    What they are depends on the trials and their order alone, so that a search that goes on in another process is told
    the same.

    Args:
        ends: Numbers of items after which candidates may stop.
        sources: Scores of base, sources and uniform merge on the search items.

    Attributes:
        choice: What was used last, and why.
    """

    def __init__(self, draw: Draw, ends: Sequence[int], sources: Sequence[Score]) -> None:
        self._draw = draw
        self._ends = tuple(ends)
        self._sources = np.array([draw.results(s, 0, len(draw)) for s in sources]).reshape(-1, len(draw))
        self._rows: dict[int, Numbers] = {}
        self._model: tuple[tuple[int, ...], ItemResponse] | None = None
        self._compared: dict[int, Choice] = {}
        self.choice = Choice.none(0, "no candidate was stopped early")

    def of(self, generation: Sequence[Trial], earlier: Sequence[Trial]) -> dict[int, float] | None:
        """By place in the generation, of those that were stopped; None where plain ones are no worse."""
        # Equal candidates once: one that is left out must not be among those fitted to.
        every = [t for t in (*earlier, *generation) if t.score is not None]
        first = {t.attributes.get("recipe_hash", t.number): t for t in every[::-1]}
        complete = list(first.values())[::-1]
        self.choice = self._choice(complete)
        kind = self.choice.kind
        stopped = {i: t for i, t in enumerate(generation) if t.state is State.PRUNED}
        if kind is None or not stopped:
            return None
        answers = np.full((len(stopped), len(self._draw)), np.nan)
        for row, trial in zip(answers, stopped.values(), strict=True):
            assert trial.part is not None
            row[:] = self._draw.known(trial.part)
        if not ((answers >= 0) & (answers <= 1) | np.isnan(answers)).all():
            self.choice = Choice.none(len(complete), "results that are not from 0 to 1")
            return None
        model = self._fitted(complete[-LATEST:])
        values = predicted(model, answers, self._draw.weights, Prior.population(model))[kind]
        return dict(zip(stopped, values.tolist(), strict=True))

    def _choice(self, complete: Sequence[Trial]) -> Choice:
        """The kind of estimate, chosen when there were as many as the last step of a ladder."""
        step = FEWEST
        while (higher := max(step + 1, round(step * AGAIN))) <= len(complete):
            step = higher
        step = min(step, len(complete))
        if step not in self._compared:
            table = self._table(complete[:step][-LATEST:])
            self._compared = {step: compare(self._sources, table, self._draw.weights, self._ends)}
        return self._compared[step]

    def _fitted(self, complete: Sequence[Trial]) -> ItemResponse:
        numbers = tuple(t.number for t in complete)
        if self._model is None or self._model[0] != numbers:
            self._model = (numbers, fit(np.concatenate([self._sources, self._table(complete)])))
            self._rows = {n: self._rows[n] for n in numbers}
        return self._model[1]

    def _table(self, complete: Sequence[Trial]) -> Numbers:
        for trial in complete:
            if trial.number not in self._rows and trial.score is not None:
                self._rows[trial.number] = self._draw.results(trial.score, 0, len(self._draw))
        return np.array([self._rows[t.number] for t in complete]).reshape(-1, len(self._draw))


def standard_errors(
    draw: Draw, estimates: Estimates | None, generation: Sequence[Trial], earlier: Sequence[Trial]
) -> dict[int, float]:
    """By place in the generation: how far off a stopped candidate's estimate may be.

    The standard error of the mean difference to the best that has all items, of items drawn without replacement; where
    an item-response model's estimates are told, times the ratio of their cross-validated error to that of differences.
    """
    anchor = _anchor(generation, earlier)
    ratio = 1.0
    if estimates is not None and (kind := estimates.choice.kind) is not None:
        ratio = estimates.choice.errors[kind] / estimates.choice.errors[PAIRED]
    beside = None if anchor is None or anchor.score is None else draw.results(anchor.score, 0, len(draw))
    found = {}
    for i, trial in enumerate(generation):
        if trial.state is not State.PRUNED or trial.part is None or not trial.seen:
            continue
        n = trial.seen
        results = draw.results(trial.part, 0, n)
        told = results if beside is None else results - beside[:n]
        weights = draw.weights[:n] / draw.weights[:n].mean()
        # That few items show no difference to the best may be chance: as if one in n more did.
        variance = max(_variance(told, weights), _variance(results, weights) / n)
        found[i] = ratio * math.sqrt(variance * (1 - n / len(draw)) / n)
    return found


def _variance(results: Numbers, weights: Numbers) -> float:
    """Of what items contribute to a weighted mean (a ratio estimator's: Cochran, Sampling Techniques, 1977, ch. 6)."""
    apart = weights * (results - float(np.average(results, weights=weights)))
    return float((apart**2).sum()) / max(len(results) - 1, 1)


def worth(
    draw: Draw, estimates: Estimates | None, generation: Sequence[Trial], earlier: Sequence[Trial]
) -> Mapping[int, float]:
    """By place in the generation, what those that were stopped are worth.

    Args:
        draw: The items in the order in which the generation had them.
    """
    found = estimates.of(generation, earlier) if estimates is not None else None
    return differences(draw, generation, earlier) if found is None else found
