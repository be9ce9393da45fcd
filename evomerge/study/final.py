"""After the search: choose the winner on `select`, report it once on `test` beside everything it must beat.

Scores of select and test are taken from the exported checkpoint. What was measured is kept in the study, so that the
same command shows it again without another look at the test items.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from evomerge.errors import EvoMergeError
from evomerge.evaluation.config import Split
from evomerge.recipe import Recipe
from evomerge.score import Score, Trial
from evomerge.study.candidates import best
from evomerge.study.goals import Goals
from evomerge.study.job import Job
from evomerge.study.loop import Decode
from evomerge.study.outcome import Measured, Role
from evomerge.study.store import Study
from evomerge.study.watcher import Silent, Watcher
from evomerge.study.workers import Pool

FINALISTS = 5
SILENT = Silent()


@dataclass(frozen=True)
class Baseline:
    """A model to measure beside the winner: a source as it is, or a recipe."""

    name: str
    role: Role
    source: str | None = None
    recipe: Recipe | None = None

    @property
    def subject(self) -> str:
        """Its name in the table of scores; a source may be called "base" or "uniform" too."""
        return f"source/{self.name}" if self.role == "source" else f"model/{self.name}"

    def job(self, split: Split) -> Job:
        """What a worker is asked to do."""
        return Job(split, self.recipe, self.source, exported=True)


def score_all(
    pool: Pool, study: Study, split: Split, jobs: Mapping[str, Job], watcher: Watcher = SILENT,
    seconds: list[float] | None = None,
) -> dict[str, Score | str]:  # fmt: skip
    """Score subjects on a split, those of an earlier run read from the study; a str is the reason for none.

    Args:
        watcher: Is told what is scored, and of each that has been.
        seconds: Filled with the time that each evaluation of this run took.
    """
    stored = study.scores.read(split)
    found: dict[str, Score | str] = {s: stored[s] for s in jobs if s in stored}
    for subject, known in found.items():
        watcher.measured(split, shown_name(subject), known, True)
    waiting = [s for s in jobs if s not in found]
    if waiting:
        watcher.measuring(split, [shown_name(s) for s in waiting])
    for subject in waiting:
        pool.submit(subject, jobs[subject])
    for _ in waiting:
        key, answer = pool.wait()
        subject = str(key)
        if seconds is not None and answer.score is not None:
            seconds.append(answer.seconds.get("evaluate", 0.0))
        if answer.score is not None:
            study.scores.write(subject, split, answer.score)
        found[subject] = answer.score if answer.score is not None else answer.reason or "no reason given"
        watcher.measured(split, shown_name(subject), found[subject], False)
    return {s: found[s] for s in jobs}


def shown_name(subject: str) -> str:
    """What watchers call a subject: "maths" of source/maths, "candidate 17" of trial/17."""
    kind, _, name = subject.partition("/")
    return f"candidate {name}" if kind == "trial" else name


def finalists(trials: list[Trial], identity: Callable[[Trial], str], beside: str | None = None) -> list[Trial]:
    """Who is scored again: the best few on `search`, of equal ones the first; and one more, whatever it scored.

    Where some keep the constraints, those few are such ones.

    Args:
        identity: What equal candidates have in common: the hash of their recipe.
        beside: The identity of the one more, where there is one.
    """
    found: dict[str, Trial] = {}
    ranked = best(trials)
    kept = [t for t in ranked if not t.violation]
    for trial in kept or ranked:
        found.setdefault(identity(trial), trial)
        if len(found) == FINALISTS:
            break
    for trial in ranked if beside is not None else ():
        if identity(trial) == beside:
            found.setdefault(beside, trial)
            break
    return list(found.values())


def chosen(scored: Sequence[tuple[Trial, Score]], goals: Goals | None = None) -> tuple[Trial, Score]:
    """The winner among finalists with their scores on `select`: the best; among equals the one better on `search`.

    Those that keep the constraints there go first, then those that miss them least.

    Args:
        goals: With the limits of `select`.
    """

    def worth(pair: tuple[Trial, Score]) -> tuple[float, float]:
        trial, score = pair
        return -(goals.violation(score, trial.attributes) if goals is not None else 0.0), score.value

    # finalists() puts the higher search score first, and max keeps the first among equals.
    return max(scored, key=worth)


def goals_on(
    pool: Pool, study: Study, split: Split, goals: Goals, baselines: Sequence[Baseline], watcher: Watcher = SILENT
) -> Goals:
    """The goals with the limits of a split: a share of what the base has is a share of what it has on the same items.

    Args:
        baselines: Base and sources, among others; what is needed of them is scored, or read where it has been.

    Raises:
        EvoMergeError: one of them cannot be scored.
    """
    subjects = held_by(baselines) if goals.relative else []
    scores = score_all(pool, study, split, {b.subject: b.job(split) for b in subjects}, watcher)
    for baseline in subjects:
        found = scores[baseline.subject]
        if isinstance(found, str):
            raise EvoMergeError(f"{baseline.name} could not be scored on the {split} items: {found}")
    return goals.limited([_score(scores[b.subject]) for b in subjects], split)


def held_by(baselines: Sequence[Baseline]) -> list[Baseline]:
    """Of whom shares are to be kept: the base, without one each source."""
    base = [b for b in baselines if b.role == "base"]
    return base or [b for b in baselines if b.role == "source"]


def choose_winner(
    pool: Pool,
    study: Study,
    trials: list[Trial],
    decode: Decode,
    hash_: Callable[[Recipe], str],
    goals: Goals,
    beside: Recipe | None = None,
    watcher: Watcher = SILENT,
) -> tuple[Trial, Score]:
    """The best on `select` among the best few (by distinct recipe) on `search`.

    Args:
        goals: With the limits of `select`.
        beside: A recipe whose candidate, where there is one, is among those few whatever it scored.

    Raises:
        EvoMergeError: none of them could be scored again.
    """
    also = None if beside is None else hash_(beside)
    last = finalists(trials, lambda trial: hash_(decode(trial.params)), also)
    jobs = {f"trial/{t.number}": Job("select", decode(t.params), exported=True) for t in last}
    scores = score_all(pool, study, "select", jobs, watcher)
    scored = [(t, s) for t in last if isinstance(s := scores[f"trial/{t.number}"], Score)]
    if not scored:
        raise EvoMergeError(f"none of the best candidates could be scored again: {next(iter(scores.values()))}")
    return chosen(scored, goals)


def measure(
    pool: Pool, study: Study, baselines: Sequence[Baseline], winner: Trial, recipe: Recipe, select: Score,
    watcher: Watcher = SILENT,
) -> tuple[list[Measured], int]:  # fmt: skip
    """Score the baselines and the winner on the test items.

    Returns:
        What was measured, the winner last, and how often this study has now looked at the test items.

    Raises:
        EvoMergeError: a baseline or the winner could not be scored (a broken source shows here at the latest).
    """
    subject = f"trial/{winner.number}"
    jobs = {b.subject: b.job("test") for b in baselines}
    looked = list(study.notes().get("looked", []))
    if winner.number not in looked:
        # Noted before the look, so that a kill in between neither hides it nor counts it twice.
        looked.append(winner.number)
        study.note("looked", looked)
    scores = score_all(pool, study, "test", {**jobs, subject: Job("test", recipe, exported=True)}, watcher)
    for name, found in scores.items():
        if isinstance(found, str):
            raise EvoMergeError(f"{name} could not be scored on the test items: {found}")
    measured = [Measured(b.name, b.role, _score(scores[b.subject]), recipe=b.recipe) for b in baselines]
    measured.append(Measured("best", "best", _score(scores[subject]), winner.score, select, recipe))
    study.mark_winner(
        winner.number, {"search": winner.value or 0.0, "select": select.value, "test": measured[-1].test.value}
    )
    return measured, len(looked)


def search_scores(
    pool: Pool, study: Study, baselines: Sequence[Baseline], watcher: Watcher = SILENT
) -> tuple[dict[str, Score], float | None]:
    """Scores of the baselines on the search items: the lines that the search is seen against while it runs.

    Returns:
        The scores by name, and the seconds that one of them takes (the median; None where all were read).

    Raises:
        EvoMergeError: one of them cannot be scored.
    """
    seconds: list[float] = []
    scores = score_all(pool, study, "search", {b.subject: b.job("search") for b in baselines}, watcher, seconds)
    for baseline in baselines:
        found = scores[baseline.subject]
        if isinstance(found, str):
            raise EvoMergeError(f"{baseline.name} cannot be scored: {found}")
    return {b.name: _score(scores[b.subject]) for b in baselines}, statistics.median(seconds) if seconds else None


def _score(found: Score | str) -> Score:
    assert isinstance(found, Score)
    return found
