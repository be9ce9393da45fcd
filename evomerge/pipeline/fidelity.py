"""Whether candidates are raced, and what scores them: decided once per study, from what its evaluator returns."""

from __future__ import annotations

from evomerge.errors import InputError, StudyError
from evomerge.evaluation.draw import Draw
from evomerge.pipeline.plan import Plan
from evomerge.score import Score
from evomerge.study.contest import Rules
from evomerge.study.known import KnownResults
from evomerge.study.raced import Raced
from evomerge.study.scoring import Scoring
from evomerge.study.store import Study
from evomerge.study.workers import Pool

FIDELITIES = ("auto", "full", "race")
NOTE = "fidelity"
# Below, a block of items says little and a race saves less than building candidates again costs.
FEWEST = 64


def scoring_for(plan: Plan, study: Study, pool: Pool, like: Score) -> tuple[Scoring, Raced | None]:
    """What scores a study's candidates, and their race (None: each is scored on all items).

    Args:
        like: Any model's score on the search items.

    Raises:
        InputError: a race is asked for that the evaluator cannot give.
        StudyError: the study was begun the other way.
    """
    weights = {t.task: t.weight for t in like.weighted}
    obstacle = _obstacle(plan, like)
    draw = known = None
    if all(t.by_item and plan.search_items.get(t.task) for t in like.weighted):
        draw = Draw.of(plan.search_items, weights, plan.options.seed)
        known = KnownResults(study.results, draw, plan.versions, like)
    wanted = _settled(plan.options.fidelity, study, obstacle, draw)
    raced = Raced(draw, Rules.over(draw.weights)) if wanted == "race" and draw is not None else None
    return Scoring(pool, draw, known), raced


def _obstacle(plan: Plan, like: Score) -> str | None:
    """Why candidates cannot be scored block by block, in words."""
    whole = next((t for t in like.weighted if not t.by_item), None)
    if whole is not None:
        return f'metric "{whole.metric}" of task "{whole.task}" has no result per item'
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
