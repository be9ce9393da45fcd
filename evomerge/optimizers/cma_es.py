"""CMA-ES (Hansen and Ostermeier 2001, with active covariance update) by pycma, with restarts."""

from __future__ import annotations

import math
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import numpy.typing as npt

from evomerge.optimizers.coordinates import STEP, bins, first_steps, from_unit, to_unit
from evomerge.optimizers.generation import Generation, losses
from evomerge.optimizers.protocol import Behaviour, Told, Worth
from evomerge.optimizers.restarts import Run, Schedule, Stagnation
from evomerge.optimizers.table import BIPOP, NONE
from evomerge.optimizers.warm_start import promising
from evomerge.score import Value
from evomerge.space.parameters import Categorical, Float, Integer, Parameter

# A step of less than this part of a range merges to the same model for all that an evaluator can tell.
CONVERGED = 1e-4
# Of so many parameters n a search of some thousand candidates learns no covariances: there are n^2 / 2 of them.
FULL = 200
Point = npt.NDArray[np.float64]


class _Normal:
    """pycma's source of normal numbers: a generator of its own (the default is NumPy's global one), picklable."""

    def __init__(self, seed: int) -> None:
        self._generator = np.random.default_rng(seed)

    def __call__(self, *shape: int) -> npt.NDArray[np.float64]:
        return self._generator.standard_normal(shape)


@contextmanager
def _borrowed(generator: np.random.Generator) -> Iterator[None]:
    """NumPy's global generator, which pycma's centering of integers draws from, as one of ours; then as it was."""
    state = np.random.get_state()
    np.random.seed(int(generator.integers(2**32)))
    try:
        yield
    finally:
        np.random.set_state(state)


@dataclass(frozen=True)
class _Drawn:
    """A point as pycma must hear of it again.

    Attributes:
        place: Which of those that were drawn together: of the first two, pycma may want to know which is better.
        iteration: In which of pycma's iterations.
        free, bounded: Before and after its transformation into the bounds.
    """

    place: int
    iteration: int
    free: Point
    bounded: Point


class CmaEs:
    """CMA-ES on floats and integers.

    Integers and floats on a grid have bins of equal width, a least standard deviation and centering (Marty et al. 2024,
    LB+IC-CMA-ES: pycma's `integer_variables`). Of more than 200 parameters only variances are adapted (separable
    CMA-ES, Ros and Hansen 2008: pycma's `CMA_diagonal`, with its learning rates), and the step by comparing two points
    on the line of the last move (Hansen et al. 2014: pycma's TPA) - asynchronously, where these two would have to come
    back together, by the length of the path as else.

    Args:
        sigma: First standard deviation, as a share of every range; default: see `first_steps`.
        population: Of the first run; default 4 + floor(3 ln n).
        initial: The first mean; default the parameters' own.
        restarts: "none", "ipop" or "bipop" (the default), see `restarts`: a run that has converged is followed by
            another, whose mean is drawn uniformly. `generation` and `parents` are those of the run that goes on.
        asynchronous: An update is made of every `generation` candidates that were told. Those that were drawn in an
            earlier iteration are shortened where they are further away than ones of now are likely to be (Hansen 2011,
            Injecting external solutions into CMA-ES); those of an earlier run are not learned from.
        warm: The best of another search: the first run begins from the normal distribution nearest to them instead of
            `initial` and `sigma`.
    """

    name = "cma"
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
        self._numbers: list[Float | Integer] = [p for p in parameters if not isinstance(p, Categorical)]
        # pycma is not made for one dimension: a second one, which nothing depends on, stands beside it.
        self._bins = np.array([bins(p) for p in self._numbers] + [0] * (len(self._numbers) == 1))
        start = dict(initial) if initial is not None else {p.name: p.init for p in parameters}
        size = population or 4 + math.floor(3 * math.log(len(self._bins)))
        self._normal = _Normal(seed)
        # Another stream than that of the points, so that these are the same with restarts and without.
        self._random = np.random.default_rng([seed, 1])
        self._restarts = BIPOP if restarts is None else restarts
        steps = np.array([*first_steps(self._numbers, sigma), STEP if sigma is None else sigma][: len(self._bins)])
        self._steps = steps / steps.max()
        self._schedule = Schedule(self._restarts, size, float(steps.max()), self._random)
        self._flight: Generation[_Drawn] = Generation(parameters, size, asynchronous=asynchronous)
        self._done = False
        if warm:
            middle, step, covariance = promising([self._units(p) for p in warm])
            self._begin(replace(self._schedule.first, sigma=step), self._places(middle), covariance)
        else:
            self._begin(self._schedule.first, self._point(start))

    def _begin(self, run: Run, mean: Point, covariance: Point | None = None) -> None:
        import cma
        from cma.sigma_adaptation import CMAAdaptSigmaCSA, CMAAdaptSigmaTPA

        grids = np.flatnonzero(self._bins)
        separable = len(mean) > FULL
        options: dict[str, Any] = {
            "seed": float("nan"),  # pycma: do not touch the global generator
            "randn": self._normal,
            "bounds": [0.0, 1.0],
            "popsize": run.population,
            "CMA_diagonal": separable,
            "AdaptSigma": CMAAdaptSigmaTPA if separable and not self._flight.asynchronous else CMAAdaptSigmaCSA,
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
        if self._flight.asynchronous:
            # Else with a population below 6 pycma prepares mirrored points, which it wants to be asked for together.
            options["CMA_mirrors"] = 0
        if covariance is None and np.ptp(self._steps):
            options["CMA_stds"] = self._steps.tolist()
        if len(grids):
            widths, half = np.maximum(self._bins, 1), np.where(self._bins > 0, 0.5, 0.0)
            options |= {
                "integer_variables": grids.tolist(),
                "bounds": [(-half).tolist(), (widths - half).tolist()],
                "CMA_stds": (widths * options.get("CMA_stds", 1.0)).tolist(),
            }
        if covariance is not None and separable:
            options["CMA_stds"] = (np.sqrt(np.diag(covariance)) * options.get("CMA_stds", 1.0)).tolist()
        self._es: Any = cma.CMAEvolutionStrategy(mean, run.sigma, options)
        if covariance is not None and not separable:
            # As pycma itself does where it goes on from a record (feed_for_resume).
            self._es.sm.C = covariance
            self._es.sm.update_now(-1)
            self._es._updateBDfromSM(self._es.sm)
        self._open = False
        self._spent = 0
        self._stagnation = Stagnation(len(mean), run.population)
        self.generation = run.population
        self.parents = int(self._es.sp.weights.mu)

    @property
    def done(self) -> bool:
        """Without restarts: whether every standard deviation is below 1e-4 of its range (or pycma is at a dead end)."""
        return self._done

    def enqueue(self, params: Mapping[str, Value]) -> None:
        """See `Optimizer.enqueue`."""
        self._flight.enqueue(params)

    def ask(self, n: int) -> list[dict[str, Value]]:
        """See `Optimizer.ask`."""
        flight, es = self._flight, self._es
        flight.open(n)
        # At least one candidate of a generation is drawn: pycma learns nothing from injected ones alone. The two that
        # it compares come first.
        first = 2 if es.mean_shift_samples and es.countiter > 0 else 0
        given = flight.take(n if flight.asynchronous else n - 1 - first)
        inverse = es.boundary_handler.inverse
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            es.inject([es.gp.geno(self._point(p), from_bounds=inverse) for p in given], force=True)
            # Of one point alone pycma injects nothing.
            points = es.ask_geno(max(n, len(given) + 1))
        self._open = True
        repair = es.boundary_handler.repair
        drawn = [
            _Drawn(i, es.countiter, x, es.gp.pheno(x, copy=True, into_bounds=repair)) for i, x in enumerate(points)
        ]
        drawn = [*drawn[first : first + len(given)], *drawn[:first], *drawn[first + len(given) :]][:n]
        params = [*given, *(self._params(d.bounded) for d in drawn[len(given) :])]
        return flight.ask(list(zip(params, drawn, strict=True)))

    def tell(
        self,
        params: Sequence[Mapping[str, Value]],
        scores: Sequence[Told],
        behaviours: Sequence[Behaviour | None] | None = None,
    ) -> None:
        """See `Optimizer.tell`."""
        for drawn, told in self._flight.complete(params, scores):
            self._update(drawn, told)
            self._spent += len(drawn)
            stuck = self._stagnation.hear(told)
            converged = bool(self._es.stop())
            if self._restarts == NONE:
                self._done = converged
            elif converged or stuck or self._spent >= self._schedule.now.limit:
                run = self._schedule.after(self._spent)
                assert run is not None
                self._flight.renew(run.population)
                self._begin(run, self._places(self._random.uniform(size=len(self._bins))))

    def _update(self, drawn: Sequence[_Drawn], told: Sequence[Worth]) -> None:
        es = self._es
        order = range(len(drawn))
        if not self._flight.asynchronous:
            order = sorted(order, key=lambda i: drawn[i].place)  # type: ignore[assignment]
        points = [drawn[i] for i in order]
        with warnings.catch_warnings(), _borrowed(self._random):
            # That it did not give these points itself, and hears of injected ones late or never.
            warnings.simplefilter("ignore")
            if not self._open:
                es.ask_geno(1)  # it hears nothing before something was asked
            for p in points:
                es.sent_solutions.insert(p.bounded, geno=p.free, iteration=p.iteration)
            old = [i for i, p in enumerate(points) if p.iteration < es.countiter]
            es.tell([p.bounded for p in points], losses(told)[list(order)].tolist(), check_points=old or None)
        self._open = False

    def _point(self, params: Mapping[str, Value]) -> Point:
        return self._places(self._units(params))

    def _units(self, params: Mapping[str, Value]) -> Point:
        units = [to_unit(p, float(params[p.name])) for p in self._numbers]
        return np.array(units if len(units) > 1 else [*units, 0.5])

    def _places(self, units: Point) -> Point:
        """From the unit cube to pycma's coordinates: where there are bins, the k-th one's middle is k."""
        return np.where(self._bins > 0, units * self._bins - 0.5, units)

    def _params(self, point: Point) -> dict[str, Value]:
        units = np.where(self._bins > 0, (point + 0.5) / np.maximum(self._bins, 1), point)
        return {p.name: from_unit(p, u) for p, u in zip(self._numbers, units, strict=False)}
