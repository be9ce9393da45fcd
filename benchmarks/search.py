"""Item evaluations until the same held-out score: our search, its parts switched off, and a plain CMA-ES.

    python benchmarks/search.py --json curves.json --plot curves.png

Replays searches on a surrogate of the zoo's task, with the real loop, optimizers and database and without models
(benchmarks/recording.py made it). The plain one is mergekit-evolve's way: pycma with a first step of 1/6, no bounds,
weights from 1/n, every candidate on all items. The held-out score is the surrogate's mean probability over items that
no search sees, of the candidate that a search would hand on at that time: the best of its complete ones. Searches with
estimates are charged for the base, the sources and the uniform merge, which they learn from.
"""

from __future__ import annotations

import argparse
import json
import math
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.replayed import (
    BASELINES,
    BOUNDED,
    FREE,
    ITEMS,
    SOURCES,
    best_known,
    curve,
    load,
    names,
    replay,
)
from benchmarks.surrogate import Numbers
from evomerge.optimizers import OPTIMIZERS, Optimizer, make_optimizer
from evomerge.optimizers.protocol import Told
from evomerge.pipeline.one_space import WIDER
from evomerge.score import Value
from evomerge.space import Float, load_space
from evomerge.study.contest import DROP, RELIABILITY, Rules

SHARE = 0.95


class Plain:
    """CMA-ES as mergekit-evolve runs it; see `Optimizer`."""

    name = "plain"
    elitist = False
    whole = False

    def __init__(self, parameters: Sequence[Float], seed: int) -> None:
        import cma

        from evomerge.optimizers.cma_es import _Normal

        self._names = [p.name for p in parameters]
        never = {"tolx": 0.0, "tolfun": 0.0, "tolfunhist": 0.0, "tolflatfitness": math.inf, "tolstagnation": math.inf}
        self._es: Any = cma.CMAEvolutionStrategy(
            np.full(len(parameters), 1 / SOURCES), 1 / 6,
            {"seed": float("nan"), "randn": _Normal(seed), "verbose": -9, "signals_filename": "", **never},
        )  # fmt: skip
        self.generation = int(self._es.popsize)
        self.parents = self.generation // 2
        self.done = False

    def ask(self, n: int) -> list[dict[str, Value]]:
        self._points = self._es.ask()
        return [dict(zip(self._names, map(float, x), strict=True)) for x in self._points]

    def tell(self, params: Sequence[Mapping[str, Value]], scores: Sequence[Told], behaviours: object = None) -> None:
        # On the surrogate no candidate fails: pycma refuses a list of another length.
        self._es.tell(self._points, [-s for s in scores if isinstance(s, float)])

    def enqueue(self, params: Mapping[str, Value]) -> None:
        raise NotImplementedError("mergekit-evolve tries no recipes of one's own")


@dataclass(frozen=True)
class Way:
    """A way to search; the defaults are those of `evomerge search` for this space."""

    plain: bool = False
    sampler: str = "auto"
    starts: bool = True
    race: bool = True
    drop: float = DROP
    reliability: float = RELIABILITY
    estimates: bool = True
    turning: bool = True
    long: int | None = None  # candidates at most, however many the others without a race have

    def make(self, parameters: Sequence[Float], seed: int) -> Any:
        """Its optimizer."""
        if self.plain:
            return Plain(parameters, seed)
        made: Optimizer = make_optimizer(self.sampler, parameters, seed)
        if self.race and OPTIMIZERS[made.name].updates:
            made = make_optimizer(self.sampler, parameters, seed, population=WIDER * made.generation)
        for start in load_space("quickstart").bind(4).starts() if self.starts else ():  # type: ignore[union-attr]
            made.enqueue(start.params)
        return made

    def rules(self) -> Callable[[Numbers], Rules] | None:
        """When candidates stop."""
        return (lambda w: Rules.over(w, self.drop, self.reliability)) if self.race else None


OURS = Way()
# Its process takes long over many scores, and it is there long before.
FULL = replace(OURS, race=False, estimates=False, long=400)
WAYS: dict[str, Way] = {
    "plain CMA-ES": Way(plain=True, race=False, estimates=False),
    "ours": OURS,
    "ours, with CMA-ES": replace(OURS, sampler="cma"),
    "ours, without starts": replace(OURS, starts=False),
    "ours, without estimates": replace(OURS, estimates=False),
    "ours, nobody raced out": replace(OURS, drop=0.0),
    "ours, order never settled": replace(OURS, reliability=2.0),
    "ours, all begin with the same items": replace(OURS, turning=False),
    "ours, every candidate on all items": FULL,
    "ours, with CMA-ES on all items": replace(FULL, sampler="cma", long=None),
}


def searched(name: str, seed: int, budget: int) -> tuple[list[float], list[float]]:
    """One search's curve."""
    way = WAYS[name]
    surrogate, _ = load()
    bounds = FREE if way.plain else BOUNDED
    trials = replay(
        surrogate, seed, budget, way.make, bounds, way.rules(), modelled=way.estimates, turning=way.turning
    )
    spent, held_out = curve(surrogate, trials, seed)
    return [s + (len(BASELINES) * ITEMS if way.estimates else 0) for s in spent], held_out


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--seeds", type=int, default=10)
    parser.add_argument("--first", type=int, default=0, help="the first seed (default: 0)")
    parser.add_argument("--ways", nargs="+", choices=list(WAYS), metavar="WAY", help=f"of: {'; '.join(WAYS)}")
    parser.add_argument("--budget", type=int, default=120, help="candidates of each search (default: 120)")
    parser.add_argument("--long", type=int, default=1000, help="the same for those without a race (default: 1000)")
    parser.add_argument("--processes", type=int, default=2)
    parser.add_argument("--json", type=Path, help="write curves there")
    parser.add_argument("--plot", type=Path, help="draw curves there")
    args = parser.parse_args()
    surrogate, error = load()
    print("surrogate, on merges that it was not fitted to:", ", ".join(f"{k} {v:.3g}" for k, v in error.items()))
    top = best_known(surrogate, len(names()))
    level = SHARE * top
    print(f"best known {top:.3f}; items until {level:.3f}; held-out score after {args.budget} candidates' items")
    seeds = range(args.first, args.first + args.seeds)
    curves: dict[str, Any] = {}
    with ProcessPoolExecutor(args.processes) as pool:
        for name in args.ways or WAYS:
            budget = args.budget if WAYS[name].race else max(args.budget, WAYS[name].long or args.long)
            found = list(pool.map(searched, [name] * len(seeds), seeds, [budget] * len(seeds)))
            curves[name] = found
            needed = reached(found, level)
            last = [value_at(c, args.budget * ITEMS) for c in found]
            print(
                f"{name:36} median {np.median(needed):11,.0f} items   reached in {np.isfinite(needed).sum()} of "
                f"{len(seeds)} within {budget * ITEMS:,}   held-out {np.mean(last):.3f} ({min(last):.3f} .. "
                f"{max(last):.3f})", flush=True,
            )  # fmt: skip
    for name in curves:
        if name != "ours" and "ours" in curves:
            print(against(name, curves, level, args.budget * ITEMS), flush=True)
    if args.json is not None:
        args.json.write_text(json.dumps({"best_known": top, "curves": curves}))
    if args.plot is not None:
        plot(curves, top, args.plot)


def reached(found: Sequence[tuple[list[float], list[float]]], level: float) -> Numbers:
    """Of each search, the items until its held-out score was at a level; infinite where it never was."""
    return np.array([next((s for s, v in zip(*c, strict=True) if v >= level), math.inf) for c in found])


def against(name: str, curves: Mapping[str, Any], level: float, items: int) -> str:
    """How ours compares with another way, seed by seed, in words.

    The ratio is that of the median items until the level, its interval the bootstrap's over seeds (percentiles of
    10,000 draws); the difference of held-out scores after so many items is paired by seed, its interval Student's.
    """
    other, ours = reached(curves[name], level), reached(curves["ours"], level)
    drawn = np.random.default_rng(0).integers(len(ours), size=(10_000, len(ours)))
    with np.errstate(invalid="ignore"):
        ratios = np.nan_to_num(
            np.median(other[drawn], axis=1) / np.median(ours[drawn], axis=1), nan=1.0, posinf=math.inf
        )
        ratio = np.median(other) / np.median(ours)
    low, high = np.sort(ratios)[[250, 9749]]
    pairs = zip(curves["ours"], curves[name], strict=True)
    gains = np.array([value_at(a, items) - value_at(b, items) for a, b in pairs])
    lower, upper = interval(gains)
    return (
        f"ours against {name}: {ratio:.1f} times fewer items ({low:.1f} .. {high:.1f}); held-out after {items:,} items "
        f"{gains.mean():+.3f} (95 % {lower:+.3f} .. {upper:+.3f}), no lower in "
        f"{int((gains >= 0).sum())} of {len(gains)}"
    )


def interval(gains: Numbers) -> tuple[float, float]:
    """Student's 95 % interval of a mean."""
    from scipy import stats

    half = float(stats.sem(gains) * stats.t.ppf(0.975, len(gains) - 1)) if len(gains) > 1 else math.nan
    return float(gains.mean()) - half, float(gains.mean()) + half


def value_at(found: tuple[list[float], list[float]], items: float) -> float:
    """The held-out score of what would be handed on after so many items; 0 before there is anything."""
    return next((v for s, v in reversed(list(zip(*found, strict=True))) if s <= items), 0.0)


def plot(curves: Mapping[str, Any], top: float, path: Path) -> None:
    """Draw the median over seeds, and the middle half, over the items spent."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9.0, 5.0), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    grid = np.geomspace(2 * ITEMS, max(max(c[0][-1] for c in found if c[0]) for found in curves.values()), 200)
    for i, (name, found) in enumerate(curves.items()):
        values = np.array([[value_at(c, g) for g in grid] for c in found])
        low, middle, high = np.quantile(values, [0.25, 0.5, 0.75], axis=0)
        style = "-" if i < 2 else "--"
        axes.plot(grid, middle, style, color=f"C{i}", label=name)
        if i < 2:
            axes.fill_between(grid, low, high, color=f"C{i}", alpha=0.15, linewidth=0)
    axes.axhline(SHARE * top, color="grey", linewidth=1, linestyle=":", label="95 % of the best known")
    axes.set_xscale("log")
    axes.set_xlabel("items evaluated")
    axes.set_ylabel("held-out score of the best so far")
    axes.legend(loc="lower right", fontsize="small")
    figure.savefig(path, dpi=120, metadata={"Software": "evomerge"})


if __name__ == "__main__":
    main()
