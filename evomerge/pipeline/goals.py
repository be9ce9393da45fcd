"""What a search over a space is after, told from the evaluator's file and the space, and checked against both."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from evomerge.errors import EvaluatorError, choose
from evomerge.evaluation import Evaluator
from evomerge.evaluation.config import EvaluatorConfig
from evomerge.evaluation.goals import DEPTH, SCORE
from evomerge.optimizers import OPTIMIZERS
from evomerge.space import DataflowConfig, SpaceConfig
from evomerge.study.goals import Goals


def objectives_of(evaluator: EvaluatorConfig, space: SpaceConfig | DataflowConfig) -> tuple[str, ...]:
    """The evaluator's; of paths also the depth where the space says so."""
    named = tuple(evaluator.objectives)
    counted = [t.name for t in evaluator.tasks if t.weight]
    if len(named) == 1 and [*named] == counted:
        named = (SCORE,)  # which is that one task's
    by_depth = isinstance(space, DataflowConfig) and space.depth.objective
    return (*named, DEPTH) if by_depth and DEPTH not in named else named


def check_goals(goals: Goals, evaluator: Evaluator, file: str, paths: bool) -> None:
    """Raise where an objective or a constraint is about something that is not there.

    Args:
        file: What messages call the evaluator.
        paths: Whether candidates are paths, which have a depth.

    Raises:
        EvaluatorError: naming the nearest that is there.
    """
    tasks = list(evaluator.items("search"))
    measures = [f"{t}.{m}" for t in tasks for m in evaluator.measures(t)]
    known = [*tasks, *measures, *([DEPTH] if paths else [])]
    for what, names in (("objectives", goals.objectives), ("constraints", [c.of for c in goals.constraints])):
        valid = [SCORE, *known] if what == "objectives" else known
        for name in (n for n in names if n not in valid):
            why = "only paths have one" if name == DEPTH else choose(name, valid)
            raise EvaluatorError(f"{file}: {what}: {name}: not of this evaluator and space; {why}")


def no_race(sampler: str, goals: Goals, evaluator: EvaluatorConfig, items: Mapping[str, Sequence[str]]) -> str | None:
    """Why candidates cannot be scored block by block, in words, as far as it is known before any is scored.

    Args:
        items: Ids of the search items of each task.
    """
    if OPTIMIZERS[sampler].whole:
        return f"sampler {sampler} needs the result of every item of each candidate"
    if not goals.plain:
        return "the search has other objectives or constraints than the score"
    own = [t.name for t in evaluator.tasks if t.weight and items.get(t.name) == ()]
    return f'task "{own[0]}" brings its own items (give them by `items: FILE.jsonl`)' if own else None
