"""CMA-ES (Hansen and Ostermeier 2001, with active covariance update) by pycma, in the unit cube."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from evomerge.optimizers.coordinates import bins, from_unit, to_unit
from evomerge.optimizers.generation import Generation, losses
from evomerge.optimizers.protocol import Told
from evomerge.score import Value
from evomerge.space.parameters import Categorical, Float, Integer, Parameter

SIGMA = 1 / 6
# A step of less than this part of a range merges to the same model for all that an evaluator can tell.
CONVERGED = 1e-4
Point = npt.NDArray[np.float64]


class _Normal:
    """pycma's source of normal numbers: a generator of its own (the default is NumPy's global one), picklable."""

    def __init__(self, seed: int) -> None:
        self._generator = np.random.default_rng(seed)

    def __call__(self, *shape: int) -> npt.NDArray[np.float64]:
        return self._generator.standard_normal(shape)


class CmaEs:
    """CMA-ES on floats and integers (these and floats on a grid by equal bins, whose least step keeps them moving).

    Args:
        sigma: First standard deviation, as a share of every range; default 1/6, as in arXiv 2403.13187.
        population: Default 4 + floor(3 ln n).
        initial: The first mean; default the parameters' own.
    """

    name = "cma"
    elitist = False

    def __init__(
        self,
        parameters: Sequence[Parameter],
        seed: int,
        *,
        population: int | None = None,
        sigma: float | None = None,
        initial: Mapping[str, Value] | None = None,
    ) -> None:
        import cma

        self._numbers: list[Float | Integer] = [p for p in parameters if not isinstance(p, Categorical)]
        start = dict(initial) if initial is not None else {p.name: p.init for p in parameters}
        mean = self._point(start)
        self.generation = population or 4 + math.floor(3 * math.log(len(mean)))
        options = {
            "seed": float("nan"),  # pycma: do not touch the global generator
            "randn": _Normal(seed),
            "bounds": [0.0, 1.0],
            "popsize": self.generation,
            "minstd": [0.3 / bins(p) if bins(p) else 0.0 for p in self._numbers]
            + [0.0] * (len(mean) - len(self._numbers)),
            "tolx": CONVERGED,
            # Accuracies on a few hundred items tie all the time: plateaus are no sign of convergence.
            "tolfun": 0.0,
            "tolfunhist": 0.0,
            "tolflatfitness": math.inf,
            "tolstagnation": math.inf,
            "maxiter": math.inf,
            "signals_filename": "",  # else it looks for a file in the working directory
            "verbose": -9,
        }
        self._es: Any = cma.CMAEvolutionStrategy(mean, SIGMA if sigma is None else sigma, options)
        self.parents = int(self._es.sp.weights.mu)
        self._flight: Generation[Point] = Generation(parameters, self.generation)
        self._done = False

    @property
    def done(self) -> bool:
        """Whether every standard deviation is below 1e-4 of its range (or pycma sees a numerical dead end)."""
        return self._done

    def enqueue(self, params: Mapping[str, Value]) -> None:
        """See `Optimizer.enqueue`."""
        self._flight.enqueue(params)

    def ask(self, n: int) -> list[dict[str, Value]]:
        """See `Optimizer.ask`."""
        flight = self._flight
        flight.open(n)
        # At least one candidate of a generation is drawn: pycma learns nothing from injected ones alone.
        given, flight.queue = flight.queue[: n - 1], flight.queue[n - 1 :]
        inverse = self._es.boundary_handler.inverse
        self._es.inject([self._es.gp.geno(self._point(p), from_bounds=inverse) for p in given], force=True)
        points = self._es.ask()
        drawn = [self._params(x) for x in points[len(given) :]]
        return flight.ask(list(zip([*given, *drawn], points, strict=True)))

    def tell(self, params: Sequence[Mapping[str, Value]], scores: Sequence[Told]) -> None:
        """See `Optimizer.tell`."""
        points, told = self._flight.tell(params, scores)
        self._es.tell(points, losses(told).tolist())
        self._done = bool(self._es.stop())

    def _point(self, params: Mapping[str, Value]) -> list[float]:
        point = [to_unit(p, float(params[p.name])) for p in self._numbers]
        # pycma is not made for one dimension: a second one, which nothing depends on, stands beside it.
        return point if len(point) > 1 else [*point, 0.5]

    def _params(self, point: Point) -> dict[str, Value]:
        return {p.name: from_unit(p, u) for p, u in zip(self._numbers, point, strict=False)}
