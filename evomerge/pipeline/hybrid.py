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
from evomerge.study import final, place, schema
from evomerge.study.budget import Budget
from evomerge.study.database import shown, table_names
from evomerge.study.outcome import Outcome
from evomerge.study.status import ENDED_NOTE
from evomerge.study.stopping import Stop
from evomerge.study.store import Store, Study
from evomerge.study.watcher import Watcher

FIRST = "parameter"


def run_hybrid(options: Options, asked: Asked, watcher: Watcher, stop: Stop) -> Outcome:
    """Run or resume both stages of a hybrid search.

    Raises:
        InputError: what was given is wrong with either stage; nothing was started.
        EvoMergeError: every candidate of a stage failed, or a source cannot be scored.
    """
    stages = Stages(options, asked)
    stages.check()
    first = stages.first()
    stage = _first_stage(first, stages.split, watcher, stop)
    watcher.say("the second stage: paths over the layers of the merge and its sources")
    return run(stages.second(stage), watcher, stop)


class Stages:
    """The plans of both stages.

    Args:
        writes: Whether they will drive the study; False for a process that joins it.

    Raises:
        InputError: what was given is wrong with either stage.
    """

    def __init__(self, options: Options, asked: Asked, writes: bool = True) -> None:
        assert isinstance(asked.config, HybridConfig)
        if options.enqueue:
            raise InputError(
                "--enqueue: a hybrid space takes no recipes of one's own; give them to a search of one kind"
            )
        self.config, self._asked, self._writes = asked.config, asked, writes
        self.name = asked.study(options)
        self.out = options.out or Path("runs") / self.name
        self.storage = place.storage_url(options.storage) if options.storage else place.default_storage(self.out)
        self._alone = None if options.storage else self.out
        self._options = replace(options, study=self.name, out=self.out)
        # All of both stages that can be told now is, before anything is written.
        self._models = open_sources(self.config.references(), root=asked.root, weights=False)
        merge = self._models[live_of(self.config.parameter, self._models)]
        self._sampler = _check_second(self.config, merge, self._options, asked.root)
        self._share = _share(options.budget, self.config.share)

    def check(self) -> None:
        """Raise where the output folder or the database is another search's."""
        place.check(self.out, self.storage, [f for s in self._models.values() for f in s.folders], self.name)
        _check_names(self.storage, self._alone, self.name)

    @property
    def split(self) -> str:
        """How the budget is split, in words."""
        share = self.config.share
        return f"budget {self._options.budget}: {self._share} for merged weights ({share:.0%}), the rest for paths"

    def first(self) -> Plan:
        """The search for merged weights."""
        options = replace(
            self._options, budget=self._share, study=f"{self.name}/{FIRST}", out=self.out / FIRST,
            storage=self.storage, controls=False, sampler=_first_sampler(self._options.sampler),
        )  # fmt: skip
        return Plan(options, Asked(self.config.parameter, self._asked.evaluator, self._asked.root), writes=self._writes)

    def second(self, stage: FirstStage) -> Plan:
        """The search for paths over the first one's winner."""
        rest = _rest(self._options.budget, stage)
        asked = Asked(self.config.dataflow(stage.model), self._asked.evaluator, self._asked.root)
        # Where its optimizer has none, restarts are those of the first stage.
        restarts = self._options.restarts if OPTIMIZERS[self._sampler].restarts else None
        return Plan(replace(self._options, budget=rest, restarts=restarts), asked, stage, self._writes)


def _check_names(storage: str, alone: Path | None, name: str) -> None:
    """Raise where a database holds what neither stage could go on with.

    Args:
        alone: The folder of the database, where that is to hold this search alone.
    """
    if not table_names(storage, missing_ok=True) >= schema.NAMES:
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
    with told_of(options.file):
        space = second_space(config, merge, root)
    objectives = 2 if config.paths.depth.objective else 1
    with told_of(f"--sampler {options.sampler}"):
        return make_optimizer(
            options.sampler_for(space), space.parameters, options.seed, population=options.population,
            sigma=options.sigma, objectives=objectives,
        ).name  # fmt: skip


def _first_stage(plan: Plan, split: str, watcher: Watcher, stop: Stop) -> FirstStage:
    """The first stage's winner as a checkpoint, searched for unless an earlier run did.

    Args:
        split: How the budget is split, in words.
    """
    model = (plan.out / "model").resolve()
    found = _found(plan)
    if found is None:
        watcher.say(split)
        with opened(plan, watcher, stop) as (_, study, pool):
            watcher.say("the first stage: merged weights")
            done = searched(plan, study, pool, watcher, "first stage")
            watcher.say("choosing the first stage's winner on the select items")
            decode = plan.decode(plan.space)
            goals = final.goals_on(pool, study, "select", done.goals, plan.baselines(), watcher)
            winner, select = final.choose_winner(
                pool, study, done.trials, decode, plan.hash, goals, watcher=watcher
            )
            watcher.say(f"chosen: candidate {winner.number}, search {winner.value:.3f}, select {select.value:.3f}")
            study.note("winner", winner.number)
            study.note(ENDED_NOTE, done.stopped)
        # As the database has it, which a run that goes on will read: a number may lose its last bits there.
        found = _found(plan)
        assert found is not None
    else:
        watcher.say("the first stage has its winner already; what is left of the budget is the second's")
    # Written again on every run: it takes less than finding out whether what lies there is whole.
    watcher.say(f"writing {model}")
    with place.locked(plan.out, plan.storage):
        write_checkpoint(plan.sources, found, found, model, overwrite=True)
    return _stage(plan, model, found)


def _stage(plan: Plan, model: Path, winner: Recipe) -> FirstStage:
    study = Store(plan.storage).open(plan.name)
    trials = study.trials()
    return FirstStage(MERGED, str(model), winner, plan, len(trials), cost(trials), spent(study))


def stage_elsewhere(plan: Plan, folder: Path) -> FirstStage | None:
    """The first stage of a search that another process drives, its winner written to a folder of this one's own.

    None where it has none. The bytes are those of the driver's: a merge is the same everywhere.
    """
    study = Store(plan.storage).open(plan.name)
    winner = _winner(plan, study)
    if winner is None:
        return None
    write_checkpoint(plan.sources, winner, winner, folder, overwrite=True)
    return _stage(plan, folder, winner)


def _found(plan: Plan) -> Recipe | None:
    """The signed recipe of a first stage that has its winner."""
    database = place.sqlite_path(plan.storage)
    if database is not None and not database.exists():
        return None
    store = Store(plan.storage, create=True)
    if plan.name not in store.names():
        return None
    return _winner(plan, plan.begin(store))


def _winner(plan: Plan, study: Study) -> Recipe | None:
    winner = study.notes().get("winner")
    if winner is None:
        return None
    params = {t.number: t.params for t in study.trials()}[winner]
    signed = plan.signed(plan.decode(plan.space)(params), winner)
    assert isinstance(signed, Recipe)
    return signed
