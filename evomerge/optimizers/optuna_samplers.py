"""Optuna's samplers behind ask and tell, each made afresh per ask from (seed, trial number).

The study inside lives in memory and holds nothing but values: the record of a search is elsewhere.
"""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from evomerge.optimizers.generation import Generation
from evomerge.optimizers.protocol import Told
from evomerge.score import Value
from evomerge.space.parameters import Categorical, Float, Integer, Parameter

if TYPE_CHECKING:
    from optuna.distributions import BaseDistribution
    from optuna.samplers import BaseSampler

# Constant, so that any number of workers gives the same sequence.
GENERATION = 8


class _Sampled:
    """What both samplers share: a study in memory that is asked and told in generations."""

    name: str
    elitist = True

    def __init__(
        self,
        parameters: Sequence[Parameter],
        seed: int,
        *,
        population: int | None = None,
        sigma: float | None = None,
        initial: Mapping[str, Value] | None = None,
    ) -> None:
        import optuna

        self.generation = population or GENERATION
        self._seed = seed
        self._number = 0
        self._distributions = {p.name: _distribution(p) for p in parameters}
        self._flight: Generation[Any] = Generation(parameters, self.generation)
        level = optuna.logging.get_verbosity()
        optuna.logging.set_verbosity(optuna.logging.WARNING)
        try:
            self._study = optuna.create_study(study_name=self.name, direction="maximize")
        finally:
            optuna.logging.set_verbosity(level)
        if initial is not None:
            self._flight.enqueue(initial)

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
        given, flight.queue = flight.queue[:n], flight.queue[n:]
        candidates: list[tuple[dict[str, Value], Any]] = []
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # "experimental" options
            for i in range(n):
                if i < len(given):
                    self._study.enqueue_trial(given[i])
                self._study.sampler = self._sampler(_mix(self._seed, self._number))
                self._number += 1
                trial = self._study.ask(self._distributions)
                params = {p.name: _value(p, trial.params[p.name]) for p in flight.parameters}
                candidates.append((given[i] if i < len(given) else params, trial))
        return flight.ask(candidates)

    def tell(self, params: Sequence[Mapping[str, Value]], scores: Sequence[Told]) -> None:
        """See `Optimizer.tell`. Optuna would forget a failed trial: it is told at minus infinity instead."""
        trials, told = self._flight.tell(params, scores)
        for trial, score in zip(trials, told, strict=True):
            self._study.tell(trial, float("-inf") if score is None else score)

    def _sampler(self, seed: int) -> BaseSampler:
        raise NotImplementedError


class Tpe(_Sampled):
    """Tree-structured Parzen estimator (Bergstra et al. 2011), multivariate; ten random candidates come first.

    Its first candidate is the parameters' start (or `initial`).
    """

    name = "tpe"
    # The most that it counts as good (Optuna's default).
    parents = 25

    def __init__(
        self,
        parameters: Sequence[Parameter],
        seed: int,
        *,
        population: int | None = None,
        sigma: float | None = None,
        initial: Mapping[str, Value] | None = None,
    ) -> None:
        start = initial if initial is not None else {p.name: p.init for p in parameters}
        super().__init__(parameters, seed, population=population, sigma=sigma, initial=start)

    def _sampler(self, seed: int) -> BaseSampler:
        from optuna.samplers import TPESampler

        return TPESampler(seed=seed, multivariate=True, constant_liar=True)


class Random(_Sampled):
    """Uniform over the ranges (over their logarithms where asked for): the control at equal budget."""

    name = "random"
    # It learns nothing; what can be chosen in the end are the best few.
    parents = 5

    def _sampler(self, seed: int) -> BaseSampler:
        from optuna.samplers import RandomSampler

        return RandomSampler(seed=seed)


def _value(parameter: Parameter, drawn: Any) -> Value:
    """What Optuna drew, in the grid's own spelling where there is one."""
    value: Value = parameter.snap(drawn) if isinstance(parameter, Float) and parameter.step is not None else drawn
    return value


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
