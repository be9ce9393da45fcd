"""How large a front of two tasks samplers find with few candidates: what chose the default for several objectives.

    python -m benchmarks.fronts

On the surrogate of the zoo's task (benchmarks/recording.py made it), whose items are split into two tasks: those that a
source answers right, and the others. Each source makes a problem of its own. The optimizers are the real ones, asked
and told as a search does it, with the starts of the preset "quickstart"; no database, no models. What counts is the
hypervolume on held-out items of the front by the search items, above the worst of base, sources and uniform merge in
each task, as a share of the box between that and 1.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from benchmarks.replayed import BOUNDED, INIT, ITEMS, SOURCES, load, names
from benchmarks.surrogate import Numbers, Surrogate
from evomerge.optimizers import OPTIMIZERS, make_optimizer
from evomerge.optimizers.domination import dominated
from evomerge.space import Float, load_space
from evomerge.study.goals import hypervolume

SAMPLERS = ("evolution", "nsga2", "tpe", "nsga3", "random")
AFTER = (50, 100, 200)


@dataclass(frozen=True)
class Problem:
    """Two tasks, and which of their items a search sees.

    Attributes:
        first: Whether each item belongs to the first task, shape (items,).
        seen: Places of the search items; the others are held out.
    """

    surrogate: Surrogate
    first: np.ndarray
    seen: Numbers

    @classmethod
    def of(cls, surrogate: Surrogate, source: int, seed: int) -> Problem:
        """The items that a source answers right, and the others."""
        first = surrogate.answers(vertex(source)) > 0.5
        return cls(surrogate, first, np.random.default_rng([0, seed]).permutation(surrogate.items)[:ITEMS])

    def values(self, params: Numbers) -> tuple[float, ...]:
        """What a search is told of a candidate: the share of right answers to each task's search items."""
        right, first = self.surrogate.answers(params)[self.seen], self.first[self.seen]
        return float(right[first].mean()), float(right[~first].mean())

    def held_out(self, params: Numbers) -> tuple[float, ...]:
        """The mean probability of a right answer to each task's other items."""
        held = np.ones(self.surrogate.items, bool)
        held[self.seen] = False
        right = self.surrogate.probabilities(params)[0]
        return float(right[held & self.first].mean()), float(right[held & ~self.first].mean())

    def share(self, candidates: Sequence[tuple[Numbers, tuple[float, ...]]]) -> float:
        """The share of the box above the reference that the front of some candidates dominates, on held-out items."""
        points = [np.zeros(len(names())), *map(vertex, range(SOURCES)), np.full(len(names()), 1 / SOURCES)]
        reference = np.min([self.held_out(p) for p in points], axis=0)
        values = np.array([v for _, v in candidates])
        front = [p for (p, _), beaten in zip(candidates, dominated(values), strict=True) if not beaten]
        return hypervolume([self.held_out(p) for p in front], reference.tolist()) / float(np.prod(1.0 - reference))


def vertex(source: int) -> Numbers:
    """The parameters that give a source as it is."""
    return np.repeat(np.eye(SOURCES), len(names()) // SOURCES, axis=1)[source]


def found(sampler: str, source: int, seed: int) -> list[float]:
    """The share of the box that one search dominates after each number of candidates."""
    problem = Problem.of(load()[0], source, seed)
    parameters = [Float(name, *BOUNDED, INIT) for name in names()]
    optimizer = make_optimizer(sampler, parameters, seed, objectives=2)
    for start in load_space("quickstart").bind(4).starts():  # type: ignore[union-attr]
        optimizer.enqueue(start.params)
    candidates: list[tuple[Numbers, tuple[float, ...]]] = []
    while len(candidates) < AFTER[-1]:
        asked = optimizer.ask(optimizer.generation)
        points = [np.array([float(v) for v in params.values()]) for params in asked]
        told = [problem.values(p) for p in points]
        optimizer.tell(asked, told)
        candidates += zip(points, told, strict=True)
    return [problem.share(candidates[:count]) for count in AFTER]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--seeds", type=int, default=10)
    parser.add_argument("--first", type=int, default=0, help="the first seed (default: 0)")
    several = [name for name, entry in OPTIMIZERS.items() if entry.several]
    parser.add_argument("--samplers", nargs="+", choices=several, default=SAMPLERS, metavar="NAME")
    args = parser.parse_args()
    seeds = range(args.first, args.first + args.seeds)
    counts = ", ".join(map(str, AFTER))
    print(
        f"share of the box on held-out items after {counts} candidates; {len(seeds)} seeds of {SOURCES} problems; in "
        f"brackets the paired difference to {args.samplers[0]} and its standard error"
    )
    base = None
    for sampler in args.samplers:
        started = time.monotonic()
        shares = np.array([found(sampler, source, seed) for source in range(SOURCES) for seed in seeds])
        base = shares if base is None else base
        lead = shares - base
        errors = lead.std(axis=0, ddof=1) / np.sqrt(len(lead))
        cells = [f"{m:.3f} ({d:+.3f} ± {e:.3f}, better in {w})" for m, d, e, w in
                 zip(shares.mean(axis=0), lead.mean(axis=0), errors, (lead > 0).sum(axis=0), strict=True)]  # fmt: skip
        print(f"{sampler:10} {'   '.join(cells)}   {time.monotonic() - started:.0f} s", flush=True)


if __name__ == "__main__":
    main()
