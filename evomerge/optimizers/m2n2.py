"""M2N2 (Abrantes, Lange and Tang 2025, arXiv 2508.16204): niches by competition for items, mates by attraction.

A candidate here is a recipe over the sources, so a child is made of its parents' genes, not of their weights. Where a
merge is linear in its genes (weights of linear and task_arithmetic merges) that is the paper's crossover with a
straight line for its slerp: mixing the genes of a place mixes the weights there.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

import numpy as np

from evomerge.errors import EvoMergeError
from evomerge.optimizers.behaviours import Elite, Grid, best_first, heard
from evomerge.optimizers.coordinates import from_unit, to_unit
from evomerge.optimizers.cube import folded
from evomerge.optimizers.generation import Generation
from evomerge.optimizers.protocol import Behaviour, Told, Worth
from evomerge.optimizers.sharing import Array, Scale, attraction, fitness
from evomerge.score import Value
from evomerge.space.parameters import Categorical, Float, Parameter

GENERATION = 8
# The authors have 20 for 50,000 candidates; for some hundreds half as many get further (docs/decisions.md).
ARCHIVE = 10
SIGMA = 0.07
# How often a gene that is no real number mutates, at most; and about one in a child at most.
MUTATED = 0.1

Params = dict[str, Value]


class M2N2:
    """An archive of models that share the items that they solve; children by crossover at a split point along depth.

    Parent A is drawn in proportion to its fitness f, parent B to its attraction for A. A split point is drawn between
    two places of the model, and w from [0, 1]: up to the split a child's genes are w A + (1 - w) B, from there on
    (1 - w) A + w B, in all sources alike; a category or whole number is A's with the probability that A has as weight
    there. Then all genes mutate a little. Steady state: each told candidate joins the archive, f is worked out anew
    over all, and where they are more than the archive holds the least goes.

    Those that miss constraints compete for nothing that one has who keeps them (the paper has no constraints): the one
    that misses them furthest goes first, f is worked out over those that keep them while there are any, and only these
    are parents, but for the mate of one that is alone. Where none keeps them, parent A is the one that misses them less
    of two that are drawn uniformly (Deb 2000).

    The first generations, until there are as many candidates as half the archive, are those enqueued, the start, and
    uniform draws. Failed candidates are not in the archive; they count as ones that solve no item.

    Places are the parameters' `place`; where fewer than two differ, each parameter is a place, in their order. A
    parameter that acts everywhere is on either side, by a coin.

    Args:
        sigma: Standard deviation of the mutation, as a share of every range; default 0.07. (The paper mutates only
            what started at random; here the start is both.)
        population: Candidates per generation; default 8. The archive has 10, or as many if they are more.
        initial: The start; default the parameters' own.
    """

    name = "m2n2"
    elitist = True
    whole = True
    weighs = False

    def __init__(
        self,
        parameters: Sequence[Parameter],
        seed: int,
        *,
        population: int | None = None,
        sigma: float | None = None,
        initial: Mapping[str, Value] | None = None,
        asynchronous: bool = False,
    ) -> None:
        self.generation = population or GENERATION
        self.parents = self.size = max(ARCHIVE, self.generation)
        self._random = np.random.default_rng(seed)
        self._sigma = SIGMA if sigma is None else sigma
        self._start = dict(initial) if initial is not None else {p.name: p.init for p in parameters}
        self._ranks = _ranks(parameters)
        discrete = sum(not isinstance(p, Float) for p in parameters)
        self._mutated = min(MUTATED, 1 / max(discrete, 1))
        self._places = 1 + max(rank for rank in self._ranks if rank is not None)
        self._started = False
        self._asked = 0
        self._kept: list[tuple[Elite, Array]] = []
        self._scale = Scale()
        self._flight: Generation[None] = Generation(parameters, self.generation, asynchronous=asynchronous)

    @property
    def done(self) -> bool:
        """Never: there is always another child."""
        return False

    def elites(self) -> list[Elite]:
        """See `Archiving.elites`; each with what it gets of the items, which these alone share.

        Those that miss constraints may be kept beside ones that keep them, as mates of one that is alone, but they are
        none of these.
        """
        if not self._kept:
            return []
        keeps = np.array([not elite.missed for elite, _ in self._kept])
        there = keeps if keeps.any() else ~keeps
        shares = iter(fitness(self._results()[there]).tolist())
        return best_first(
            [replace(elite, fitness=next(shares)) for (elite, _), t in zip(self._kept, there, strict=True) if t]
        )

    @property
    def grid(self) -> Grid | None:
        """None: candidates differ by the items that they solve."""
        return None

    def enqueue(self, params: Mapping[str, Value]) -> None:
        """See `Optimizer.enqueue`."""
        self._flight.enqueue(params)

    def ask(self, n: int) -> list[Params]:
        """See `Optimizer.ask`."""
        flight = self._flight
        flight.open(n)
        asked = flight.take(n)
        self._started = self._started or self._start in asked
        if len(asked) < n and not self._started:
            asked.append(self._start)
            self._started = True
        while len(asked) < n:
            opening = self._asked + len(asked) < self.size // 2
            asked.append(self._drawn() if opening else self._child())
        self._asked += n
        return flight.ask([(params, None) for params in asked])

    def tell(
        self,
        params: Sequence[Mapping[str, Value]],
        scores: Sequence[Told],
        behaviours: Sequence[Behaviour | None] | None = None,
    ) -> None:
        """See `Optimizer.tell`; any number of candidates."""
        _, told = self._flight.tell(params, scores)
        self._add(params, told, behaviours)

    def close(
        self,
        params: Sequence[Mapping[str, Value]],
        scores: Sequence[Told],
        behaviours: Sequence[Behaviour | None] | None = None,
    ) -> None:
        """See `Archiving.close`."""
        _, told = self._flight.close(params, scores)
        self._add(params, told, behaviours)

    def _add(
        self,
        params: Sequence[Mapping[str, Value]],
        told: Sequence[Worth],
        behaviours: Sequence[Behaviour | None] | None,
    ) -> None:
        """Let those told join the archive, one after the other."""
        first = self._flight.told - len(told)
        for place, (p, known) in enumerate(zip(params, heard(told, behaviours), strict=True), start=first):
            if known is None:
                continue
            items = np.asarray(known.behaviour.items, dtype=np.float64)
            if self._kept and items.shape != self._kept[0][1].shape:
                raise EvoMergeError(
                    f"told a candidate's results on {len(items)} items, expected {len(self._kept[0][1])}"
                )
            self._scale.see(items)
            elite = Elite(dict(p), known.score, known.behaviour.tasks, place, known.missed)
            self._kept.append((elite, items))
            if len(self._kept) > self.size:
                del self._kept[self._least()]

    def _least(self) -> int:
        """Who goes. Of equal ones the eldest, so that the archive drifts over plateaus."""
        missed = [elite.missed for elite, _ in self._kept]
        if max(missed) > 0.0:
            return int(np.argmax(missed))
        return int(np.argmin(fitness(self._results())))

    def _results(self) -> Array:
        """The archive's results in [0, 1], shape (candidates, items)."""
        return self._scale(np.array([items for _, items in self._kept]))

    def _child(self) -> Params:
        parents = self._mates()
        if parents is None:
            return self._drawn()
        a, b = parents
        split = self._random.integers(1, max(self._places, 2))
        w = self._random.random()
        child: Params = {}
        for p, rank in zip(self._flight.parameters, self._ranks, strict=True):
            before = self._random.random() < 0.5 if rank is None else rank < split
            share = w if before else 1.0 - w
            child[p.name] = self._mixed(p, a[p.name], b[p.name], share)
        return child

    def _mates(self) -> tuple[Params, Params] | None:
        """Two parents; None where no candidate solves anything."""
        if not self._kept:
            return None
        results = self._results()
        missed = np.array([elite.missed for elite, _ in self._kept])
        keeps = missed == 0.0
        # One that keeps the constraints alone has nobody to mate with but those that do not.
        there = np.ones(len(missed), bool) if keeps.sum() == 1 else keeps if keeps.any() else missed > 0.0
        shares = np.zeros(len(missed))
        shares[there] = fitness(results[there])
        if not keeps.any():
            pair = self._random.integers(len(missed), size=2)
            first = int(min(pair, key=lambda i: missed[i]))
        elif shares[keeps].sum() > 0.0:
            first = self._roulette(np.where(keeps, shares, 0.0))
        else:
            return None
        pull = np.zeros(len(missed))
        pull[there] = attraction(results[there], int(there[:first].sum()))
        # One that solves all that any other does is drawn to none: then its mate is any other, by its fitness.
        if not pull.sum() > 0.0:
            pull = np.where(np.arange(len(shares)) == first, 0.0, shares)
        second = self._roulette(pull) if pull.sum() > 0.0 else first
        return self._kept[first][0].params, self._kept[second][0].params

    def _roulette(self, weights: Array) -> int:
        """An index, drawn in proportion to its weight."""
        wheel = np.cumsum(weights)
        return int(np.searchsorted(wheel, self._random.random() * wheel[-1], side="right"))

    def _mixed(self, parameter: Parameter, a: Value, b: Value, share: float) -> Value:
        """A gene of which A has a share, and its mutation."""
        if isinstance(parameter, Float):
            mixed = share * to_unit(parameter, float(a)) + (1.0 - share) * to_unit(parameter, float(b))
            moved = mixed + self._sigma * self._random.standard_normal()
            return from_unit(parameter, float(folded(np.array(moved))))
        chosen = a if self._random.random() < share else b
        return self._value(parameter) if self._random.random() < self._mutated else chosen

    def _drawn(self) -> Params:
        """Uniform over the whole space."""
        return {p.name: self._value(p) for p in self._flight.parameters}

    def _value(self, parameter: Parameter) -> Value:
        if isinstance(parameter, Categorical):
            return parameter.choices[self._random.integers(len(parameter.choices))]
        return from_unit(parameter, float(self._random.random()))


def _ranks(parameters: Sequence[Parameter]) -> list[int | None]:
    """Of each parameter the number of its place along depth, from 0; None where it acts everywhere."""
    places = sorted({p.place for p in parameters if p.place is not None})
    if len(places) < 2:
        return list(range(len(parameters)))
    return [None if p.place is None else places.index(p.place) for p in parameters]
