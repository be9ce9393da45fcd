"""What a search over a space is after, told from the evaluator's file and the space, and checked against both."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from evomerge.errors import EvaluatorError, choose
from evomerge.evaluation import Evaluator, EvaluatorFile
from evomerge.evaluation.config import EvaluatorConfig
from evomerge.evaluation.goals import DEPTH, SCORE, measured
from evomerge.optimizers import OPTIMIZERS
from evomerge.space import DataflowConfig, SpaceConfig
from evomerge.study.goals import Goals


def objectives_of(evaluator: EvaluatorConfig, space: SpaceConfig | DataflowConfig | None = None) -> tuple[str, ...]:
    """The evaluator's; of paths also the depth where the space says so.

    Args:
        space: None: not known.
    """
    named = tuple(evaluator.objectives)
    counted = [t.name for t in evaluator.tasks if t.weight]
    if len(named) == 1 and [*named] == counted:
        named = (SCORE,)  # which is that one task's
    by_depth = isinstance(space, DataflowConfig) and space.depth.objective
    return (*named, DEPTH) if by_depth and DEPTH not in named else named


def check_goals(
    evaluator: Evaluator, file: EvaluatorFile, paths: bool = True, objectives: Sequence[str] = (), by: str = ""
) -> None:
    """Raise where an objective or a constraint is about something that is not there.

    Args:
        evaluator: What the file describes.
        paths: Whether candidates may be paths, which have a depth.
        objectives: Those of the search; default the file's.
        by: What messages call the place where they were given; default the file.

    Raises:
        EvaluatorError: every such one, naming the nearest that is there.
    """
    tasks = list(evaluator.items("search"))
    measures = [f"{t}.{m}" for t in tasks for m in evaluator.measures(t)]
    known = [*tasks, *measures, *([DEPTH] if paths else [])]
    problems = []
    wanted = tuple(objectives) or objectives_of(file.config)
    if len(wanted) == 1 and wanted[0] != SCORE and wanted[0] in known:  # it is the score that winners are chosen by
        counted = [t.name for t in file.config.tasks if t.weight]
        problems.append(
            f"{by or file.file}: objectives: {wanted[0]} alone: winners are chosen by the score, which is of "
            f"{', '.join(counted)}; expected score beside it"
        )
    for name in wanted:
        if name not in (SCORE, *known):
            why = _why(name, [SCORE, *known], evaluator.groups())
            problems.append(f"{by or file.file}: objectives: {name}: {why}")
    for constraint in file.config.constraints:
        if constraint.of not in known:
            why = _why(constraint.of, known, evaluator.groups())
            problems.append(f"{file.file}: constraints: {constraint.of}: {why}")
        elif constraint.of == DEPTH and constraint.keep is not None:
            problems.append(
                f"{file.file}: constraints: {DEPTH}: keep = {constraint.keep:g}: it is no share of what the base "
                "scores; expected at_most or at_least"
            )
    if problems:
        raise EvaluatorError("\n".join(problems))


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


def _why(name: str, valid: Sequence[str], groups: Mapping[str, Sequence[str]]) -> str:
    """What is wrong with a name that is not there, and what would be right."""
    if name == DEPTH:
        return "not of this evaluator and space; only paths have one"
    group, measure = measured(name)
    if group in groups:
        members = [f"{t}.{measure}" if measure else t for t in groups[group]]
        return f"a group of {len(members)} tasks, which is no figure of its own; expected one of {', '.join(members)}"
    return f"not of this evaluator and space; {choose(name, valid)}"
