"""What the contract tests of optimizers share. A new optimizer needs its line in the table and nothing here."""

from __future__ import annotations

import math
import random
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from evomerge.optimizers import OPTIMIZERS, Optimizer
from evomerge.optimizers import make_optimizer as make
from evomerge.optimizers.protocol import Behaviour
from evomerge.score import Value
from evomerge.space import Categorical, Float, Integer, Parameter

ROOT = Path(__file__).parents[2]
FLOATS: tuple[Parameter, ...] = (
    Float("weight.a", -1.0, 2.0, 0.5),
    Float("weight.b", 0.0, 1.0, 1.0),  # starts on its bound
    Float("lambda", 1e-3, 10.0, 0.1, log=True),
)
NUMBERS: tuple[Parameter, ...] = (*FLOATS, Integer("k", 1, 6, 2))
MIXED: tuple[Parameter, ...] = (Categorical("method", ("linear", "ties", "slerp"), "linear"), *NUMBERS)
SPACES: dict[str, tuple[Parameter, ...]] = {
    "floats": FLOATS,
    "one float": FLOATS[:1],
    "numbers": NUMBERS,
    "integer": NUMBERS[3:],
    "grid": (*FLOATS[:2], Float("weight.c", 0.5, 1.5, 1.0, step=0.1)),
    "mixed": MIXED,
    "category": MIXED[:1],
}


def make_optimizer(name: str, parameters: Sequence[Parameter], seed: int, **keys: Any) -> Optimizer:
    """As made for two tasks that count."""
    if keys.get("asynchronous") and OPTIMIZERS[name].batches:
        pytest.skip("must be told whole generations")
    return make(name, parameters, seed, **{"tasks": 2, **keys})


def takes(name: str, space: str) -> bool:
    return OPTIMIZERS[name].categorical or not any(isinstance(p, Categorical) for p in SPACES[space])


# Each candidate after the tenth takes a quarter of a second: in tests that ask fewer, and in test_optuna.py.
SLOW = ("gp",)
quick = [n for n in OPTIMIZERS if n not in SLOW]
CASES = [(name, space) for name in quick for space in SPACES if takes(name, space)]
every = pytest.mark.parametrize(("name", "space"), CASES, ids=[f"{n}, {s}" for n, s in CASES])
each = pytest.mark.parametrize("name", quick)
of_all = pytest.mark.parametrize("name", list(OPTIMIZERS))
# One generation after the other, and candidates by ones and twos in any order: this in two spaces, for brevity.
widest = {n: "mixed" if entry.categorical else "numbers" for n, entry in OPTIMIZERS.items()}
MODES = [(n, s, mode) for n, s in CASES for mode in (False, True) if not mode or s in (widest[n], "integer")]
every_mode = pytest.mark.parametrize(
    ("name", "space", "asynchronous"),
    MODES,
    ids=[f"{n}, {s}, {'asynchronous' if m else 'in turn'}" for n, s, m in MODES],
)
# Mutation draws one parameter anew: of one alone nothing is inherited.
ALONE = ("nsga2", "nsga3")


def quality(params: Mapping[str, Value]) -> float:
    """A sphere around weight.a = 1.1, weight.b = 0.3, lambda = 0.01, k = 5, method = ties; the best is 0."""
    p: Any = dict(params)
    out = -((p.get("weight.a", 1.1) - 1.1) ** 2) - (p.get("weight.b", 0.3) - 0.3) ** 2
    out -= (p.get("weight.c", 1.2) - 1.2) ** 2
    out -= 0.2 * (math.log10(p.get("lambda", 0.01)) + 2) ** 2 + 0.1 * (p.get("k", 5) - 5) ** 2
    return out - (p.get("method", "ties") != "ties")


Log = list[tuple[dict[str, Value], float | None]]
THRESHOLDS = -np.geomspace(0.003, 4.0, 12)


def behaviour(params: Mapping[str, Value], score: float | None) -> Behaviour | None:
    """Two tasks whose mean is the score, and items that ask for more and more of either; which of them, a wave says."""
    if score is None or not math.isfinite(score):
        return None
    lean = 0.2 * math.sin(3 * sum(len(v) if isinstance(v, str) else v for v in params.values()))
    tasks = (score + lean, score - lean)
    items = np.concatenate([value > THRESHOLDS for value in tasks]).astype(np.float32)
    return Behaviour(tasks, items)


def tell(optimizer: Optimizer, asked: Sequence[Mapping[str, Value]], scores: Sequence[float | None]) -> None:
    """With behaviours, where the optimizer needs them."""
    if OPTIMIZERS[optimizer.name].whole:
        optimizer.tell(asked, scores, [behaviour(p, s) for p, s in zip(asked, scores, strict=True)])
    else:
        optimizer.tell(asked, scores)


def run(
    optimizer: Optimizer,
    generations: int,
    score: Callable[[Mapping[str, Value]], float | None] = quality,
    asynchronous: bool = False,
) -> Log:
    """Some generations, or asynchronously as many candidates; every candidate with its score."""
    if asynchronous:
        return [
            (p, s) for told in shuffled(optimizer, generations * optimizer.generation, score)[1]
            for p, s in zip(*told, strict=True)
        ]  # fmt: skip
    log: Log = []
    for _ in range(generations):
        asked = optimizer.ask(optimizer.generation)
        scores = [score(p) for p in asked]
        tell(optimizer, asked, scores)
        log += zip(asked, scores, strict=True)
    return log


def shuffled(
    optimizer: Optimizer, count: int, score: Callable[[Mapping[str, Value]], float | None], seed: int = 0
) -> tuple[list[list[dict[str, Value]]], list[tuple[list[dict[str, Value]], list[float | None]]]]:
    """As up to ten workers would: one to three asked at a time, one or two told, in any order.

    Returns:
        Every asking and every telling; the n-th telling follows the n-th asking.
    """
    draw = random.Random(seed)
    out: list[dict[str, Value]] = []
    asks, tells, told = [], [], 0
    while told < count:
        asks.append(optimizer.ask(draw.randint(1, 3) if len(out) < 8 else 1))
        out += asks[-1]
        back = [out.pop(draw.randrange(len(out))) for _ in range(min(len(out), draw.randint(1, 2)))]
        tells.append((back, [score(p) for p in back]))
        tell(optimizer, *tells[-1])
        told += len(back)
    return asks, tells


def best(log: Sequence[tuple[dict[str, Value], float | None]]) -> float:
    return max(s for _, s in log if s is not None)


def sometimes(params: Mapping[str, Value]) -> float | None:
    """Fails in a part of the space."""
    fails = float(params["weight.a"]) > 0.9 if "weight.a" in params else float(params.get("k", 0)) > 1.6
    return None if fails else quality(params)


def sequences(name: str) -> dict[str, Any]:
    """What it asks in both modes, with failures."""
    space = SPACES[widest[name]]
    found: dict[str, Any] = {"in turn": run(make_optimizer(name, space, seed=5), 4, sometimes)}
    if not OPTIMIZERS[name].batches:
        found["asynchronous"] = shuffled(make_optimizer(name, space, seed=5, asynchronous=True), 35, sometimes)
    return found
