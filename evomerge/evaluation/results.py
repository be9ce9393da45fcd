"""lm-eval's results per item become a task's score."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from evomerge.errors import CandidateError
from evomerge.evaluation.goals import LANGUAGE, LENGTH
from evomerge.evaluation.language import in_language
from evomerge.evaluation.splits import Item
from evomerge.score import TaskScore


def measure_of(
    task: str, measure: str, texts: Sequence[Sequence[str]], items: Sequence[Item], language: str | None
) -> TaskScore:
    """What is measured of a task's answers, as a score of weight 0.

    Args:
        texts: The answers to each item as they were generated.
        language: The one that the task asks for.
    """
    ids = tuple(i.id for i in items)
    if measure == LANGUAGE:
        assert language is not None
        found = np.array([np.mean([in_language(text, language) for text in answers]) for answers in texts])
    else:
        # Told as one that is better when lower, as an objective it is.
        found = -np.array([np.mean([len(text) for text in answers]) for answers in texts])
    results = found.astype(np.float32)
    value = float(results.astype(np.float64).mean())
    return TaskScore(f"{task}.{measure}", measure, value, 0.0, ids, results, flipped=measure == LENGTH)


def task_score(
    name: str, metric: str, raw: Sequence[Any], weight: float, higher: bool, items: Sequence[Item], aggregate: Any
) -> TaskScore:
    """One task's score from lm-eval's results per item, the sign flipped where lower is better.

    Raises:
        CandidateError: the aggregated value is not a finite number.
    """
    value = float(aggregate(raw))
    if not math.isfinite(value):
        raise CandidateError(f'task "{name}": metric "{metric}" is {value}')
    sign = 1.0 if higher else -1.0
    results = np.zeros(0, np.float32)
    if all(isinstance(r, bool | int | float | np.number) for r in raw):
        numbers = np.array([float(r) for r in raw])
        # Paired statistics per item are only true of a mean: perplexities and F1 of a whole set keep their value alone.
        if np.isfinite(numbers).all() and math.isclose(float(numbers.mean()), value, rel_tol=1e-6, abs_tol=1e-9):
            results = (sign * numbers).astype(np.float32)
    return TaskScore(name, metric, sign * value, weight, tuple(i.id for i in items), results, flipped=not higher)
