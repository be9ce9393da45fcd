"""MAP-Elites and CMA-ME by pyribs: the best candidate of every mix of the tasks' values.

Objective is the score, measures are the values in each task that counts (as in CycleQD, arXiv 2410.14735, without its
rotation of tasks). Candidates that failed have no values: they are not in the archive, and to CMA-ME they rank last.
pyribs' own `Scheduler` puts all it is told into the archive, so archive and emitters are driven here, in its way.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from evomerge.optimizers.behaviours import Elite, Grid, heard
from evomerge.optimizers.cube import Cube, Point, folded
from evomerge.optimizers.generation import Generation
from evomerge.optimizers.protocol import Behaviour, Told, Worth
from evomerge.optimizers.task_archive import Found, TaskArchive
from evomerge.score import Value
from evomerge.space.parameters import Parameter

GENERATION = 16
# Standard deviations of a step, as a share of every range, and along the line to another elite, as a share of it.
STEP, LINE = 0.05, 0.2
SIGMA = 1 / 6
EMITTERS = 3
LEAST_BATCH = 4


class _Archived:
    """What both share: the archive, and the candidates that come before it has any.

    Attributes:
        archive: See `TaskArchive`.
    """

    name: str
    elitist = True
    whole = True
    weighs = False

    def __init__(
        self,
        parameters: Sequence[Parameter],
        seed: int,
        generation: int,
        initial: Mapping[str, Value] | None,
        tasks: int,
        asynchronous: bool,
    ) -> None:
        self.generation = generation
        self.parents = generation
        self._cube = Cube(parameters)
        self._start = dict(initial) if initial is not None else {p.name: p.init for p in parameters}
        self._tasks = tasks
        draws, archive, *self._seeds = (int(s) for s in np.random.SeedSequence(seed).generate_state(2 + EMITTERS))
        self._random = np.random.default_rng(draws)
        self.archive = TaskArchive(self._cube.size, tasks, archive)
        self._flight: Generation[Point] = Generation(parameters, generation, asynchronous=asynchronous)

    @property
    def done(self) -> bool:
        """Never: there is always another cell, or a better candidate for one."""
        return False

    @property
    def coverage(self) -> float:
        """Share of the archive's cells that have a candidate."""
        return self.archive.coverage

    @property
    def qd_score(self) -> float:
        """Sum over the archive's cells of their scores (see `TaskArchive.qd_score`)."""
        return self.archive.qd_score

    def elites(self) -> list[Elite]:
        """The best candidate of each cell, the best first."""
        return self.archive.elites()

    @property
    def grid(self) -> Grid:
        """The archive's grid, and how much of it is filled."""
        return self.archive.grid

    def enqueue(self, params: Mapping[str, Value]) -> None:
        """See `Optimizer.enqueue`."""
        self._flight.enqueue(params)

    def close(
        self,
        params: Sequence[Mapping[str, Value]],
        scores: Sequence[Told],
        behaviours: Sequence[Behaviour | None] | None = None,
    ) -> None:
        """See `Archiving.close`."""
        found = self._found(params, self._flight.close(params, scores), behaviours)
        self.archive.add([f for f in found if f is not None])

    def _found(
        self,
        params: Sequence[Mapping[str, Value]],
        told: tuple[Sequence[Point], Sequence[Worth]],
        behaviours: Sequence[Behaviour | None] | None,
    ) -> list[Found | None]:
        """What the archive is to have of each of those told (None: failed).

        Args:
            told: Their points, and what they are worth.
        """
        points, worths = told
        known = heard(worths, behaviours, self._tasks)
        first = self._flight.told - len(points)
        return [
            None if h is None else Found(point, dict(p), h.score, h.behaviour.tasks, first + i, h.missed)
            for i, (point, p, h) in enumerate(zip(points, params, known, strict=True))
        ]


class MapElites(_Archived):
    """MAP-Elites with Iso+LineDD variation (Vassiliades and Mouret 2018, arXiv 1804.03906).

    A child is an elite, plus a step in all directions, plus a step along the line to another elite; both are drawn
    uniformly. The first generation, and all until one candidate has not failed, are those enqueued, the start, and
    uniform draws.

    Args:
        sigma: Standard deviation of the step in all directions, as a share of every range; default 0.05.
        population: Candidates per generation; default 16.
        initial: The start; default the parameters' own.
        tasks: Number of values that each candidate's behaviour has, 2 to 4.
    """

    name = "map-elites"

    def __init__(
        self,
        parameters: Sequence[Parameter],
        seed: int,
        *,
        population: int | None = None,
        sigma: float | None = None,
        initial: Mapping[str, Value] | None = None,
        tasks: int = 2,
        asynchronous: bool = False,
    ) -> None:
        super().__init__(parameters, seed, population or GENERATION, initial, tasks, asynchronous)
        from ribs.emitters import IsoLineEmitter

        self._emitter: Any = IsoLineEmitter(
            self.archive.ribs,
            iso_sigma=STEP if sigma is None else sigma,
            line_sigma=LINE,
            x0=self._cube.point(self._start),
            lower_bounds=np.zeros(self._cube.size),
            upper_bounds=np.ones(self._cube.size),
            batch_size=1,  # so that any number can be asked for
            seed=self._seeds[0],
        )
        self._started = False
        self._asked = 0

    def ask(self, n: int) -> list[dict[str, Value]]:
        """See `Optimizer.ask`."""
        self._flight.open(n)
        given = self._flight.take(n)
        self._started = self._started or self._start in given
        if len(given) < n and not self._started:
            given.append(self._start)
            self._started = True
        made = [(params, self._cube.point(params)) for params in given]
        while len(made) < n:
            opening = self._asked + len(made) < self.generation or self.archive.ribs.empty
            point = self._random.random(self._cube.size) if opening else np.array(self._emitter.ask()[0])
            made.append((self._cube.params(point), point))
        self._asked += n
        return self._flight.ask(made)

    def tell(
        self,
        params: Sequence[Mapping[str, Value]],
        scores: Sequence[Told],
        behaviours: Sequence[Behaviour | None] | None = None,
    ) -> None:
        """See `Optimizer.tell`; any number of candidates."""
        found = self._found(params, self._flight.tell(params, scores), behaviours)
        self.archive.add([f for f in found if f is not None])


class CmaMe(_Archived):
    """CMA-ME (Fontaine et al. 2020, arXiv 1912.02400) with improvement emitters.

    Each emitter is a CMA-ES of its own whose candidates rank by what they did to the archive: those in new cells first,
    then those that improved a cell, each by how much ("2imp"). One that brought nothing starts anew from an elite.
    Points outside the bounds are thrown back by as much as they left them (pyribs draws again until all coordinates are
    inside, which in many dimensions and near a corner does not end).

    Where candidates are enqueued, the first generations are these, filled up with draws around the start, and the
    emitters begin at elites; else they all begin at the start.

    Args:
        sigma: First standard deviation, as a share of every range; default 1/6.
        population: Candidates per generation, of all emitters together; default 4 + floor(3 ln n) for each of three.
            As many emitters as such batches fit in, at most three.
        initial: The start; default the parameters' own.
        tasks: Number of values that each candidate's behaviour has, 2 to 4.
    """

    name = "cma-me"

    def __init__(
        self,
        parameters: Sequence[Parameter],
        seed: int,
        *,
        population: int | None = None,
        sigma: float | None = None,
        initial: Mapping[str, Value] | None = None,
        tasks: int = 2,
        asynchronous: bool = False,
    ) -> None:
        batch = 4 + math.floor(3 * math.log(len(parameters)))
        super().__init__(parameters, seed, population or EMITTERS * batch, initial, tasks, asynchronous)
        count = min(max(self.generation // batch, 1), EMITTERS)
        self._batches = [self.generation // count + (i < self.generation % count) for i in range(count)]
        self._sigma = SIGMA if sigma is None else sigma
        self._emitters: list[Any] = []
        # Whether the generation in flight came from the emitters.
        self._emitted = False

    def ask(self, n: int) -> list[dict[str, Value]]:
        """See `Optimizer.ask`."""
        flight = self._flight
        flight.open(n)
        self._emitted = not flight.queue
        if self._emitted:
            self._emitters = self._emitters or self._made()
            points = [folded(x) for emitter in self._emitters for x in emitter.ask()]
            return flight.ask([(self._cube.params(x), x) for x in points])
        given = self._flight.take(n)
        start = self._cube.point(self._start)
        around = start + self._sigma * self._random.standard_normal((n - len(given), self._cube.size))
        made = [(params, self._cube.point(params)) for params in given]
        return flight.ask([*made, *((self._cube.params(x), x) for x in map(folded, around))])

    def tell(
        self,
        params: Sequence[Mapping[str, Value]],
        scores: Sequence[Told],
        behaviours: Sequence[Behaviour | None] | None = None,
    ) -> None:
        """See `Optimizer.tell`. Where all have failed so far, the emitters draw again as they are."""
        told = self._flight.tell(params, scores)
        points, found = told[0], self._found(params, told, behaviours)
        added = iter(self.archive.add([f for f in found if f is not None]))
        effects = [None if f is None else next(added) for f in found]
        if not self._emitted or self.archive.ribs.empty:
            return
        status, value = self._ranked(found, effects)
        worst = min((f.score for f in found if f is not None), default=0.0)
        objective = np.array([worst if f is None else f.score for f in found])
        first = 0
        for emitter, batch in zip(self._emitters, self._batches, strict=True):
            part = slice(first, first + batch)
            first += batch
            emitter.tell(
                solution=np.array(points[part]),
                objective=objective[part],
                measures=np.zeros((batch, self._tasks)),  # "2imp" ranks by status and value alone
                add_info={"status": status[part].astype(np.int32), "value": value[part]},
            )

    def _ranked(
        self, found: Sequence[Found | None], effects: Sequence[tuple[int, float] | None]
    ) -> npt.NDArray[np.float64]:
        """What candidates rank by: their status in the archive, then their value; shape (2, candidates).

        Those that miss constraints rank by how little, new cell or not, below all that keep them. What failed gets
        finite stand-ins: not added, and further from it than all others.
        """
        low = min((e[1] for e in effects if e is not None), default=0.0) - 1.0
        missed = sorted({f.missed for f in found if f is not None and f.missed})
        out = []
        for f, effect in zip(found, effects, strict=True):
            if f is None or effect is None:
                out.append((0.0, low - len(missed)))
            elif f.missed:
                out.append((float(effect[0] > 0), low - missed.index(f.missed)))
            else:
                out.append((float(effect[0]), effect[1]))
        return np.array(out).T

    def _made(self) -> list[Any]:
        from ribs.emitters import EvolutionStrategyEmitter

        archive = self.archive.ribs
        return [
            EvolutionStrategyEmitter(
                archive,
                x0=self._cube.point(self._start) if archive.empty else archive.sample_elites(1)["solution"][0],
                sigma0=self._sigma,
                ranker="2imp",
                batch_size=batch,
                seed=seed,
            )
            for batch, seed in zip(self._batches, self._seeds, strict=False)
        ]
