"""A (mu + lambda) evolutionary search with mutations by type: for spaces of choices, such as paths over layers.

Kinds of parameters (the name up to its first dot: source, times, insertion, scale, ...) are mutated equally often,
however many parameters each has, so that forty scales do not drown one choice of embeddings.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping, Sequence
from itertools import groupby, product

import numpy as np

from evomerge.optimizers.coordinates import bins
from evomerge.optimizers.domination import best_first
from evomerge.optimizers.generation import Generation
from evomerge.optimizers.protocol import Behaviour, Told, Worth
from evomerge.score import Value
from evomerge.space.parameters import Categorical, Integer, Parameter

SIGMA = 1 / 6
GENERATION = 8
PARENTS = 8
CROSSOVER = 0.3
# Beside the one mutation that every child has.
MORE_MUTATIONS = 1.0
# Tries for a child that was never asked before, then for a uniform draw; a finite space of at most so many points is
# listed instead of drawn from.
TRIES = 50
LISTED = 10_000

Params = dict[str, Value]


class Evolution:
    """Children of the best so far, by mutation of single genes and sometimes uniform crossover.

    The first generation is the start and mutants of it. Parents are drawn by tournaments of two among the best
    `PARENTS` of all generations; of equal ones the younger goes first, so that the search drifts over plateaus instead
    of resting on them. With several objectives the best are NSGA-II's: those that none dominates first, the least
    crowded first. Those that miss constraints come after all that keep them.

    Args:
        sigma: Standard deviation of a number's mutation, as a share of its range; default 1/6.
        population: Children per generation; default 8.
        initial: The start; default the parameters' own.
        objectives: Number of values that a candidate is told with; more than one as a tuple.
        asynchronous: Parents are chosen anew at every telling.
    """

    name = "evolution"
    parents = PARENTS
    elitist = True
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
        objectives: int = 1,
        asynchronous: bool = False,
    ) -> None:
        self.generation = population or GENERATION
        self._random = np.random.default_rng(seed)
        self._sigma = SIGMA if sigma is None else sigma
        self._start = dict(initial) if initial is not None else {p.name: p.init for p in parameters}
        by_kind = sorted(parameters, key=_kind)
        self._kinds = [list(genes) for _, genes in groupby(by_kind, key=_kind)]
        self._parents: list[tuple[Worth, Params]] = []
        self._seen: set[str] = set()
        self._flight: Generation[None] = Generation(parameters, self.generation, objectives, asynchronous)

    @property
    def done(self) -> bool:
        """Never: there is always another mutation."""
        return False

    def enqueue(self, params: Mapping[str, Value]) -> None:
        """See `Optimizer.enqueue`."""
        self._flight.enqueue(params)

    def ask(self, n: int) -> list[Params]:
        """See `Optimizer.ask`."""
        flight = self._flight
        flight.open(n)
        given = flight.take(n)
        self._seen.update(_key(p) for p in given)
        if len(given) < n and _key(self._start) not in self._seen:
            given.append(self._start)
            self._seen.add(_key(self._start))
        while len(given) < n:
            given.append(self._new())
        return flight.ask([(params, None) for params in given])

    def tell(
        self,
        params: Sequence[Mapping[str, Value]],
        scores: Sequence[Told],
        behaviours: Sequence[Behaviour | None] | None = None,
    ) -> None:
        """See `Optimizer.tell`. A failed one is a parent only where fewer than `PARENTS` others are known."""
        _, told = self._flight.tell(params, scores)
        young = [(worth, dict(p)) for p, worth in zip(params, told, strict=True)]
        # The youngest first: the order keeps those before their equals.
        known = [*reversed(young), *self._parents]
        self._parents = [known[i] for i in best_first([worth for worth, _ in known])[:PARENTS]]

    def _new(self) -> Params:
        """A child that was not asked before, else any such point of the space, else (all were) a child."""
        for attempt in range(2 * TRIES):
            child = self._child() if attempt < TRIES else self._drawn()
            if _key(child) not in self._seen:
                break
            if attempt == TRIES and (size := self._size()) and size <= LISTED:
                unseen = [p for p in self._all() if _key(p) not in self._seen]
                child = unseen[self._random.integers(len(unseen))] if unseen else self._child()
                break
        self._seen.add(_key(child))
        return child

    def _size(self) -> int:
        """Number of points of the space; 0 where it is continuous."""
        return math.prod(len(p.choices) if isinstance(p, Categorical) else bins(p) for p in self._flight.parameters)

    def _all(self) -> Iterator[Params]:
        genes = self._flight.parameters
        for point in product(*map(_values, genes)):
            yield dict(zip((p.name for p in genes), point, strict=True))

    def _child(self) -> Params:
        child = dict(self._parent())
        if self._parents and self._random.random() < CROSSOVER:
            other = self._parent()
            child = {name: other[name] if self._random.random() < 0.5 else value for name, value in child.items()}
        for _ in range(1 + self._random.poisson(MORE_MUTATIONS)):
            genes = self._kinds[self._random.integers(len(self._kinds))]
            gene = genes[self._random.integers(len(genes))]
            child[gene.name] = self._mutated(gene, child[gene.name])
        return child

    def _parent(self) -> Params:
        if not self._parents:
            return self._start
        # The parents stand in order, so the lower place wins.
        return self._parents[int(self._random.integers(len(self._parents), size=2).min())][1]

    def _mutated(self, gene: Parameter, value: Value) -> Value:
        """Another choice, the next whole number, or a Gaussian step (at least one of the grid, where there is one)."""
        if isinstance(gene, Categorical):
            others = [c for c in gene.choices if c != value]
            return others[self._random.integers(len(others))]
        up = bool(self._random.random() < 0.5)
        if isinstance(gene, Integer):
            return _next(int(value), gene.low, gene.high, up)
        low, high, now = gene.low, gene.high, float(value)
        if gene.log:
            low, high, now = math.log(low), math.log(high), math.log(now)
        moved = _folded(now + self._random.normal(0.0, self._sigma * (high - low)), low, high)
        found = gene.snap(math.exp(moved) if gene.log else moved)
        if gene.count is not None and found == value:
            return gene.at(_next(gene.index(float(value)), 0, gene.count - 1, up))
        return found

    def _drawn(self) -> Params:
        """Uniform over the whole space."""
        out: Params = {}
        for gene in self._flight.parameters:
            if isinstance(gene, Categorical):
                out[gene.name] = gene.choices[self._random.integers(len(gene.choices))]
            elif isinstance(gene, Integer):
                out[gene.name] = int(self._random.integers(gene.low, gene.high + 1))
            elif gene.log:
                out[gene.name] = gene.snap(math.exp(self._random.uniform(math.log(gene.low), math.log(gene.high))))
            else:
                out[gene.name] = gene.snap(float(self._random.uniform(gene.low, gene.high)))
        return out


def _kind(parameter: Parameter) -> str:
    return parameter.name.partition(".")[0]


def _values(parameter: Parameter) -> Sequence[Value]:
    """Every value of a parameter that is not continuous."""
    if isinstance(parameter, Categorical):
        return parameter.choices
    if isinstance(parameter, Integer):
        return range(parameter.low, parameter.high + 1)
    return [parameter.at(k) for k in range(bins(parameter))]


def _key(params: Mapping[str, Value]) -> str:
    return json.dumps(params)


def _next(value: int, low: int, high: int, up: bool) -> int:
    """One up or down; inwards at a bound."""
    return value + 1 if value < high and (up or value == low) else value - 1


def _folded(value: float, low: float, high: float) -> float:
    """A number that left its bounds is thrown back by as much as it left them."""
    width = high - low
    within = (value - low) % (2 * width)
    return low + min(within, 2 * width - within)
