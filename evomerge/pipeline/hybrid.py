"""Hybrid searches: first merged weights, then paths over the layers of the merge and its sources (arXiv 2403.13187).

The first stage is a search of its own, STUDY/parameter, in the same database; its winner is chosen on the select items
and written to OUT/parameter/model, which the second stage takes as one more source. The first stage never looks at the
test items. Once it has a winner it stays as it is: a larger budget later goes to the second stage.
"""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path

from evomerge.errors import InputError, StudyError
from evomerge.optimizers import OPTIMIZERS, make_optimizer
from evomerge.pipeline.export import write_checkpoint
from evomerge.pipeline.models import live_of, second_space, told_of
from evomerge.pipeline.one_space import check_alone, opened, run, searched, spent
from evomerge.pipeline.options import Asked, Options
from evomerge.pipeline.plan import FirstStage, Plan
from evomerge.recipe import Recipe
from evomerge.score import cost
from evomerge.sources import Source, open_sources
from evomerge.space import MERGED, HybridConfig
from evomerge.study import final, place, tables
from evomerge.study.budget import Budget
from evomerge.study.database import shown, table_names
from evomerge.study.outcome import Outcome
from evomerge.study.store import Store, Study
from evomerge.study.watcher import Watcher

FIRST = "parameter"


def run_hybrid(options: Options, asked: Asked, watcher: Watcher) -> Outcome:
    """Run or resume both stages of a hybrid search.

    Raises:
        InputError: what was given is wrong with either stage; nothing was started.
        EvoMergeError: every candidate of a stage failed, or a source cannot be scored.
    """
    config = asked.config
    assert isinstance(config, HybridConfig)
    if options.enqueue:
        raise InputError("--enqueue: a hybrid space takes no recipes of one's own; give them to a search of one kind")
    name = asked.study(options)
    out = options.out or Path("runs") / name
    storage = place.storage_url(options.storage) if options.storage else place.default_storage(out)
    options = replace(options, study=name, out=out)
    # All of both stages that can be told now is, before anything is written.
    models = open_sources(config.references(), root=asked.root, weights=False)
    sampler = _check_second(config, models[live_of(config.parameter)], options, asked.root)
    place.check(out, storage, [f for s in models.values() for f in s.folders], name)
    _check_names(storage, None if options.storage else out, name)
    share = _share(options.budget, config.share)
    first = Plan(
        replace(
            options, budget=share, study=f"{name}/{FIRST}", out=out / FIRST, storage=storage, controls=False,
            sampler=_first_sampler(options.sampler),
        ),
        Asked(config.parameter, asked.evaluator, asked.root),
    )  # fmt: skip
    split = f"budget {options.budget}: {share} for merged weights ({config.share:.0%}), the rest for paths"
    stage = _first_stage(first, split, watcher)
    rest = _rest(options.budget, stage)
    watcher.say("the second stage: paths over the layers of the merge and its sources")
    second = Asked(config.dataflow(stage.model), asked.evaluator, asked.root)
    # Where its optimizer has none, restarts are those of the first stage.
    restarts = options.restarts if OPTIMIZERS[sampler].restarts else None
    plan = Plan(replace(options, budget=rest, restarts=restarts), second, stage)
    return run(plan, watcher)


def _check_names(storage: str, alone: Path | None, name: str) -> None:
    """Raise where a database holds what neither stage could go on with.

    Args:
        alone: The folder of the database, where that is to hold this search alone.
    """
    if not table_names(storage, missing_ok=True) >= tables.NAMES:
        return
    store = Store(storage)
    if alone is not None:
        check_alone(store, alone, name)
    names = store.names()
    if name in names and f"{name}/{FIRST}" not in names:
        where = f'study "{name}" in {shown(storage)}'
        raise StudyError(f"{where} is not that of a hybrid search; give another --study name")


def _first_sampler(sampler: str) -> str:
    """The option speaks of the second stage where the first cannot take it: evolution is made for paths."""
    return "auto" if sampler == "evolution" else sampler


def _share(budget: Budget, share: float) -> Budget:
    """The first stage's part of a budget."""
    if budget.candidates is None:
        return Budget(seconds=(budget.seconds or 0.0) * share)
    if budget.candidates < 2:
        raise InputError(f"--budget {budget}: a hybrid search has two stages: expected at least 2 candidates")
    return Budget(candidates=min(max(round(budget.candidates * share), 1), budget.candidates - 1))


def _rest(budget: Budget, stage: FirstStage) -> Budget:
    """What the first stage left: it may have ended early, or, when the budget has grown, long ago."""
    if budget.candidates is None:
        return Budget(seconds=max((budget.seconds or 0.0) - stage.seconds, 1.0))
    return Budget(candidates=max(budget.candidates - math.ceil(stage.cost - 1e-9), 1))


def _check_second(config: HybridConfig, merge: Source, options: Options, root: Path | None) -> str:
    """Bind the second stage's space, and make its optimizer, before the first stage takes any time.

    Args:
        merge: A model of the shape that the first stage's winner will have.

    Returns:
        The optimizer's name.
    """
    with told_of(options.space):
        space = second_space(config, merge, root)
    objectives = 2 if config.paths.depth.objective else 1
    with told_of(f"--sampler {options.sampler}"):
        return make_optimizer(
            options.sampler_for(space), space.parameters, options.seed, population=options.population,
            sigma=options.sigma, objectives=objectives,
        ).name  # fmt: skip


def _first_stage(plan: Plan, split: str, watcher: Watcher) -> FirstStage:
    """The first stage's winner as a checkpoint, searched for unless an earlier run did.

    Args:
        split: How the budget is split, in words.
    """
    model = (plan.out / "model").resolve()
    found = _found(plan)
    if found is None:
        watcher.say(split)
        with opened(plan, watcher) as (_, study, pool):
            watcher.say("the first stage: merged weights")
            done = searched(plan, study, pool, watcher, "first stage")
            watcher.say("choosing the first stage's winner on the select items")
            decode = plan.decode(plan.space)
            goals = final.goals_on(pool, study, "select", done.goals, plan.baselines())
            winner, select = final.choose_winner(pool, study, done.trials, decode, plan.hash, goals)
            watcher.say(f"chosen: candidate {winner.number}, search {winner.value:.3f}, select {select.value:.3f}")
            study.note("winner", winner.number)
        # As the database has it, which a run that goes on will read: a number may lose its last bits there.
        found = _found(plan)
        assert found is not None
    else:
        watcher.say("the first stage has its winner already; what is left of the budget is the second's")
    # Written again on every run: it takes less than finding out whether what lies there is whole.
    watcher.say(f"writing {model}")
    with place.locked(plan.out, plan.storage):
        write_checkpoint(plan.sources, found, found, model, overwrite=True)
    study = Store(plan.storage).open(plan.name)
    trials = study.trials()
    return FirstStage(MERGED, str(model), found, plan, len(trials), cost(trials), spent(study))


def _found(plan: Plan) -> Recipe | None:
    """The signed recipe of a first stage that has its winner."""
    database = place.sqlite_path(plan.storage)
    if database is not None and not database.exists():
        return None
    store = Store(plan.storage, create=True)
    if plan.name not in store.names():
        return None
    study: Study = plan.begin(store)
    winner = study.notes().get("winner")
    if winner is None:
        return None
    params = {t.number: t.params for t in study.trials()}[winner]
    signed = plan.signed(plan.decode(plan.space)(params), winner)
    assert isinstance(signed, Recipe)
    return signed
