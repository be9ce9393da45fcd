"""What is recorded of a candidate, and which of them are best."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from types import MappingProxyType
from typing import Any

import numpy as np

from evomerge.errors import EvoMergeError
from evomerge.evaluation.goals import DEPTH
from evomerge.optimizers.protocol import Behaviour
from evomerge.recipe import Path, Recipe
from evomerge.score import COST, RACE, VIOLATION, Score, State, Trial, Value
from evomerge.study.goals import Goals
from evomerge.study.job import Answer
from evomerge.study.scoring import Underway
from evomerge.study.store import Study

# An attribute of a trial that is a path: the evaluations of layers that it took.
LAYERS = "layer_evaluations"


def attributes_of(recipe: Recipe, recipe_hash: str) -> dict[str, Any]:
    """What is known of a candidate before it is scored."""
    path = Path.read(recipe)
    return {"recipe_hash": recipe_hash} | ({DEPTH: len(path.hops)} if path is not None else {})


def record(
    study: Study,
    number: int,
    params: Mapping[str, Value],
    attributes: Mapping[str, Any],
    answer: Answer,
    goals: Goals,
    more: Mapping[str, Any] = MappingProxyType({}),
) -> Trial:
    """Record how a candidate ended: with a score on all items, or a reason why there is none.

    Args:
        attributes: What was recorded of it before.
        goals: What the search is after.
        more: Attributes to keep with it.
    """
    if answer.score is None:
        reason = answer.reason or "no reason given"
        study.fail(number, reason, answer.seconds, more)
        return Trial(number, params, State.FAIL, None, reason, answer.seconds, {**attributes, **more})
    more = {**more, **layers(answer.layers)}
    if goals.limits:
        more |= {VIOLATION: goals.violation(answer.score, {**attributes, **more})}
    attributes = {**attributes, **more}
    study.complete(number, answer.score, answer.seconds, goals.recorded(answer.score, attributes), more)
    return Trial(number, params, State.COMPLETE, answer.score, None, answer.seconds, attributes)


def record_end(
    study: Study, one: Underway, answer: Answer, goals: Goals, seen: int | None, more: Mapping[str, Any] | None = None
) -> Trial:
    """Record how a candidate ended that was scored block by block: with all items, or with a reason why not.

    Args:
        answer: Its score on all items, or the reason.
        seen: How many items it had; None where nothing is raced.
        more: Attributes to keep with it.
    """
    cost = {COST: one.charged} if seen is None else {RACE: {"seen": seen, COST: one.charged}}
    answer = replace(answer, seconds=one.seconds, layers=one.layers)
    kept = {**(more or {}), **cost}
    return record(study, one.ask.number, one.ask.params, one.attributes, answer, goals, kept)


def record_stop(
    study: Study, one: Underway, part: Score, why: str, seen: int, estimate: float,
    more: Mapping[str, Any] | None = None,
) -> Trial:  # fmt: skip
    """Record that a candidate was stopped in its race, with the result on the items that it had.

    Args:
        why: "raced out" or "settled".
        seen: How many items it had.
        estimate: Its score on them.
        more: Attributes to keep with it.
    """
    n = one.ask.number
    race = {"stopped": why, "seen": seen, "estimate": estimate, COST: one.charged}
    kept = {**(more or {}), RACE: race, **layers(one.layers)}
    study.prune(n, part, kept, one.seconds, seen, estimate)
    return Trial(n, one.ask.params, State.PRUNED, None, None, one.seconds, one.attributes | kept, part)


def behaviour(trial: Trial) -> Behaviour | None:
    """What a search that keeps different ones is told of a candidate; None where it failed."""
    if trial.score is None:
        return None
    tasks = trial.score.weighted
    return Behaviour(tuple(t.value for t in tasks), np.concatenate([t.results for t in tasks]))


def layers(counts: tuple[int, int] | None) -> dict[str, Any]:
    """The attribute that says how many evaluations of layers a path took."""
    return {} if counts is None else {LAYERS: dict(zip(("asked", "run"), counts, strict=True))}


def layer_evaluations(trials: list[Trial]) -> tuple[int, int] | None:
    """(asked, run) over all candidates that are paths: the rest was known from earlier candidates. None without any."""
    counted = [t.attributes[LAYERS] for t in trials if LAYERS in t.attributes]
    return (sum(c["asked"] for c in counted), sum(c["run"] for c in counted)) if counted else None


def best(trials: list[Trial]) -> list[Trial]:
    """The complete candidates, best first; the earlier one first among equals.

    Those that keep all constraints come before all others, of which those that miss them least come first.
    """
    complete = [t for t in trials if t.score is not None]
    return sorted(complete, key=_rank)


def _rank(trial: Trial) -> tuple[float, float, int]:
    return trial.violation, -(trial.value or 0.0), trial.number


class Spent:
    """What candidates took of the budget, all of them and those since the best, kept up as they come."""

    def __init__(self) -> None:
        self.units = 0.0
        self.since_best = 0.0
        self._best: tuple[float, float, int] | None = None

    def add(self, trial: Trial) -> None:
        """Another one has ended."""
        taken = trial.cost
        self.units += taken
        self.since_best += taken
        if trial.score is not None and (self._best is None or _rank(trial) < self._best):
            self._best, self.since_best = _rank(trial), 0.0


def check_some_complete(trials: list[Trial]) -> None:
    """Raise where every candidate failed, with the most frequent reason."""
    if any(t.score is not None for t in trials):
        return
    reasons = [t.reason or "" for t in trials if t.state is State.FAIL]
    common = max(dict.fromkeys(reasons), key=reasons.count) if reasons else "none was run"
    stopped = len(trials) - len(reasons)
    also = f", but for {stopped} that were stopped early" if stopped else ""
    raise EvoMergeError(f"all {len(trials)} candidates failed{also}; most often: {common}")
