"""What a finished search hands on: the winner, and everything measured next to it on the same held-out items."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

from evomerge.comparison import Difference, difference, excess, holm, interval, task_interval
from evomerge.evaluation.config import Split
from evomerge.recipe import Chain, Recipe
from evomerge.recipe import Path as RecipePath
from evomerge.score import Interval, Score, Trial
from evomerge.study.archive import Archive
from evomerge.study.goals import Goals, Limit, front, hypervolume, is_minimised, path_front

Role = Literal["base", "source", "uniform", "control", "best"]


@dataclass(frozen=True)
class Measured:
    """One model scored on the test items.

    Attributes:
        name: How tables call it: "base", the source's short name, "uniform", "vector maths", "random search", "best".
        role: What it is a comparison for.
        test: Its result on the test items.
        search: Its result on the search items, where it has one (controls and the winner).
        select: Its result on the select items, where it has one.
        recipe: How it was made; None for a source as it is.
        cost: Of a control, what its search took of a budget like the main search's.
    """

    name: str
    role: Role
    test: Score
    search: Score | None = None
    select: Score | None = None
    recipe: Recipe | Chain | None = None
    cost: float | None = None

    @cached_property
    def interval(self) -> Interval:
        """Its score on the test items with a confidence interval."""
        return interval(self.test)

    @cached_property
    def tasks(self) -> Mapping[str, Interval]:
        """The same of each task by name, the metric as its authors report it (an error rate stays one)."""
        return {t.task: task_interval(t) for t in self.test.tasks}


@dataclass(frozen=True)
class Aims:
    """Objectives and constraints of a search, and what came of them.

    Attributes:
        front: Those that no other candidate beats in all objectives, of paths in score and number of layers; only
            where there are several.
        values: Of each of them by number, the objectives as the study keeps them.
        reference: What the hypervolume is measured from, alike: the worst of base, sources and uniform merge in each
            objective.
        hypervolume: (candidates' worth of items spent, volume) wherever it grew.
        limits: Of each split, the constraints as numbers: shares of what the base has on the same items.
    """

    goals: Goals = field(default_factory=Goals)
    front: tuple[Trial, ...] = ()
    values: Mapping[int, tuple[float, ...]] = field(default_factory=dict)
    reference: tuple[float, ...] = ()
    hypervolume: tuple[tuple[float, float], ...] = ()
    limits: Mapping[Split, tuple[Limit, ...]] = field(default_factory=dict)

    @classmethod
    def of(
        cls, goals: Goals, trials: Sequence[Trial], scores: Iterable[Score],
        limits: Mapping[Split, tuple[Limit, ...]] | None = None,
    ) -> Aims:
        """What came of a search.

        Args:
            scores: Of base, sources and the uniform merge on the search items.
            limits: The constraints as numbers on the other splits.
        """
        limits = {"search": goals.limits, **(limits or {})}
        if len(goals.objectives) < 2:
            return cls(goals, tuple(path_front(trials)), limits=limits)
        worth = {t.number: goals.values(t.score, t.attributes) for t in trials if t.score is not None}
        found = front(trials, worth)
        kept = {t.number: tuple(goals.recorded(t.score, t.attributes)) for t in found if t.score is not None}
        reference = goals.reference(scores, [t for t in trials if t.score is not None])
        history: list[tuple[float, float]] = []
        spent, points = 0.0, []
        for t in trials:
            spent += t.cost
            if t.number in worth and not t.violation:
                points.append(worth[t.number])
                volume = hypervolume(points, reference)
                if volume > (history[-1][1] if history else 0.0):
                    history.append((spent, volume))
        signed = tuple(-r if is_minimised(n) else r for n, r in zip(goals.objectives, reference, strict=True))
        return cls(goals, tuple(found), kept, signed, tuple(history), limits)


@dataclass(frozen=True)
class Outcome:
    """A finished search.

    Attributes:
        study, storage: Name of the study and URL of its database.
        trials: Every candidate, by number.
        best: The winner's trial.
        recipe: The winner's recipe, with the seed and the sources' content hashes; a chain where it builds on another
            stage's winner.
        recipe_hash: What identifies it.
        measured: Base, sources, uniform merge, controls (if asked for), and the winner, which stands last.
        looks: How often the test items have been read in this study, this time included.
        stopped: Why the search ended ("budget", "patience", "converged").
        seconds: Wall time of the search, all resumes together.
        lines: Value on the search items of base, sources and the uniform merge (for the history picture).
        names: Short names of the sources by reference; those of paths' pictures.
        first_stage: How many candidates an earlier stage took; `trials` are those of the last one.
        layers: Of candidates that are paths: evaluations of a layer on a sequence that they took, and how many of them
            were run (the others were known from earlier candidates).
        aims: What was searched for, and the front of those that no other candidate beats.
        archive: What the optimizer keeps beside the winner; None where it keeps nothing.
        path: The winner as a path over models that are there; None for a merge.
        depths: Number of layers of each source, by reference.
        overlaps: What items of the splits have in common, and with texts that sources were trained on; see
            `evaluation.overlaps`. None: not looked for.
    """

    study: str
    storage: str
    seed: int
    space: str
    evaluator: str
    trials: tuple[Trial, ...]
    best: Trial
    recipe: Recipe | Chain
    recipe_hash: str
    measured: tuple[Measured, ...]
    looks: int
    stopped: str
    seconds: float
    model: Path
    lines: Mapping[str, float] = field(default_factory=dict)
    names: Mapping[str, str] = field(default_factory=dict)
    first_stage: int = 0
    layers: tuple[int, int] | None = None
    aims: Aims = field(default_factory=Aims)
    archive: Archive | None = None
    path: RecipePath | None = None
    depths: Mapping[str, int] = field(default_factory=dict)
    overlaps: Mapping[str, Any] | None = None

    @property
    def winner(self) -> Measured:
        """The winner as measured."""
        return self.measured[-1]

    @cached_property
    def differences(self) -> tuple[Difference | None, ...]:
        """Of each measured model, the winner minus it on the test items, with the p-value corrected for all of them.

        None for the winner.
        """
        return holm([None if m is self.winner else difference(self.winner.test, m.test) for m in self.measured])

    @cached_property
    def shrinkage(self) -> Mapping[str, Interval]:
        """By how much the winner's score on the search items, and on those of select, lies above the one on test.

        The first is overfitting to the search items: the winner is the best of many there, in part by luck.
        """
        earlier = {"search": self.winner.search or self.best.score, "select": self.winner.select}
        return {n: excess(interval(s), self.winner.interval) for n, s in earlier.items() if s is not None}
