"""Thompson sampling (1933; in parallel: Kandasamy et al. 2018) on a Gaussian process that knows each score's error.

Most of a race's scores rest on a few items. CMA-ES can do nothing with such a score but rank it, and forgets it after
one update; a Gaussian process weighs every score by its standard error and learns from all of them together.
"""

from __future__ import annotations

import math
from bisect import insort
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import chain
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from evomerge.optimizers.coordinates import first_steps, from_unit, to_unit
from evomerge.optimizers.generation import Generation, losses
from evomerge.optimizers.protocol import Behaviour, Told, Worth
from evomerge.score import Value
from evomerge.space.parameters import Categorical, Float, Integer, Parameter

if TYPE_CHECKING:
    from evomerge.optimizers.hyperparameters import Hyperparameters
    from evomerge.optimizers.process import Process

Numbers = npt.NDArray[np.float64]

GENERATION = 8
# Candidates around the start, before there is anything to fit a process to.
FIRST = 16
# A process is fitted again when there are so many times as many scores; in between it only hears of them.
AGAIN = 1.25
# Without generations this part of one is drawn together, as 64 cost little more than one, and the other workers'
# candidates know nothing of each other either.
AHEAD = 4
# Scores that it knows, for it takes the cube of their number, and how many of them are the latest.
KNOWN, LATEST = 256, 64
FLOOR = 5.0


@dataclass
class _Batch:
    """Candidates that are drawn together.

    Attributes:
        draw: Which draw it is, from 1.
        told: How many scores the process knows.
        modelled: How many candidates were drawn by a process before.
        size: How many it has.
        given: How many of them have been asked for.
        drawn: They themselves; empty until one is needed.
    """

    draw: int
    told: int
    modelled: int
    size: int = 0
    given: int = 0
    drawn: list[dict[str, Value]] = field(default_factory=list)


class Thompson:
    """Bayesian optimisation on floats and integers, of one objective.

    One candidate of a generation (of eight, where it is smaller) is where the process expects most, and the others are
    each where one function drawn from it has its maximum. So a place is tried as often as it is likely to be the best
    one, and the candidates of a generation differ without knowing of each other.

    Args:
        sigma: Standard deviation of the first candidates around the start, as a share of every range; default: see
            `first_steps`.
        population: Candidates per generation; default 8.
        initial: Around what the first candidates are drawn; default the parameters' own start.
        asynchronous: Whether any number is asked for at any time.
        warm: The best of another search, the best first: the first candidates are as many of them as half a generation
            has, and others around the best.
    """

    name = "thompson"
    elitist = False
    whole = False
    weighs = True

    def __init__(
        self,
        parameters: Sequence[Parameter],
        seed: int,
        *,
        population: int | None = None,
        sigma: float | None = None,
        initial: Mapping[str, Value] | None = None,
        asynchronous: bool = False,
        warm: Sequence[Mapping[str, Value]] = (),
    ) -> None:
        self._numbers: list[Float | Integer] = [p for p in parameters if not isinstance(p, Categorical)]
        start = dict(initial) if initial is not None else {p.name: p.init for p in parameters}
        start = dict(warm[0]) if warm else start
        self.generation = population or GENERATION
        self.parents = max(1, self.generation // 2)
        self._seed = seed
        # The best itself is enqueued by who knows of the other search.
        self._warm = [self._units(p) for p in warm[1 : max(1, self.generation // 2)]]
        self._start = self._units(start)
        self._steps = np.array(first_steps(self._numbers, sigma))
        self._flight: Generation[Numbers] = Generation(parameters, self.generation, asynchronous=asynchronous)
        self._points: list[Numbers] = []
        self._worths: list[Worth] = []
        # The best of so many that have all items, if there is one.
        self._best: list[int | None] = []
        # Standard errors, the least first, of equal ones the latest; and whose each is, negative.
        self._surest: list[tuple[float, int]] = []
        # Whose each place was.
        self._at: dict[bytes, list[int]] = {}
        # How often candidates were drawn, and how many: the first ones, and those by the process.
        self._draws = self._first = self._modelled = 0
        # Without generations: drawn together, and given out one by one.
        self._batch = _Batch(0, 0, 0)
        self._recalled: list[dict[str, Value]] = []
        self._fitted: tuple[int, Hyperparameters] | None = None

    @property
    def done(self) -> bool:
        """Never: what it is unsure of becomes less, but does not end."""
        return False

    def enqueue(self, params: Mapping[str, Value]) -> None:
        """See `Optimizer.enqueue`."""
        self._flight.enqueue(params)

    def recall(self, params: Sequence[Mapping[str, Value]]) -> None:
        """See `Recalling.recall`: a model need not be fitted again to propose what is known."""
        self._recalled = [dict(p) for p in params]

    def ask(self, n: int) -> list[dict[str, Value]]:
        """See `Optimizer.ask`."""
        self._flight.open(n)
        found = self._flight.take(n)
        recalled, self._recalled = self._recalled, []
        if drawn := n - len(found):
            # What is known comes in the place of what would be drawn, and is the same but for the last bits.
            known = len(recalled) >= n
            if len(self._points) < FIRST:
                self._draws += 1
                found += self._first_ones(drawn) if not known else []
                self._first += drawn
            elif self._flight.asynchronous:
                found += self._ahead(drawn, known)
            else:
                batch = self._next(drawn)
                found += self._maxima(batch) if not known else []
                self._modelled += drawn
        found = [*recalled, *found[len(recalled) :]]
        # What has a grid is heard of where it really is.
        return self._flight.ask([(p, self._units(p)) for p in found])

    def tell(
        self,
        params: Sequence[Mapping[str, Value]],
        scores: Sequence[Told],
        behaviours: Sequence[Behaviour | None] | None = None,
    ) -> None:
        """See `Optimizer.tell`."""
        for point, worth in zip(*self._flight.tell(params, scores), strict=True):
            best = self._best[-1] if self._best else None
            if worth.error is None and not worth.failed and (best is None or worth.key > self._worths[best].key):
                best = len(self._worths)
            insort(self._surest, (_unsure(worth), -len(self._worths)))
            self._at.setdefault(point.tobytes(), []).append(len(self._worths))
            self._points.append(point)
            self._worths.append(worth)
            self._best.append(best)

    def _first_ones(self, n: int) -> list[dict[str, Value]]:
        """Candidates around the start: a function of the seed and of how many were drawn before."""
        random = np.random.default_rng([self._seed, self._draws])
        points: Numbers = self._start + self._steps * random.standard_normal((n, len(self._start)))
        for row, known in zip(points, self._warm[self._first :], strict=False):
            row[:] = known
        return self._params(points)

    def _ahead(self, n: int, known: bool) -> list[dict[str, Value]]:
        """The next candidates without generations, from what was drawn ahead; none where they are known."""
        found: list[dict[str, Value]] = []
        for _ in range(n):
            batch = self._batch
            if batch.given == batch.size:
                batch = self._batch = self._next(max(1, self.generation // AHEAD))
            if not known:
                batch.drawn = batch.drawn or self._maxima(batch)
                found.append(batch.drawn[batch.given])
            batch.given += 1
            self._modelled += 1
        return found

    def _next(self, size: int) -> _Batch:
        """What is drawn next, by the process of what is told by now."""
        self._draws += 1
        return _Batch(self._draws, len(self._points), self._modelled, size)

    def _maxima(self, batch: _Batch) -> list[dict[str, Value]]:
        """Candidates by the process: a function of the seed and of what was told and drawn when they were asked for."""
        random = np.random.default_rng([self._seed, batch.draw])
        often = max(self.generation, GENERATION)
        means = [(batch.modelled + i) % often == 0 for i in range(batch.size)]
        return self._params(self._model(batch.told).maxima(means, random))

    def _params(self, points: Numbers) -> list[dict[str, Value]]:
        return [{p.name: from_unit(p, u) for p, u in zip(self._numbers, point, strict=True)} for point in points]

    def _model(self, told: int) -> Process:
        """The process of the first scores, with hyperparameters of when there were as many as the last step of a
        ladder."""
        from evomerge.optimizers.hyperparameters import fit
        from evomerge.optimizers.process import Process

        step = FIRST
        while (higher := math.ceil(step * AGAIN)) <= told:
            step = higher
        if self._fitted is None or self._fitted[0] != step:
            self._fitted = (step, fit(*self._table(step)))
        return Process(*self._table(told), self._fitted[1])

    def _table(self, n: int) -> tuple[Numbers, Numbers, Numbers]:
        """Points, values and standard errors of those of the first n that it knows."""
        rows = self._chosen(n)
        worths = [self._worths[i] for i in rows]
        errors = np.array([w.error or 0.0 for w in worths])
        return np.array([self._points[i] for i in rows]), values(worths), errors

    def _chosen(self, n: int) -> list[int]:
        """Which of the first n it knows: the latest, the best that has all items, and the surest of the others.

        Of equal candidates one counts, that with the least error: their scores rest on the same items, so that
        together they say no more.
        """
        best, known = self._best[n - 1], {}
        certain = [*range(max(0, n - LATEST), n), *(() if best is None else (best,))]
        for i in chain(certain, (-i for _, i in self._surest if -i < n)):
            place = self._points[i].tobytes()
            if place not in known:
                known[place] = min(
                    (j for j in self._at[place] if j < n),
                    key=lambda j: (self._worths[j].failed, _unsure(self._worths[j]), -j),
                )
                if len(known) == KNOWN:
                    break
        return sorted(known.values())

    def _units(self, params: Mapping[str, Value]) -> Numbers:
        return np.array([to_unit(p, float(params[p.name])) for p in self._numbers])


def _unsure(worth: Worth) -> float:
    """How unsure a score is: not at all where the candidate failed, wholly where nobody knows."""
    return math.inf if worth.error is not None and math.isnan(worth.error) else worth.error or 0.0


def values(worths: Sequence[Worth]) -> Numbers:
    """What candidates are worth as values for a process, shape (n,), all finite.

    None counts as further below the median (of different values) than `FLOOR` times what the best is above it, and what
    failed counts as being there: else one that is worse than anything would be most of what there is to explain. Where
    some miss a constraint they are places in the order, as for the other optimizers.
    """
    if any(w.missed for w in worths if not w.failed):
        return -losses(worths)
    told = np.array([-math.inf if w.failed else w.values[0] for w in worths])
    if not np.isfinite(told).any():
        return np.zeros(len(told))
    best, middle = told.max(), np.quantile(np.unique(told), 0.5, method="higher")
    found: Numbers = np.maximum(told, middle - FLOOR * ((best - middle) or 1.0))
    return found
