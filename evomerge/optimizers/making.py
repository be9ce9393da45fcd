"""How an optimizer of the table is made, and what is wrong with one that is asked for."""

from __future__ import annotations

import importlib
from collections.abc import Mapping, Sequence

from evomerge.errors import SpaceError, choose
from evomerge.optimizers.protocol import Optimizer
from evomerge.optimizers.table import AUTO, BIPOP, NONE, OPTIMIZERS, RESTARTS
from evomerge.score import Value
from evomerge.space.parameters import OFF_GRID, Categorical, Float, Integer, Parameter, check, default_sampler


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
            them (see `warm_start`), thompson begins around the best; the others are given the best half of a generation
            of them first.

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
