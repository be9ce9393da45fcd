"""One search: its controls, the winner chosen on `select`, the one look at `test`, the export."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import asdict, dataclass, replace
from typing import Any

from evomerge import __version__
from evomerge.comparison import interval
from evomerge.errors import StudyError
from evomerge.pipeline import warm_start
from evomerge.pipeline.controls import Control, control_searches
from evomerge.pipeline.cost import cost_of
from evomerge.pipeline.export import write_checkpoint
from evomerge.pipeline.fidelity import ESTIMATES_NOTE, NOTE, scoring_for
from evomerge.pipeline.plan import OVERLAPS_NOTE, Plan
from evomerge.score import Interval, Score, State, Trial, cost
from evomerge.space.starts import start_of
from evomerge.study import final, place
from evomerge.study.archive import Archive
from evomerge.study.board import Board
from evomerge.study.budget import Budget
from evomerge.study.candidates import check_some_complete, layer_evaluations
from evomerge.study.goals import Goals
from evomerge.study.leases import driver_of, held, leased
from evomerge.study.loop import Decode, Search
from evomerge.study.outcome import Aims, Measured, Outcome
from evomerge.study.status import BUDGET_NOTE, ENDED_NOTE, OUT_NOTE
from evomerge.study.stopping import Stop
from evomerge.study.store import Store, Study
from evomerge.study.watcher import Beginning, Watcher
from evomerge.study.workers import JoinedPool, LocalPool, Pool, RayPool

# Kept with a study: whether it began with the space's starts, and, without generations, with how many workers.
STARTS, WORKERS = "starts", "workers"
# In a race a candidate costs little, and is told by few items: twice the population is seldom caught at the first place
# that is any good, for as many items. Kept with a study; those of before have 1.
WIDENED, WIDER = "widened", 2
ENDED = {
    "budget": "the budget is spent",
    "patience": "no better one for as long as --patience allows",
    "converged": "the optimizer has converged",
    "known": "what the optimizer still proposes is all known",
}


def run(plan: Plan, watcher: Watcher, stop: Stop) -> Outcome:
    """Run or resume a search over one space, to the exported winner and its held-out evidence.

    Raises:
        EvoMergeError: every candidate failed, or a source cannot be scored.
        Interrupted: it was asked to end.
    """
    with opened(plan, watcher, stop) as (store, study, pool):
        found = searched(plan, study, pool, watcher)
        trials, scores, goals = found.trials, found.scores, found.goals
        lines = {n: s.value for n, s in scores.items()}
        seconds, earlier = spent(study), 0.0
        if plan.first is not None:
            seconds, earlier = seconds + plan.first.seconds, plan.first.cost
        controls: list[Measured] = []
        if plan.options.controls:
            # Equal budget: both stages of a hybrid.
            controls = _controls(plan, store, study, pool, cost(trials) + earlier, scores, goals.alone, watcher)
        watcher.say("choosing the winner on the select items")
        decode = plan.decode(plan.space)
        selecting = final.goals_on(pool, study, "select", goals, plan.baselines(), watcher)
        winner, select = final.choose_winner(
            pool, study, trials, decode, plan.hash, selecting, plan.start, watcher
        )
        recipe = decode(winner.params)
        watcher.say(f"chosen: candidate {winner.number}, search {winner.value:.3f}, select {select.value:.3f}")
        if (start := start_of(plan.space.starts(), winner.params)) is not None:
            watcher.say(f"it is {start.words}, which was tried before anything was searched for: nothing beats it yet")
        watcher.say("scoring the winner and what it must beat on the test items")
        measured, looks = final.measure(pool, study, plan.baselines(), winner, recipe, select, watcher)
        measured[-1:-1] = controls
        tested = final.goals_on(pool, study, "test", goals, plan.baselines(), watcher)
        aims = Aims.of(goals, trials, scores.values(), {"select": selecting.limits, "test": tested.limits})
        signed = plan.signed(recipe, winner.number)
        shared = study.notes().get(OVERLAPS_NOTE)
        model = plan.out / "model"
        stop.check()
        watcher.say(f"writing {model}")
        write_checkpoint(plan.sources, recipe, signed, model, overwrite=True)
        study.note(ENDED_NOTE, found.stopped)
    watcher.end()
    return Outcome(
        study=plan.name, storage=plan.storage, seed=plan.options.seed, space=plan.config.name,
        evaluator=plan.evaluator.name, trials=tuple(trials), best=winner, recipe=signed,
        recipe_hash=signed.hash(plan.contents),
        measured=tuple(replace(m, recipe=signed) if m.role == "best" else m for m in measured), looks=looks,
        stopped=found.stopped, seconds=seconds, model=model, lines=lines, names=plan.names,
        first_stage=plan.first.candidates if plan.first is not None else 0,
        layers=layer_evaluations(trials), aims=aims, archive=found.archive, path=plan.path(recipe),
        depths={r: s.num_layers for r, s in plan.sources.items()}, overlaps=shared,
    )  # fmt: skip


@dataclass(frozen=True)
class Searched:
    """A search that has spent its budget, before a winner is chosen.

    Attributes:
        trials: Every candidate, by number.
        stopped: Why it ended; see `Outcome.stopped`.
        scores: Of base, sources and uniform merge on the search items.
        goals: What it was after.
        archive: What its optimizer keeps; None where it keeps nothing.
    """

    trials: list[Trial]
    stopped: str
    scores: Mapping[str, Score]
    goals: Goals
    archive: Archive | None


@contextmanager
def opened(plan: Plan, watcher: Watcher, stop: Stop) -> Iterator[tuple[Store, Study, Pool]]:
    """The database, the study in it and the workers, held for this process alone; others may join with theirs.

    Inside the block a search that is asked to end does so in good order.
    """
    with ExitStack() as stack:
        _lock(stack, plan)
        store = Store(plan.storage, create=True, say=watcher.say)
        lease = stack.enter_context(leased(store, plan.name))
        if plan.options.storage is None:
            check_alone(store, plan.out, plan.name)
        study = plan.begin(store)
        plan.keep(study, plan.config)
        own = pool_of(plan, watcher, stop)
        stack.callback(own.close)
        lease.offer(offer_of(plan, own))
        stack.enter_context(stop.orderly())
        yield store, study, JoinedPool(own, Board(store, lease.token), watcher.say)


def _lock(stack: ExitStack, plan: Plan) -> None:
    """Hold the output folder and the database's file.

    Raises:
        StudyError: another process holds them; where it drives this study, with who that is and how to join it.
    """
    try:
        stack.enter_context(place.locked(plan.out, plan.storage))
    except StudyError as e:
        raise _held(plan) or e from None


def _held(plan: Plan) -> StudyError | None:
    with suppress(StudyError):
        store = Store(plan.storage)
        driver = driver_of(store, plan.name)
        if driver is not None and not driver.gone:
            return held(store, plan.name, driver)
    return None


def _note_overlaps(plan: Plan, study: Study, watcher: Watcher) -> None:
    """Look for items that the splits share, before the first candidate; once for each study."""
    if OVERLAPS_NOTE in study.notes():
        return
    study.note(OVERLAPS_NOTE, plan.overlaps.to_dict())
    if plan.first is None:
        for line in plan.overlaps.summary():
            watcher.say(line)


def check_alone(store: Store, out: object, name: str) -> None:
    """Raise where a folder's own database holds another study, whose results this one's would replace."""
    others = [n for n in store.names() if n.partition("/")[0] != name]
    if others:
        raise StudyError(f'--out {out}: holds study "{others[0]}"; give another --out for "{name}"')


def searched(plan: Plan, study: Study, pool: Pool, watcher: Watcher, name: str = "search") -> Searched:
    """Search until the budget is spent."""
    for line in (*plan.put_into, *cost_of(plan, pool.size)):
        watcher.say(line)
    _note_overlaps(plan, study, watcher)
    ended = [t for t in study.trials() if t.state is not State.RUNNING]
    there = len(ended)
    if there:
        are = "candidate is" if there == 1 else "candidates are"
        watcher.say(f'study "{plan.name}" goes on: {there} {are} there')
    watcher.say("scoring the sources on the search items")
    budget, options = plan.options.budget, plan.options
    study.note(ENDED_NOTE, None)
    study.note(BUDGET_NOTE, asdict(budget))
    study.note(OUT_NOTE, str(plan.out.resolve()))
    scores, each = final.search_scores(pool, study, plan.baselines(), watcher)
    goals = plan.goals.limited([scores[b.name] for b in final.held_by(plan.baselines())])
    scoring, race = scoring_for(plan, study, pool, list(scores.values()))
    if race is not None:
        drop = race.rules.drop
        watcher.say(
            "candidates are raced: they stop where "
            + (f"they cannot be among the parents (a generation's best in at most {drop:.0%}), or " if drop else "")
            + "their order is settled, and cost the share of the items that they had"
        )
    if each is not None and budget.candidates is not None:
        searches = 1 + (len(control_searches(plan)) if options.controls else 0)
        estimate = each * (budget.candidates * searches - cost(ended)) / pool.size
        if estimate >= 10:
            # Candidates are built too, in a race once for each block: how long that takes the first ones will show.
            watcher.say(f"at least {_minutes(estimate)} of evaluation, by the sources'; building comes on top")
    decode = plan.decode(plan.space)
    watcher.begin(_beginning(plan, name, study, pool, budget, scores, decode))
    if plan.warm:
        study.note(warm_start.NOTE, plan.warm)
        watcher.say(f"it begins from the {len(plan.warm)} best candidates of {plan.warm_from}")
    if options.asynchronous:
        plan.workers = _workers(study, pool)
    plan.widened = _widened(study, race is not None)
    optimizer = plan.optimizer(plan.space, _starts(plan, study), plan.warm)
    if not options.asynchronous and pool.size > optimizer.generation:
        idle = pool.size - optimizer.generation
        watcher.say(f"generations of {optimizer.generation}: {idle} of {pool.size} workers have nothing to do; "
                    f"--async or --population {pool.size} uses them")  # fmt: skip
    trials, stopped = Search(
        study, optimizer, decode, plan.hash, scoring, budget, watcher, options.patience, plan.order,
        goals=goals, race=race, asynchronous=options.asynchronous,
    ).run()  # fmt: skip
    check_some_complete(trials)
    stops = sum(t.state is State.PRUNED for t in trials)
    words = f", {stops} of them stopped early, for {cost(trials):.1f} candidates' items" if stops else ""
    watcher.say(f"the search ended after {len(trials)} candidates{words}: {ENDED[stopped]}")
    if race is not None and race.estimates is not None and stops:
        study.note("estimates_choice", str(race.estimates.choice))
        watcher.say(str(race.estimates.choice))
    _say_layers(study, trials, watcher)
    if goals.limits and all(t.violation for t in trials if t.score is not None):
        limits = ", ".join(limit.words for limit in goals.limits)
        watcher.say(f"no candidate keeps all constraints ({limits}): what follows is the one that misses them least")
    return Searched(trials, stopped, scores, goals, Archive.of(optimizer, trials))


def _beginning(
    plan: Plan, name: str, study: Study, pool: Pool, budget: Budget, scores: Mapping[str, Score], decode: Decode
) -> Beginning:
    sources = tuple(b.name for b in plan.baselines() if b.role == "source")
    top = max(sources, key=lambda n: scores[n].value)
    # An interval may be a bootstrap, so that only one is made, and none where it would hold the search up.
    lines = {n: interval(s) if n == top else Interval(s.value, None, None, s.items) for n, s in scores.items()}
    items = max((s.items for s in scores.values()), default=0)
    return Beginning(name, study.name, budget, lines, sources, items, spent(study), pool.size, decode, plan.names)


def _starts(plan: Plan, study: Study) -> bool:
    """Whether what everybody tries first comes first: as the study was begun."""
    before = study.notes().get(STARTS)
    if before is None:
        before = plan.options.starts and not study.trials()  # those of before there were any have none
        study.note(STARTS, before)
    if before and not plan.options.starts:
        raise StudyError(
            f'study "{study.name}" was begun without --no-starts; leave it out, or give another --study name'
        )
    return bool(before)


def _workers(study: Study, pool: Pool) -> int:
    """With how many workers a study was begun: what it proposes may depend on them, on those it goes on with not."""
    begun = study.notes().get(WORKERS)
    if begun is None:
        begun = 0 if study.trials() else pool.size  # those of before this was kept went by none
        study.note(WORKERS, begun)
    return int(begun)


def _widened(study: Study, raced: bool) -> int:
    """How many times the optimizer's own population a generation has, as the study was begun."""
    begun = study.notes().get(WIDENED)
    if begun is None:
        begun = WIDER if raced and not study.trials() else 1
        study.note(WIDENED, begun)
    return int(begun)


def _say_layers(study: Study, trials: list[Trial], watcher: Watcher) -> None:
    """Tell, and keep, what paths' common beginnings saved."""
    layers = layer_evaluations(trials)
    if layers is not None and layers[0]:
        asked, ran = layers
        study.note("layer_evaluations", {"asked": asked, "run": ran})
        watcher.say(f"layers evaluated: {ran:,} of {asked:,}; {1 - ran / asked:.0%} were known from earlier candidates")


def _controls(
    plan: Plan, store: Store, main: Study, pool: Pool, candidates: float, scores: Mapping[str, Score], goals: Goals,
    watcher: Watcher,
) -> list[Measured]:
    """Search each control at the main search's budget.

    Shrinking one fine-tune towards its base can pass for synergy; these tell it from one (facts: a tiny replication).
    """
    measured = []
    notes = main.notes()
    selecting = final.goals_on(pool, main, "select", goals, plan.baselines(), watcher)
    for control in control_searches(plan):
        name, space, sampler = control.name, control.space, control.sampler
        stored = f"{plan.name}/{name}"
        if stored in store.names():
            sampler = plan.options.going_on(store.open(stored), sampler)
        study = store.create(stored, space.parameters, plan.fingerprint(space, sampler))
        plan.keep(study, space.config)
        budget = Budget(candidates=max(1, round(candidates)))
        decode = plan.decode(space)
        watcher.begin(_beginning(plan, f"control: {name}", study, pool, budget, scores, decode))
        optimizer = plan.control_optimizer(space, sampler)
        scoring, race = scoring_for(plan, study, pool, list(scores.values()), notes[NOTE], notes.get(ESTIMATES_NOTE))
        trials, _ = Search(
            study, optimizer, decode, plan.hash, scoring, budget, watcher, order=plan.order, race=race, goals=goals,
            asynchronous=plan.options.asynchronous,
        ).run()
        check_some_complete(trials)
        measured.append(_control(control, study, pool, trials, selecting, plan, watcher))
    return measured


def _control(
    control: Control, study: Study, pool: Pool, trials: list[Trial], goals: Goals, plan: Plan, watcher: Watcher
) -> Measured:
    decode = plan.decode(control.space)
    winner, select = final.choose_winner(pool, study, trials, decode, plan.hash, goals, watcher=watcher)
    recipe = decode(winner.params)
    found, _ = final.measure(pool, study, [], winner, recipe, select, watcher)
    return Measured(control.name, "control", found[-1].test, winner.score, select, recipe, cost(trials))


def pool_of(plan: Plan, watcher: Watcher, stop: Stop) -> Pool:
    """This process's own workers."""
    arguments = (plan.sources, plan.live, plan.evaluator, plan.options.prefix_bytes)
    if plan.options.cluster.workers == 0:
        return LocalPool(*arguments, say=watcher.say, stop=stop)
    watcher.say("starting the workers")
    return RayPool(plan.options.cluster, *arguments, say=watcher.say, stop=stop)


def offer_of(plan: Plan, pool: Pool) -> dict[str, Any]:
    """What a driver tells those that join: what they must have, lest their scores be others."""
    return {
        "study": plan.name, "program": __version__, "device": pool.device, "contents": dict(plan.contents),
        "tasks": dict(plan.versions),
    }  # fmt: skip


def spent(study: Study) -> float:
    """Seconds of search so far, all runs together."""
    return float(study.notes().get("seconds", 0.0))


def _minutes(seconds: float) -> str:
    return f"{seconds:.0f} seconds" if seconds < 90 else f"{seconds / 60:.0f} minutes"
