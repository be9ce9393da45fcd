"""CatCMA with margin (arXiv 2504.07884) by `cmaes`: floats, integers (and grids) and categories in one distribution."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from evomerge.optimizers.coordinates import STEP, bins, first_steps, from_unit, to_unit
from evomerge.optimizers.generation import Generation, ranks
from evomerge.optimizers.protocol import Behaviour, Told
from evomerge.optimizers.restarts import Run, Schedule, Stagnation
from evomerge.optimizers.table import BIPOP, NONE
from evomerge.optimizers.warm_start import promising
from evomerge.score import Value
from evomerge.space.parameters import Categorical, Float, Integer, Parameter

# Of what has a grid, in steps of the grid.
LEAST_STEP = 0.5


class CatCma:
    """CatCMA with margin; categories start at equal probability.

    It is told ranks, not scores: its penalty for leaving the bounds scales with the spread of what it is told, which is
    nothing where half a generation ties.

    Args:
        sigma: First standard deviation, as a share of every range; default: see `first_steps`.
        population: Of the first run; default 4 + floor(3 ln n).
        initial: The first mean; default the parameters' own.
        restarts: "none", "ipop" or "bipop" (the default), see `restarts`. The mean of a later run is drawn uniformly;
            its categories are of equal probability again.
        asynchronous: An update is made of every `generation` candidates that were told, also ones that were drawn
            before the last update (cmaes has no way to shorten those), but not of an earlier run.
        warm: The best of another search: the first run begins from the normal distribution nearest to their numbers,
            and from how often they have each category.
    """

    name = "catcma"
    elitist = False
    whole = False
    weighs = False

    def __init__(
        self,
        parameters: Sequence[Parameter],
        seed: int,
        *,
        population: int | None = None,
        sigma: float | None = None,
        initial: Mapping[str, Value] | None = None,
        restarts: str | None = None,
        asynchronous: bool = False,
        warm: Sequence[Mapping[str, Value]] = (),
    ) -> None:
        self._floats = [p for p in parameters if isinstance(p, Float) and p.step is None]
        self._grids: list[Float | Integer] = [
            p for p in parameters if isinstance(p, Integer) or (isinstance(p, Float) and p.step is not None)
        ]
        self._categories = [p for p in parameters if isinstance(p, Categorical)]
        start = dict(initial) if initial is not None else {p.name: p.init for p in parameters}
        size = population or 4 + math.floor(3 * math.log(len(parameters)))
        self._seed = seed
        # Another stream than that of the points, so that these are the same with restarts and without.
        self._random = np.random.default_rng([seed, 1])
        self._restarts = BIPOP if restarts is None else restarts
        self._schedule = Schedule(self._restarts, size, STEP if sigma is None else sigma, self._random)
        self._steps = np.array(first_steps([*self._floats, *self._grids], sigma)) / self._schedule.first.sigma
        self._flight: Generation[Any] = Generation(parameters, size, asynchronous=asynchronous)
        self._done = False
        if warm:
            self._warm(warm)
        else:
            self._begin(self._schedule.first, self._mean(start))

    def _warm(self, warm: Sequence[Mapping[str, Value]]) -> None:
        numbers: list[Float | Integer] = [*self._floats, *self._grids]
        mean = covariance = shares = None
        if numbers:
            units = [[to_unit(p, float(params[p.name])) for p in numbers] for params in warm]
            _, step, shape = promising(units)
            # Of a grid in its numbers; at least as wide as when nothing is known.
            widths = np.array([1.0] * len(self._floats) + [float(bins(p) - 1) for p in self._grids])
            covariance = step**2 * shape * np.outer(widths, widths)
            least = np.array([0.0] * len(self._floats) + [LEAST_STEP] * len(self._grids))
            covariance += np.diag(np.maximum(least**2 - np.diag(covariance), 0.0))
            mean = np.mean([self._mean(params) for params in warm], axis=0)
        if self._categories:
            shares = np.zeros((len(self._categories), max(len(p.choices) for p in self._categories)))
            for i, p in enumerate(self._categories):
                # Once more than they have it, so that none is left out.
                counts = [1 + sum(params[p.name] == c for params in warm) for c in p.choices]
                shares[i, : len(counts)] = np.array(counts) / sum(counts)
        self._begin(self._schedule.first, mean, covariance, shares)

    def _begin(self, run: Run, mean: Any, covariance: Any = None, shares: Any = None) -> None:
        from cmaes import CatCMAwM

        self._solution: Any = CatCMAwM.Solution
        # The covariance is given: the library's own is zero for a mean that lies on a bound.
        steps = (run.sigma * self._steps).tolist()
        widths = steps[: len(self._floats)]
        grids = zip(steps[len(self._floats) :], self._grids, strict=True)
        widths += [max(step * (bins(p) - 1), LEAST_STEP) for step, p in grids]
        self._es = CatCMAwM(
            x_space=[[0.0, 1.0]] * len(self._floats) or None,
            z_space=[_numbers(p) for p in self._grids] or None,
            c_space=[len(p.choices) for p in self._categories] or None,
            population_size=run.population,
            mean=mean if widths else None,
            sigma=1.0,
            cov=(np.diag(np.square(widths)) if covariance is None else covariance) if widths else None,
            cat_param=shares,
            seed=self._seed % 2**32,
        )
        self._spent = 0
        self._stagnation = Stagnation(len(self._flight.parameters), run.population)
        self.generation = run.population
        self.parents = run.population // 2

    @property
    def done(self) -> bool:
        """Without restarts: whether the numbers have converged (cmaes' criteria, which do not look at categories)."""
        return self._done

    def enqueue(self, params: Mapping[str, Value]) -> None:
        """See `Optimizer.enqueue`."""
        self._flight.enqueue(params)

    def ask(self, n: int) -> list[dict[str, Value]]:
        """See `Optimizer.ask`."""
        flight = self._flight
        flight.open(n)
        given = flight.take(n)
        candidates = [(params, self._encode(params)) for params in given]
        while len(candidates) < n:
            solution = self._es.ask()
            candidates.append((self._decode(solution), solution))
        return flight.ask(candidates)

    def tell(
        self,
        params: Sequence[Mapping[str, Value]],
        scores: Sequence[Told],
        behaviours: Sequence[Behaviour | None] | None = None,
    ) -> None:
        """See `Optimizer.tell`. A generation of nothing but ties teaches nothing and leaves the distribution alone."""
        for solutions, told in self._flight.complete(params, scores):
            converged = False
            if len(set(told)) > 1:
                self._es.tell(list(zip(solutions, ranks(told).tolist(), strict=True)))
                converged = bool((self._floats or self._grids) and self._es.should_stop())
            self._spent += len(told)
            stuck = self._stagnation.hear(told)
            if self._restarts == NONE:
                self._done = self._done or converged
            elif converged or stuck or self._spent >= self._schedule.now.limit:
                self._again()

    def _again(self) -> None:
        run = self._schedule.after(self._spent)
        assert run is not None
        self._seed = int(self._random.integers(2**32))
        mean = [
            *self._random.uniform(size=len(self._floats)),
            *(float(self._random.choice(_numbers(p))) for p in self._grids),
        ]
        self._flight.renew(run.population)
        self._begin(run, np.array(mean))

    def _mean(self, params: Mapping[str, Value]) -> Any:
        point = [to_unit(p, float(params[p.name])) for p in self._floats]
        return np.array([*point, *(_number(p, float(params[p.name])) for p in self._grids)], dtype=np.float64)

    def _encode(self, params: Mapping[str, Value]) -> Any:
        numbers = self._mean(params)
        chosen = np.zeros((len(self._categories), max((len(p.choices) for p in self._categories), default=0)), bool)
        for i, p in enumerate(self._categories):
            chosen[i, p.choices.index(str(params[p.name]))] = True
        floats = len(self._floats)
        return self._solution(
            numbers[:floats] if floats else None,
            numbers[floats:] if self._grids else None,
            chosen if self._categories else None,
            numbers if len(numbers) else None,
        )

    def _decode(self, solution: Any) -> dict[str, Value]:
        values: dict[str, Value] = {}
        for i, real in enumerate(self._floats):
            values[real.name] = from_unit(real, float(solution.x[i]))
        for i, p in enumerate(self._grids):
            number = int(solution.z[i])
            values[p.name] = number if isinstance(p, Integer) else p.at(number)
        for i, category in enumerate(self._categories):
            values[category.name] = category.choices[int(np.argmax(solution.c[i]))]
        return {p.name: values[p.name] for p in self._flight.parameters}


def _number(parameter: Float | Integer, value: float) -> float:
    """Where a value stands on the line of the grid's numbers: an integer itself, else how many steps from low."""
    return value if isinstance(parameter, Integer) else float(parameter.index(value))


def _numbers(parameter: Float | Integer) -> list[int]:
    first = parameter.low if isinstance(parameter, Integer) else 0
    return list(range(first, first + bins(parameter)))
