"""Searches replayed on the surrogate of the zoo's task: the real loop, races, estimates and optimizers, no models.

Nor a database, whose tables (a row for each parameter of each candidate) would take most of the time: what a study
keeps stays in memory, and nothing goes on after a kill.
"""

from __future__ import annotations

import json
import math
from collections import deque
from collections.abc import Callable, Hashable, Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.surrogate import Numbers, Record, Surrogate
from evomerge.evaluation.draw import Draw
from evomerge.optimizers import Optimizer
from evomerge.recipe import InputModel, Recipe
from evomerge.score import Score, State, TaskScore, Trial, Value
from evomerge.space import Float
from evomerge.study.budget import Budget
from evomerge.study.contest import Rules
from evomerge.study.estimator.told import Estimates
from evomerge.study.job import Answer, Job
from evomerge.study.known import KnownResults
from evomerge.study.loop import Search
from evomerge.study.raced import Raced
from evomerge.study.scoring import Scoring
from evomerge.study.stopping import Stop
from evomerge.study.store import Study
from evomerge.study.tables import Known, ResultTable
from evomerge.study.watcher import Silent
from evomerge.study.workers import Pool

RECORDED = Path(__file__).parent / "recorded" / "quickstart.npz"
LOW, HIGH, INIT, SOURCES = 0.0, 1.5, 0.5, 3  # as the preset "quickstart" has them
BOUNDED, FREE = (LOW, HIGH), (-1e6, 1e6)
BASELINES = ("base", "maths", "kovesh", "sorting", "uniform")  # scored before the first candidate
ITEMS = 800  # that a search has; the others are held out
TASK = "items"


def load() -> tuple[Surrogate, dict[str, float]]:
    """The surrogate, and its error on merges that it was not fitted to."""
    with np.load(RECORDED) as data:
        weights = {n.removeprefix("net_"): data[n].astype(np.float32) for n in data.files if "net_" in n}
        return Surrogate(weights), json.loads(str(data["error"]))


@cache
def names() -> tuple[str, ...]:
    """Of the recorded merges' parameters: those of the preset "quickstart"."""
    return Record.load(RECORDED).names


class StandIn:
    """What pools share that stand in for workers: nobody asks them to stop, and nothing is to be closed."""

    ahead, eager = 0, True
    device = "cpu"

    def __init__(self) -> None:
        self.stop = Stop()
        self._waiting: deque[tuple[Hashable, Job]] = deque()

    def recall(self) -> list[Hashable]:
        found = [key for key, _ in self._waiting]
        self._waiting.clear()
        return found

    def close(self) -> None:
        pass


class Replay(StandIn):
    """A pool that answers from the surrogate."""

    size = 1

    def __init__(self, surrogate: Surrogate, places: Numbers) -> None:
        super().__init__()
        self._surrogate = surrogate
        self._places = places
        self._held: dict[bytes, Numbers] = {}

    def submit(self, key: Hashable, job: Job) -> None:
        self._waiting.append((key, job))

    def wait(self, poll: Callable[[], None] | None = None) -> tuple[Hashable, Answer]:
        key, job = self._waiting.popleft()
        params = point(job.recipe)
        if params.tobytes() not in self._held:
            self._held = {**dict(list(self._held.items())[-50:]), params.tobytes(): self._answers(params)}
        answers = self._held[params.tobytes()]
        only = tuple(range(ITEMS)) if job.only is None else job.only[TASK]
        found = answers[list(only)].astype(np.float32)
        return key, Answer(
            Score((TaskScore(TASK, "acc", float(found.mean()), 1.0, tuple(f"{i}" for i in only), found),))
        )

    def _answers(self, params: Numbers) -> Numbers:
        found: Numbers = self._surrogate.answers(params)[self._places].astype(np.float64)
        return found


class _Results(ResultTable):
    """Results of single items, in memory."""

    def __init__(self) -> None:
        self.study = 0
        self._found: dict[tuple[str, str], dict[str, Known]] = {}

    def write(self, model: str, found: Sequence[tuple[str, Sequence[str], Sequence[float]]], trial: int) -> None:
        for evaluator, items, results in found:
            held = self._found.setdefault((model, evaluator), {})
            for item, result in zip(items, results, strict=True):
                held.setdefault(item, Known(float(result), (self.study, trial)))

    def read(self, model: str, evaluator: str) -> Mapping[str, Known]:
        return self._found.get((model, evaluator), {})


class _Unread:
    """In the place of a table that nobody will read."""

    def write(self, *_: object) -> None:
        pass


class Unrecorded(Study):
    """A study that keeps nothing but what the search that runs asks for again."""

    name = "replayed"

    def __init__(self) -> None:
        self.results = _Results()
        self.scores: Any = _Unread()

    def trials(self) -> list[Trial]:
        return []

    def notes(self) -> dict[str, Any]:
        return {}

    def note(self, key: str, value: Any) -> None:
        pass

    def start(self, number: int, params: Mapping[str, Value], attributes: Mapping[str, Any]) -> None:
        pass

    def attribute(self, number: int, attributes: Mapping[str, Any]) -> None:
        pass

    def complete(self, *_: Any, **__: Any) -> None:
        pass

    def prune(self, *_: Any, **__: Any) -> None:
        pass

    def fail(self, *_: Any, **__: Any) -> None:
        pass


def point(recipe: Recipe | None) -> Numbers:
    """The parameters of a stand-in recipe."""
    assert recipe is not None and recipe.models is not None
    return np.array([m.parameters["weight"] for m in recipe.models if m.parameters], dtype=np.float64)


def decode(params: Mapping[str, Value]) -> Recipe:
    """A stand-in recipe that holds the parameters."""
    return Recipe(
        merge_method="linear",
        models=[InputModel(model=name, parameters={"weight": float(v)}) for name, v in params.items()],
    )


def replay(
    surrogate: Surrogate,
    seed: int,
    budget: int,
    make: Callable[[Sequence[Float], int], Optimizer],
    bounds: tuple[float, float] = BOUNDED,
    rules: Callable[[Numbers], Rules] | None = None,
    *,
    modelled: bool = False,
    around: Callable[[Pool], Pool] = lambda pool: pool,
    asynchronous: bool = False,
    turning: bool = True,
) -> list[Trial]:
    """One search.

    Args:
        make: The optimizer, of parameters and seed.
        rules: When candidates stop; None: each has all items.
        modelled: Whether what those that stopped are told with may be an item-response model's.
        around: What the answers come through.
        turning: Whether generations begin with other items than those before.
    """
    parameters = [Float(name, *bounds, INIT) for name in names()]
    places = np.random.default_rng([0, seed]).permutation(surrogate.items)
    items = {TASK: tuple(f"{i}" for i in range(ITEMS))}
    draw = Draw.of(items, {TASK: 1.0}, seed)
    study = Unrecorded()
    like = Score((TaskScore(TASK, "acc", 0.0),))
    known = KnownResults(study.results, draw, {TASK: "surrogate"}, like)
    race = None
    if rules is not None:
        found = rules(draw.weights)
        told = Estimates(draw, found.ends, sources(surrogate, places[:ITEMS])) if modelled else None
        race = Raced(draw, found, told, turning)
    trials, _ = Search(
        study, make(parameters, seed), decode, lambda r: r.hash(),
        Scoring(around(Replay(surrogate, places[:ITEMS])), known), Budget(candidates=budget), Silent(), race=race,
        asynchronous=asynchronous,
    ).run()  # fmt: skip
    return trials


def sources(surrogate: Surrogate, places: Numbers) -> list[Score]:
    """Base, each source and the uniform merge, which a search scores before its first candidate."""
    each = surrogate.weights["w1"].shape[1] // SOURCES
    points = [np.zeros(each * SOURCES), *np.repeat(np.eye(SOURCES), each, axis=1), np.full(each * SOURCES, 1 / SOURCES)]
    items = tuple(f"{i}" for i in range(ITEMS))
    found = [surrogate.answers(p)[places].astype(np.float32) for p in points]
    return [Score((TaskScore(TASK, "acc", float(a.mean()), 1.0, items, a),)) for a in found]


def curve(surrogate: Surrogate, trials: Sequence[Trial], seed: int) -> tuple[list[float], list[float]]:
    """What was spent, in items, and the held-out score of what would be handed on, after each better candidate."""
    held = np.random.default_rng([0, seed]).permutation(surrogate.items)[ITEMS:]
    spent, best, spends, scores = 0.0, -math.inf, [], []
    for trial in trials:
        spent += trial.cost * ITEMS
        if trial.state is State.COMPLETE and trial.value is not None and trial.value > best:
            best = trial.value
            params = np.array([float(v) for v in trial.params.values()])
            spends.append(spent)
            scores.append(float(surrogate.probabilities(params)[0][held].mean()))
    return spends, scores


def best_known(surrogate: Surrogate, dimensions: int) -> float:
    """The largest mean probability over all items within the preset's bounds, of five long searches without noise."""
    import cma

    found = 0.0
    for seed in range(1, 6):
        options = {"bounds": [LOW, HIGH], "seed": seed, "verbose": -9, "maxfevals": 30_000}
        start = np.random.default_rng(seed).uniform(LOW, HIGH, dimensions)
        _, es = cma.fmin2(lambda x: -float(surrogate.probabilities(x)[0].mean()), start, 0.4, options)
        found = max(found, -float(es.result.fbest))
    return found
