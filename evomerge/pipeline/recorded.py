"""A study read again from its database: what `evomerge search` handed on at its end, as far as it came to one."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from evomerge.errors import EvoMergeError
from evomerge.evaluation.config import SPLITS, EvaluatorConfig, Split
from evomerge.pipeline.export import rebuilt
from evomerge.pipeline.goals import objectives_of
from evomerge.pipeline.hybrid import FIRST
from evomerge.pipeline.plan import EVALUATOR_NOTE, OVERLAPS_NOTE, SPACE_NOTE
from evomerge.recipe import Chain, Recipe, load_chain
from evomerge.recipe import Path as RecipePath
from evomerge.score import Score, State, Trial, cost
from evomerge.space import DataflowConfig, HybridConfig, SpaceConfig, stored_space
from evomerge.study import candidates
from evomerge.study.database import shown
from evomerge.study.goals import Goals, Limit
from evomerge.study.leases import driver_of, root
from evomerge.study.outcome import Aims, Measured, Outcome, Role
from evomerge.study.record import Phase, Record
from evomerge.study.status import ENDED_NOTE
from evomerge.study.store import Store, Study

Scores = Mapping[Split, Mapping[str, Score]]
Lines = Mapping[str, tuple[Role, Score]]
# The splits that are read when the search has ended.
AFTER: tuple[Split, ...] = ("select", "test")


def recorded(store: Store, name: str, out: Path | None = None) -> Record:
    """Everything that is known of a study. Nothing is written, and no score is computed.

    Args:
        out: Its output folder: the recipe and result.json there are those of its winner.

    Raises:
        StudyError: there is no such study.
    """
    study = store.open(name)
    notes, fingerprint, trials = study.notes(), study.fingerprint, tuple(study.trials())
    config, evaluator = _space(notes), _evaluator(fingerprint)
    scores = _scores(store, study)
    lines = {name: (role, scores["search"][s]) for name, role, s in _baselines(config) if s in scores["search"]}
    goals = _goals(evaluator, config, lines)
    aims = _aims(goals, trials, lines, scores, config)
    winner = notes.get("winner")
    best = next((t for t in trials if t.number == winner), None)
    best = best or next(iter(candidates.best(list(trials))), None)
    driver = driver_of(store, name)
    running = driver is not None and not driver.gone
    result = _result(out, name, winner)
    recipe, unknown, path, depths = _made(study, best, out, result, config)
    found = Record(
        name=name, storage=shown(store.url), out=out, phase="interrupted", driver=str(driver) if running else None,
        fingerprint=fingerprint, notes=notes, trials=trials, lines=lines, best=best,
        finalists=_finalists(scores["select"]), aims=aims, evaluator=evaluator, config=config,
        num_layers=fingerprint.get("space", {}).get("num_layers"), recipe=recipe, unknown=unknown, path=path,
        depths=depths, result=result, stages=_stages(store, name),
    )  # fmt: skip
    outcome = _outcome(store, found, scores) if winner is not None else None
    since = 0
    if result is not None:
        since = len(found.ended) - sum(result["candidates"].get(k, 0) for k in ("complete", "pruned", "failed"))
    phase: Phase = "interrupted"
    if running:
        phase = "running"
    elif winner is not None and since <= 0 and all(t.state is not State.RUNNING for t in trials):
        phase = "measured" if outcome is not None else "chosen"
    return Record(**{**vars(found), "outcome": outcome, "phase": phase, "since": max(since, 0)})


def _scores(store: Store, study: Study) -> Scores:
    """Scores by split and subject. Controls have those of base, sources and uniform merge in the main study."""
    found = {split: study.scores.read(split) for split in SPLITS}
    main = root(study.name)
    if main != study.name and main in store.names():
        for split, scores in found.items():
            beside = store.open(main).scores.read(split)
            found[split] = {s: score for s, score in beside.items() if not s.startswith("trial/")} | scores
    return found


def _space(notes: Mapping[str, Any]) -> SpaceConfig | DataflowConfig | None:
    if SPACE_NOTE not in notes:
        return None
    found = stored_space(notes[SPACE_NOTE])
    assert not isinstance(found, HybridConfig)
    return found


def _evaluator(fingerprint: Mapping[str, Any]) -> EvaluatorConfig | None:
    """The evaluator's settings as the study keeps them: of variables the names alone, which is no mapping."""
    kept = fingerprint.get("evaluator", {})
    try:
        return EvaluatorConfig.model_validate(
            {k: v for k, v in kept.items() if k in EvaluatorConfig.model_fields and k != "env"}
        )
    except ValidationError:  # what an early version took and this one does not
        return None


def _baselines(config: SpaceConfig | DataflowConfig | None) -> Iterator[tuple[str, Role, str]]:
    """Name, role and subject of all that a winner is compared with, where it was scored; see `Plan.baselines`."""
    yield "base", "base", "model/base"
    for source in config.sources if config is not None else ():
        yield source.name, "source", f"source/{source.name}"
    yield "uniform", "uniform", "model/uniform"


def _goals(evaluator: EvaluatorConfig | None, config: SpaceConfig | DataflowConfig | None, lines: Lines) -> Goals:
    if evaluator is None:
        return Goals()
    goals = Goals(objectives_of(evaluator, config), tuple(evaluator.constraints))
    with suppress(EvoMergeError, ValueError):  # before the base was scored, shares of what it has are no numbers yet
        return goals.limited(_held(lines))
    return goals


def _aims(
    goals: Goals, trials: Sequence[Trial], lines: Lines, scores: Scores, config: SpaceConfig | DataflowConfig | None
) -> Aims:
    limits: dict[Split, tuple[Limit, ...]] = {}
    for split in AFTER:
        held = {n: (role, scores[split][s]) for n, role, s in _baselines(config) if s in scores[split]}
        with suppress(EvoMergeError, ValueError):
            limits[split] = goals.limited(_held(held), split).limits
    ended = [t for t in trials if t.state is not State.RUNNING]
    several = len(goals.objectives) > 1
    if several and not (lines and any(t.score is not None for t in ended)):
        return Aims(goals, limits={"search": goals.limits, **limits})
    return Aims.of(goals, ended, [score for _, score in lines.values()], limits)


def _held(lines: Lines) -> list[Score]:
    """Of whom shares are to be kept: the base, without one each source."""
    base = [score for role, score in lines.values() if role == "base"]
    return base or [score for role, score in lines.values() if role == "source"]


def _finalists(selected: Mapping[str, Score]) -> dict[int, Score]:
    found = {}
    for subject, score in selected.items():
        kind, _, number = subject.partition("/")
        if kind == "trial" and number.isdecimal():
            found[int(number)] = score
    return found


def _result(out: Path | None, name: str, winner: int | None) -> Mapping[str, Any] | None:
    """What the search wrote of this winner; a file that is something else is none."""
    if out is None or winner is None:
        return None
    try:
        found = json.loads((out / "result.json").read_text(encoding="utf-8"))
        mine = found["study"] == name and found["best"]["trial"] == winner and isinstance(found["candidates"], dict)
    except (OSError, ValueError, KeyError, TypeError):
        return None
    return found if mine else None


Made = tuple[Recipe | Chain | None, str, RecipePath | None, Mapping[str, int]]


def _made(
    study: Study, best: Trial | None, out: Path | None, result: Mapping[str, Any] | None,
    config: SpaceConfig | DataflowConfig | None,
) -> Made:  # fmt: skip
    """How the best is made: as the search wrote it, else worked out from the models, where they are still there."""
    if best is None:
        return None, "no candidate is complete yet", None, {}
    if out is not None and result is not None:
        with suppress(EvoMergeError, OSError):
            chain = load_chain(out / "recipe.yaml")
            found: Recipe | Chain = chain.steps[0].recipe if len(chain.steps) == 1 else chain
            if found.hash() == result["best"].get("recipe_hash"):
                final = chain.steps[-1].recipe
                return found, "", RecipePath.read(final) if isinstance(config, DataflowConfig) else None, {}
    try:
        made = rebuilt(study, best.number)
    except (EvoMergeError, KeyError) as e:
        return None, str(e) if isinstance(e, EvoMergeError) else "the study does not hold its space", None, {}
    return made.signed, "", made.path, made.depths


def _stages(store: Store, name: str) -> dict[str, tuple[Trial, ...]]:
    inside = f"{name}/"
    return {n.removeprefix(inside): tuple(store.open(n).trials()) for n in store.names() if n.startswith(inside)}


def _outcome(store: Store, record: Record, scores: Scores) -> Outcome | None:
    """What the search handed on, from what it kept; None where its winner was not scored on the test items."""
    best, test = record.best, scores["test"]
    if best is None or f"trial/{best.number}" not in test:
        return None
    measured = [Measured(n, role, test[s]) for n, role, s in _baselines(record.config) if s in test]
    measured += _controls(store, record)
    select = scores["select"].get(f"trial/{best.number}")
    # A recipe that cannot be told must not hide the figures: `Record.recipe` says that there is none.
    recipe = record.recipe or Recipe.model_construct()
    measured.append(Measured("best", "best", test[f"trial/{best.number}"], best.score, select, record.recipe))
    first = [t for t in record.stages.get(FIRST, ()) if t.state is not State.RUNNING]
    layers = candidates.layer_evaluations(list(record.ended))
    return Outcome(
        study=record.name, storage=record.storage, seed=int(record.fingerprint.get("seed", 0)),
        space=record.config.name if record.config is not None else "",
        evaluator=str(record.notes.get(EVALUATOR_NOTE, "")), trials=record.trials, best=best,
        recipe=recipe, recipe_hash=record.recipe.hash() if record.recipe is not None else "",
        measured=tuple(measured), looks=len(record.notes.get("looked", [])),
        stopped=str(record.notes.get(ENDED_NOTE) or ""),
        seconds=float(record.notes.get("seconds", 0.0)), model=(record.out or Path()) / "model",
        lines={n: s.value for n, (_, s) in record.lines.items()}, names=record.names,
        first_stage=len(first), layers=layers,
        aims=record.aims, path=record.path, depths=record.depths, overlaps=record.notes.get(OVERLAPS_NOTE),
    )  # fmt: skip


def _controls(store: Store, record: Record) -> Iterator[Measured]:
    """The searched controls that were measured."""
    for which, trials in record.stages.items():
        control = store.open(f"{record.name}/{which}")
        number = control.notes().get("winner")
        test = control.scores.read("test").get(f"trial/{number}")
        if test is None or which == FIRST:
            continue
        best = next((t for t in trials if t.number == number), None)
        select = control.scores.read("select").get(f"trial/{number}")
        yield Measured(which, "control", test, best.score if best is not None else None, select, cost=cost(trials))
