"""The one table of optimizers, and how one is made."""

from __future__ import annotations

import importlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from evomerge.errors import SpaceError, choose
from evomerge.optimizers.protocol import Optimizer
from evomerge.optimizers.restarts import BIPOP, NONE, RESTARTS
from evomerge.score import Value
from evomerge.space.parameters import OFF_GRID, Categorical, Float, Integer, Parameter, check, default_sampler

AUTO = "auto"


@dataclass(frozen=True)
class Entry:
    """One optimizer: where its class is (loaded when it is made), and what it can take.

    Attributes:
        cls: `module:class`.
        categorical: Whether it takes categorical parameters.
        least: Smallest population that its update can use.
        several: Whether it takes several objectives.
        restarts: Whether it starts again where it has converged.
        starts: Whether its first candidate is the start anyway.
        tasks: Least and largest number of tasks that count for which it is made; None: any number.
        whole: Whether it needs each candidate's behaviour (see `Optimizer.whole`).
        batches: Whether it must be told whole generations, so that it cannot be asynchronous.
        warm: Whether it begins from a distribution around another search's best.
        updates: Whether it learns from whole generations even where it is asynchronous: from as many as came together.
    """

    cls: str
    categorical: bool
    least: int
    summary: str
    several: bool = False
    restarts: bool = False
    starts: bool = False
    tasks: tuple[int, int] | None = None
    whole: bool = False
    batches: bool = False
    warm: bool = False
    updates: bool = False


_PYRIBS = "evomerge.optimizers.quality_diversity"
_OPTUNA = "evomerge.optimizers.optuna_samplers"
OPTIMIZERS: dict[str, Entry] = {
    "cma": Entry("evomerge.optimizers.cma_es:CmaEs", False, 4, "CMA-ES (pycma): floats and integers",
                 restarts=True, warm=True, updates=True),
    "catcma": Entry("evomerge.optimizers.catcma:CatCma", True, 4, "CatCMA with margin (cmaes): categories too",
                    restarts=True, warm=True, updates=True),
    "evolution": Entry("evomerge.optimizers.evolution:Evolution", True, 2, "mutations by type: paths",
                       several=True, starts=True),
    "tpe": Entry(f"{_OPTUNA}:Tpe", True, 1, "tree-structured Parzen estimator (Optuna)", several=True, starts=True),
    "gp": Entry(f"{_OPTUNA}:Gp", True, 1, "Gaussian process, for few candidates (Optuna)", several=True, starts=True),
    "nsga2": Entry(f"{_OPTUNA}:Nsga2", True, 2, "NSGA-II: several objectives (Optuna)", several=True, starts=True),
    "nsga3": Entry(f"{_OPTUNA}:Nsga3", True, 2, "NSGA-III: three or more (Optuna)", several=True, starts=True),
    "random": Entry(f"{_OPTUNA}:Random", True, 1, "uniform random search (Optuna)", several=True),
    "map-elites": Entry(f"{_PYRIBS}:MapElites", True, 1, "the best of each mix of 2 to 4 tasks' values (pyribs)",
                        tasks=(2, 4), whole=True),
    "cma-me": Entry(f"{_PYRIBS}:CmaMe", False, 4, "the same by several CMA-ES (pyribs): no categories",
                    tasks=(2, 4), whole=True, batches=True),
    "m2n2": Entry("evomerge.optimizers.m2n2:M2N2", True, 1, "competition for items, mates that complement each other",
                  whole=True),
}  # fmt: skip


def restarts_of(name: str, asked: str | None) -> str | None:
    """How an optimizer starts again where none or this is asked for; None where it cannot.

    Raises:
        SpaceError: an unknown way, or one where it has none.
    """
    if asked is not None and asked not in RESTARTS:
        raise SpaceError(f'restarts "{asked}" are unknown; {choose(asked, RESTARTS)}')
    if OPTIMIZERS[name].restarts:
        return BIPOP if asked is None else asked
    if asked not in (None, NONE):
        can = ", ".join(n for n, entry in OPTIMIZERS.items() if entry.restarts)
        raise SpaceError(f'optimizer "{name}" has no restarts, "{asked}" is asked for; these have: {can}')
    return None


def default_optimizer(parameters: Sequence[Parameter]) -> str:
    """What "auto" means for parameters of which nothing more is known (a space may know better: its `sampler`)."""
    return default_sampler(parameters)


def make_optimizer(
    name: str,
    parameters: Sequence[Parameter],
    seed: int,
    *,
    population: int | None = None,
    sigma: float | None = None,
    initial: Mapping[str, Value] | None = None,
    objectives: int = 1,
    restarts: str | None = None,
    asynchronous: bool = False,
    tasks: int = 1,
    warm: Sequence[Mapping[str, Value]] = (),
) -> Optimizer:
    """An optimizer by name ("auto": the default for these parameters).

    Args:
        population: Candidates per generation; default the optimizer's own.
        sigma: First standard deviation as a share of each range (tpe and random have none).
        initial: Where to start; default the parameters' own start.
        objectives: Number of values that candidates are told with.
        restarts: "none", "ipop" or "bipop": what follows a run that has converged (cma, catcma); default "bipop".
        asynchronous: Whether any number can be asked and told at any time.
        tasks: Number of tasks that count, of which behaviours have a value each.
        warm: The best of another search, the best first: cma and catcma begin from the normal distribution nearest to
            them (see `warm_start`), the others are given the best half of a generation of them first.

    Raises:
        SpaceError: unknown name, nothing to search, a kind of parameter that it cannot take, bad options.
    """
    name = default_optimizer(parameters) if name == AUTO else name
    if name not in OPTIMIZERS:
        raise SpaceError(f'unknown optimizer "{name}"; {choose(name, [AUTO, *OPTIMIZERS])}')
    _check(name, parameters, seed, population, sigma, tasks)
    if objectives > 1 and not OPTIMIZERS[name].several:
        can = ", ".join(n for n, entry in OPTIMIZERS.items() if entry.several)
        raise SpaceError(f'optimizer "{name}" has one objective, {objectives} are asked for; these can: {can}')
    if asynchronous and OPTIMIZERS[name].batches:
        can = ", ".join(n for n, entry in OPTIMIZERS.items() if not entry.batches)
        raise SpaceError(f'optimizer "{name}" must be told whole generations; these can be asynchronous: {can}')
    again = restarts_of(name, restarts)
    if initial is not None:
        initial = check(parameters, initial)
    module, _, cls = OPTIMIZERS[name].cls.partition(":")
    made: Optimizer = getattr(importlib.import_module(module), cls)(
        parameters, seed, population=population, sigma=sigma, initial=initial, asynchronous=asynchronous,
        **({"objectives": objectives} if objectives > 1 else {}), **({"restarts": again} if again else {}),
        **({"tasks": tasks} if OPTIMIZERS[name].tasks is not None else {}),
        **({"warm": warm} if OPTIMIZERS[name].warm else {}),
    )  # fmt: skip
    if warm and not OPTIMIZERS[name].warm:
        for params in warm[: max(1, made.generation // 2)]:
            made.enqueue(params)
    return made


def _check(
    name: str, parameters: Sequence[Parameter], seed: int, population: int | None, sigma: float | None, tasks: int
) -> None:
    problems: list[str] = []
    if (made_for := OPTIMIZERS[name].tasks) and not made_for[0] <= tasks <= made_for[1]:
        problems.append(
            f'optimizer "{name}" keeps the best of each mix of the values in {made_for[0]} to {made_for[1]} tasks that '
            f'count, the evaluator has {tasks}; "m2n2" keeps diversity over the items of any number'
        )
    if not parameters:
        problems.append("the space has nothing to search: every parameter is fixed")
    categorical = [p.name for p in parameters if isinstance(p, Categorical)]
    if categorical and not OPTIMIZERS[name].categorical:
        can = ", ".join(n for n, entry in OPTIMIZERS.items() if entry.categorical)
        problems.append(
            f'optimizer "{name}" cannot take categorical parameters ({_few(categorical)}); these can: {can}'
        )
    for p in parameters:
        if isinstance(p, Float | Integer) and not p.low < p.high:
            problems.append(f"{p.name}: low = {p.low:g} must be below high = {p.high:g}")
        if isinstance(p, Float) and p.step is not None:
            problems += _grid_problems(p, p.step)
        if isinstance(p, Categorical) and len(p.choices) < 2:
            problems.append(f"{p.name}: expected at least two choices, got {', '.join(p.choices) or 'none'}")
    if population is not None and population < (least := OPTIMIZERS[name].least):
        problems.append(f'population = {population}: optimizer "{name}" needs at least {least}')
    if sigma is not None and not 0 < sigma <= 1:
        problems.append(f"sigma = {sigma:g}: expected a share of the range, above 0 and at most 1")
    if seed < 0:
        problems.append(f"seed = {seed}: expected 0 or more")
    if problems:
        raise SpaceError("\n".join(problems))


def _few(names: Sequence[str]) -> str:
    return ", ".join(names if len(names) <= 4 else (*names[:3], f"and {len(names) - 3} more"))


def _grid_problems(parameter: Float, step: float) -> list[str]:
    where = f"{parameter.name}: step = {step:g}"
    if parameter.log:
        return [f"{where}: a parameter whose logarithm is searched has no grid"]
    if not step > 0 or not parameter.low < parameter.high:
        return [] if step > 0 else [f"{where}: expected a number above 0"]
    off = [word for word in ("high", "init") if abs(parameter.snap(v := getattr(parameter, word)) - v) > OFF_GRID]
    return [f"{where}: {word} = {getattr(parameter, word):g} is not low plus a multiple of it" for word in off]
