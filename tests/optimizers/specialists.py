"""A merge in little: three sources' weights at nine depths, and two tasks whose best merges differ."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from evomerge.optimizers import Optimizer
from evomerge.optimizers.behaviours import Elite
from evomerge.optimizers.protocol import Behaviour
from evomerge.score import Value
from evomerge.space import Float, Parameter

SPACE: tuple[Parameter, ...] = tuple(
    Float(f"weight.s{s}.layer_{depth}", 0.0, 1.5, 0.5, place=(depth + 1) / 10) for s in range(3) for depth in range(9)
)
ITEMS = 200
_random = np.random.default_rng(0)
_difficulty = _random.uniform(-2, 2, ITEMS)
_task = np.arange(ITEMS) % 2
_best = _random.uniform(0.2, 1.3, (2, len(SPACE)))


def behaviour(params: Mapping[str, Value]) -> tuple[float, Behaviour]:
    """The share of items solved, and by task and item: those that are easier than the merge is near to the best."""
    x = np.array(list(params.values()), dtype=float)
    skill = 1.5 - ((x - _best) ** 2).sum(axis=1) / 2
    items = (skill[_task] > _difficulty).astype(np.float32)
    tasks = tuple(float(items[_task == t].mean()) for t in range(2))
    return float(np.mean(tasks)), Behaviour(tasks, items)


Told = list[tuple[dict[str, Value], float | None, Behaviour | None]]


def search(optimizer: Optimizer, budget: int, fails: Callable[[Mapping[str, Value]], bool] = lambda _: False) -> Told:
    """Every candidate of a search with what it was told."""
    log: Told = []
    while len(log) + optimizer.generation <= budget:
        asked = optimizer.ask(optimizer.generation)
        told: list[Any] = [(None, None) if fails(p) else behaviour(p) for p in asked]
        scores, behaviours = [s for s, _ in told], [b for _, b in told]
        if getattr(optimizer, "whole", False):
            optimizer.tell(asked, scores, behaviours)
        else:
            optimizer.tell(asked, scores)
        log += zip(asked, scores, behaviours, strict=True)
    return log


def uniform(seed: int, count: int) -> Told:
    """Uniform draws, with what they are worth."""
    drawn = np.random.default_rng(seed).uniform(0.0, 1.5, (count, len(SPACE)))
    params = [dict(zip([p.name for p in SPACE], row, strict=True)) for row in drawn.tolist()]
    return [(p, *behaviour(p)) for p in params]


def spread(log: Told, cells: int = 20) -> float:
    """Sum over the cells of a fixed grid over both tasks of the best score: an independent QD score."""
    found: dict[tuple[int, ...], float] = {}
    for _, score, known in log:
        if score is not None and known is not None:
            cell = tuple(min(int(t * cells), cells - 1) for t in known.tasks)
            found[cell] = max(found.get(cell, 0.0), score)
    return sum(found.values())


def elites(optimizer: Any) -> list[Elite]:
    found: list[Elite] = optimizer.elites()
    return found
