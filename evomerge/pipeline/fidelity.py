"""Whether candidates are raced, and what scores and estimates them: decided once per study."""

from __future__ import annotations

from collections.abc import Sequence

from evomerge.errors import InputError, StudyError
from evomerge.evaluation.draw import Draw
from evomerge.evaluation.goals import measured
from evomerge.evaluation.splits import content_id
from evomerge.pipeline.plan import Plan
from evomerge.score import Score
from evomerge.study.contest import DROP, Rules
from evomerge.study.estimator.told import Estimates
from evomerge.study.known import KnownResults
from evomerge.study.raced import Raced
from evomerge.study.scoring import Scoring
from evomerge.study.store import Study
from evomerge.study.workers import Pool

NOTE, ESTIMATES_NOTE, TURNING_NOTE = "fidelity", "estimates", "turning"
# Below, a block of items says little and a race saves less than building candidates again costs.
FEWEST = 64
# Items of every task that an order must rest on before it can be settled.
REPRESENTED = 8


def scoring_for(
    plan: Plan,
    study: Study,
    pool: Pool,
    scores: Sequence[Score],
    asked: str | None = None,
    estimates: str | None = None,
) -> tuple[Scoring, Raced | None]:
    """What scores a study's candidates, and their race (None: each is scored on all items).

    Args:
        scores: Of base, sources and uniform merge on the search items.
        asked: "full" or "race" (a control's search: as the main one); default what the options say.
        estimates: "auto" or "plain" (a control's search: as the main one); default what the options say.

    Raises:
        InputError: a race is asked for that the evaluator cannot give.
        StudyError: the study was begun the other way, or with other estimates.
    """
    like = scores[0]
    weights = {t.task: t.weight for t in like.tasks}
    obstacle = _obstacle(plan, like)
    draw = known = None
    items = {t.task: plan.search_items.get(measured(t.task)[0], ()) for t in like.tasks}
    if all(t.by_item and t.items and t.items == items[t.task] for t in like.tasks):
        draw = Draw.of(items, weights, plan.options.seed)
        versions = {task: content_id(_version(plan, task) | {"device": pool.device}) for task in weights}
        known = KnownResults(study.results, draw, versions, like)
    wanted = _settled(asked or plan.options.fidelity, study, obstacle, draw)
    if wanted == "full" or draw is None:
        return Scoring(pool, known), None
    # Bets need bounds. Whether an evaluator has any is told from what it gives the sources.
    within = all(bool(((t.results >= 0) & (t.results <= 1)).all()) for s in scores for t in s.weighted)
    drop = DROP if within else 0.0
    rules = Rules.over(draw.weights, drop, settle_from=draw.represented(REPRESENTED))
    modelled = _estimated(estimates or plan.options.estimates, study) == "auto"
    found = Estimates(draw, rules.ends, scores) if modelled else None
    return Scoring(pool, known), Raced(draw, rules, found, _turning(study), REPRESENTED)


def _version(plan: Plan, task: str) -> dict[str, str]:
    """What the results of a task depend on, or of what is measured of its answers."""
    name, measure = measured(task)
    return {"version": plan.versions[name]} | ({"measure": measure} if measure else {})


def _obstacle(plan: Plan, like: Score) -> str | None:
    """Why candidates cannot be scored block by block, in words."""
    for task in like.weighted:
        if not task.by_item:
            return f'metric "{task.metric}" of task "{task.task}" has no result per item'
        if plan.no_race is None and task.items != plan.search_items.get(task.task):
            return f'task "{task.task}" returns ids of its own; expected one result per item, in order'
    return plan.no_race


def _settled(asked: str, study: Study, obstacle: str | None, draw: Draw | None) -> str:
    """What was decided when the study began, or is now."""
    if asked == "race" and obstacle is not None:
        raise InputError(f"--fidelity race: {obstacle}; expected full")
    before = study.notes().get(NOTE)
    if before is None and study.trials():
        before = "full"  # begun before there were races
    if before is not None:
        if asked not in ("auto", before):
            raise StudyError(
                f'study "{study.name}" was begun with --fidelity {before}, now it is {asked}; give the same, or '
                "another --study name"
            )
        return str(before)
    pays = obstacle is None and draw is not None and len(draw) >= FEWEST
    found = asked if asked != "auto" else "race" if pays else "full"
    study.note(NOTE, found)
    return found


def _turning(study: Study) -> bool:
    """Whether generations begin with other items than those before: not in a study that began otherwise."""
    before = study.notes().get(TURNING_NOTE)
    if before is None:
        before = not study.trials()
        study.note(TURNING_NOTE, before)
    return bool(before)


def _estimated(asked: str, study: Study) -> str:
    """What was decided of estimates when the study began, or is now."""
    before = study.notes().get(ESTIMATES_NOTE)
    if before is None and study.trials():
        before = "plain"  # begun before there were others
    if before is not None:
        if asked not in ("auto", before):
            raise StudyError(
                f'study "{study.name}" was begun with --estimates {before}, now it is {asked}; give the same, or '
                "another --study name"
            )
        return str(before)
    study.note(ESTIMATES_NOTE, asked)
    return asked
