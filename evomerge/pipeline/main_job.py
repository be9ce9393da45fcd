"""The main job: search, control searches, the winner chosen on `select`, the one look at `test`, the export."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

from evomerge.errors import StudyError
from evomerge.pipeline.export import write_checkpoint
from evomerge.pipeline.plan import Options, Plan
from evomerge.score import State, Trial
from evomerge.study import final, place
from evomerge.study.budget import Budget
from evomerge.study.loop import Decode, Search, check_some_complete
from evomerge.study.outcome import Measured, Outcome
from evomerge.study.store import Store, Study
from evomerge.study.watcher import Silent, Watcher
from evomerge.study.workers import LocalPool, Pool, RayPool

ENDED = {
    "budget": "the budget is spent",
    "patience": "no better one for as long as --patience allows",
    "converged": "the optimizer has converged",
}


def search(options: Options, watcher: Watcher | None = None) -> Outcome:
    """Run or resume a search, to the exported winner and its held-out evidence.

    Raises:
        InputError: what was given is wrong; nothing was started.
        EvoMergeError: every candidate failed, or a source cannot be scored.
    """
    watcher = watcher or Silent()
    watcher.say("checking space, evaluator and sources")
    plan = Plan(options)
    with place.locked(plan.out, plan.storage):
        store = Store(plan.storage, create=True)
        if plan.options.storage is None:
            # A folder's own database belongs to one study: a second one would take its results' place.
            others = [n for n in store.names() if n.partition("/")[0] != plan.name]
            if others:
                raise StudyError(f'--out {plan.out}: holds study "{others[0]}"; give another --out for "{plan.name}"')
        study = store.create(plan.name, plan.space.parameters, plan.fingerprint(plan.space, plan.sampler))
        plan.keep(study, plan.config)
        pool = _pool(plan, watcher)
        try:
            return _run(plan, store, study, pool, watcher)
        finally:
            pool.close()


def _run(plan: Plan, store: Store, study: Study, pool: Pool, watcher: Watcher) -> Outcome:
    for line in plan.cost(pool.size):
        watcher.say(line)
    there = sum(t.state is not State.RUNNING for t in study.trials())
    if there:
        watcher.say(f'study "{plan.name}" goes on: {there} candidates are there')
    watcher.say("scoring the sources on the search items")
    baselines = plan.baselines()
    scores, each = final.search_scores(pool, study, baselines)
    lines = {name: s.value for name, s in scores.items()}
    budget, options = plan.options.budget, plan.options
    if each is not None and budget.candidates is not None:
        searches = 1 + (len(plan.control_searches()) if options.controls else 0)
        estimate = each * (budget.candidates * searches - there) / pool.size
        if estimate >= 10:
            watcher.say(f"about {_minutes(estimate)} of evaluation, as long as the sources' took")
    watcher.begin("search", budget, lines, _spent(study))
    decode = plan.decode(plan.space)
    trials, stopped = Search(
        study, plan.optimizer(plan.space), decode, plan.hash, pool, budget, watcher, options.patience
    ).run()
    check_some_complete(trials)
    seconds = _spent(study)
    watcher.say(f"the search ended after {len(trials)} candidates: {ENDED[stopped]}")
    controls = _controls(plan, store, pool, len(trials), lines, watcher) if options.controls else []
    watcher.say("choosing the winner on the select items")
    winner, select = final.choose_winner(pool, study, trials, decode, plan.hash)
    recipe = decode(winner.params)
    watcher.say(f"chosen: candidate {winner.number}, search {winner.value:.3f}, select {select.value:.3f}")
    watcher.say("scoring the winner and what it must beat on the test items")
    measured, looks = final.measure(pool, study, baselines, winner, recipe, select)
    measured[-1:-1] = controls
    signed = recipe.signed(plan.contents, {"study": plan.name, "trial": winner.number, "seed": options.seed})
    model = plan.out / "model"
    watcher.say(f"writing {model}")
    write_checkpoint(plan.sources, signed, model, overwrite=True)
    return Outcome(
        study=plan.name, storage=plan.storage, seed=options.seed, space=plan.config.name, evaluator=plan.evaluator.name,
        trials=tuple(trials), best=winner, recipe=signed, recipe_hash=plan.hash(recipe),
        measured=tuple(replace(m, recipe=signed) if m.role == "best" else m for m in measured), looks=looks,
        stopped=stopped, seconds=seconds, model=model, lines=lines,
    )  # fmt: skip


def _controls(
    plan: Plan, store: Store, pool: Pool, candidates: int, lines: Mapping[str, float], watcher: Watcher
) -> list[Measured]:
    """Search each task vector alone, and the whole space at random, at the main search's budget.

    Shrinking one fine-tune towards its base can pass for synergy; these tell it from one (facts: a tiny replication).
    """
    measured = []
    for name, space, sampler in plan.control_searches():
        study = store.create(f"{plan.name}/{name}", space.parameters, plan.fingerprint(space, sampler))
        plan.keep(study, space.config)
        budget = Budget(candidates=candidates)
        watcher.begin(f"control: {name}", budget, lines, _spent(study))
        decode = plan.decode(space)
        optimizer = plan.control_optimizer(space, sampler)
        trials, _ = Search(study, optimizer, decode, plan.hash, pool, budget, watcher).run()
        check_some_complete(trials)
        measured.append(_control(name, study, pool, trials, decode, plan))
    return measured


def _control(name: str, study: Study, pool: Pool, trials: list[Trial], decode: Decode, plan: Plan) -> Measured:
    winner, select = final.choose_winner(pool, study, trials, decode, plan.hash)
    recipe = decode(winner.params)
    found, _ = final.measure(pool, study, [], winner, recipe, select)
    return Measured(name, "control", found[-1].test, winner.score, select, recipe)


def _pool(plan: Plan, watcher: Watcher) -> Pool:
    arguments = (plan.sources, plan.live, plan.evaluator)
    if plan.options.cluster.workers == 0:
        return LocalPool(*arguments)
    watcher.say("starting the workers")
    return RayPool(plan.options.cluster, *arguments, say=watcher.say)


def _spent(study: Study) -> float:
    """Seconds of search so far, all runs together."""
    return float(study.notes().get("seconds", 0.0))


def _minutes(seconds: float) -> str:
    return f"{seconds:.0f} seconds" if seconds < 90 else f"{seconds / 60:.0f} minutes"
