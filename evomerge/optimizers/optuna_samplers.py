"""Optuna's samplers behind ask and tell, each made afresh per ask from (seed, trial number).

The study inside lives in memory and holds nothing but values: the record of a search is elsewhere. What a sampler keeps
beyond one ask (NSGA's generations and parents) it keeps in that study.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import numpy as np

from evomerge.optimizers.generation import Generation
from evomerge.optimizers.protocol import Behaviour, Told
from evomerge.score import Value
from evomerge.space.parameters import Categorical, Float, Integer, Parameter

if TYPE_CHECKING:
    from optuna.distributions import BaseDistribution
    from optuna.samplers import BaseSampler

# Constant, so that any number of workers gives the same sequence.
GENERATION = 8
# Of NSGA the population too: at least the ten directions in which NSGA-III looks for trade-offs of three objectives.
POPULATION = 16


class _Sampled:
    """What the samplers share: a study in memory that is asked and told.

    Args:
        population: Candidates per generation; default 8 (NSGA: 16).
        initial: The first candidate; default the parameters' own start (of random search: none).
        objectives: Number of values that a candidate is told with; more than one as a tuple.
        asynchronous: Samplers hear of every candidate as it is told, and know which ones are not told yet.
    """

    name: str
    elitist = True
    whole = False
    weighs = False
    size = GENERATION
    # Whether the first candidate is the start.
    starts = True

    def __init__(
        self,
        parameters: Sequence[Parameter],
        seed: int,
        *,
        population: int | None = None,
        sigma: float | None = None,
        initial: Mapping[str, Value] | None = None,
        objectives: int = 1,
        asynchronous: bool = False,
    ) -> None:
        import optuna

        self.generation = population or self.size
        self._seed = seed
        self._number = 0
        self._distributions = {p.name: _distribution(p) for p in parameters}
        self._flight: Generation[Any] = Generation(parameters, self.generation, objectives, asynchronous)
        with _silent():
            self._study: Any = optuna.create_study(study_name=self.name, directions=["maximize"] * objectives)
        start = {p.name: p.init for p in parameters} if self.starts else None
        if initial is not None or start is not None:
            self._flight.enqueue(initial or start or {})

    @property
    def done(self) -> bool:
        """Never: a sampler does not converge."""
        return False

    def enqueue(self, params: Mapping[str, Value]) -> None:
        """See `Optimizer.enqueue`."""
        self._flight.enqueue(params)

    def ask(self, n: int) -> list[dict[str, Value]]:
        """See `Optimizer.ask`."""
        flight = self._flight
        flight.open(n)
        given = flight.take(n)
        candidates: list[tuple[dict[str, Value], Any]] = []
        with _silent():
            for i in range(n):
                if i < len(given):
                    self._study.enqueue_trial(given[i])
                self._study.sampler = self._sampler(_mix(self._seed, self._number))
                self._number += 1
                trial = self._study.ask(self._distributions)
                self._asked(trial.number)
                params = {p.name: _value(p, trial.params[p.name]) for p in flight.parameters}
                candidates.append((given[i] if i < len(given) else params, trial))
        return flight.ask(candidates)

    def tell(
        self,
        params: Sequence[Mapping[str, Value]],
        scores: Sequence[Told],
        behaviours: Sequence[Behaviour | None] | None = None,
    ) -> None:
        """See `Optimizer.tell`. Optuna would forget a failed trial: it is told at minus infinity instead.

        Samplers know constraints themselves (NSGA and TPE by Deb's order, the Gaussian process by a model of the
        violation), and want one of every trial or of none.
        """
        trials, told = self._flight.tell(params, scores)
        worst = (float("-inf"),) * self._flight.objectives
        with _silent():
            for trial, worth in zip(trials, told, strict=True):
                if worth.violation is not None:
                    trial.set_constraint("violation", worth.violation)
                self._study.tell(trial, worst if worth.failed else worth.values)

    def _sampler(self, seed: int) -> BaseSampler:
        raise NotImplementedError

    def _asked(self, number: int) -> None:
        """Hears of every candidate that is asked."""


class Tpe(_Sampled):
    """Tree-structured Parzen estimator (Bergstra et al. 2011), multivariate; ten random candidates come first.

    Of several objectives what counts as good are the fronts that none dominates, of the last one those that add most to
    the volume dominated (Ozaki et al. 2022).
    """

    name = "tpe"
    # The most that it counts as good (Optuna's default).
    parents = 25

    def _sampler(self, seed: int) -> BaseSampler:
        from optuna.samplers import TPESampler

        return TPESampler(seed=seed, multivariate=True, constant_liar=True)


class Gp(_Sampled):
    """Bayesian optimisation: a Gaussian process (Matérn 5/2, a length scale for each parameter) fitted to all scores.

    The next candidate is where the logarithm of the expected improvement is largest (Ament et al. 2023), given those
    that are not told yet; of several objectives, of the volume dominated (Daulton et al. 2020). Ten random candidates
    come first. It learns from values, not ranks: a failed candidate counts like the worst that did not fail. Proposing
    one takes a quarter of a second, with several objectives more.
    """

    name = "gp"
    # All are learned from; what matters is how the best compare.
    parents = 25

    def _sampler(self, seed: int) -> BaseSampler:
        from optuna.samplers import GPSampler

        return GPSampler(seed=seed, warn_independent_sampling=False)


class Nsga2(_Sampled):
    """NSGA-II (Deb et al. 2002) by Optuna: uniform crossover, and mutation by a uniform draw of one parameter or so.

    With one objective it is a genetic algorithm that keeps the best.
    """

    name = "nsga2"
    size = POPULATION

    @property
    def parents(self) -> int:
        """As many as children."""
        return self.generation

    def _sampler(self, seed: int) -> BaseSampler:
        from optuna.samplers import NSGAIISampler

        return NSGAIISampler(seed=seed, population_size=self.generation)

    def _asked(self, number: int) -> None:
        """To one that is enqueued Optuna gives no generation: its population would lack one and be filled up again."""
        self._study.sampler.get_trial_generation(self._study, self._study.get_trials(deepcopy=False)[number])


class Nsga3(Nsga2):
    """NSGA-III (Deb and Jain 2014) by Optuna: NSGA-II that spreads over directions; for three objectives and more."""

    name = "nsga3"

    def _sampler(self, seed: int) -> BaseSampler:
        from optuna.samplers import NSGAIIISampler

        return NSGAIIISampler(seed=seed, population_size=self.generation)


class Random(_Sampled):
    """Uniform over the ranges (over their logarithms where asked for): the control at equal budget."""

    name = "random"
    # It learns nothing; what can be chosen in the end are the best few.
    parents = 5
    starts = False

    def _sampler(self, seed: int) -> BaseSampler:
        from optuna.samplers import RandomSampler

        return RandomSampler(seed=seed)


@contextmanager
def _silent() -> Iterator[None]:
    """Without "experimental", clipped infinities and the like; Optuna's own level of messages is put back."""
    import optuna

    level = optuna.logging.get_verbosity()
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        optuna.logging.set_verbosity(level)


def _value(parameter: Parameter, drawn: Any) -> Value:
    """What Optuna drew as a plain number (NSGA has NumPy's), in the grid's own spelling where there is one."""
    if isinstance(parameter, Float):
        return parameter.snap(float(drawn))
    return int(drawn) if isinstance(parameter, Integer) else str(drawn)


def _distribution(parameter: Parameter) -> BaseDistribution:
    from optuna.distributions import CategoricalDistribution, FloatDistribution, IntDistribution

    if isinstance(parameter, Float):
        return FloatDistribution(parameter.low, parameter.high, log=parameter.log, step=parameter.step)
    if isinstance(parameter, Integer):
        return IntDistribution(parameter.low, parameter.high)
    assert isinstance(parameter, Categorical)
    return CategoricalDistribution(parameter.choices)


def _mix(seed: int, number: int) -> int:
    return int(np.random.SeedSequence([seed, number]).generate_state(1)[0])
