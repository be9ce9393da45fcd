"""What a study's database, and the folder beside it, say of a search: finished, running, or cut off."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from evomerge.evaluation.config import EvaluatorConfig
from evomerge.recipe import Chain, Recipe
from evomerge.recipe import Path as RecipePath
from evomerge.score import Score, State, Trial
from evomerge.space import DataflowConfig, SpaceConfig
from evomerge.study.goals import Goals
from evomerge.study.outcome import Aims, Outcome, Role

# "measured": a winner was scored on the test items. "chosen": one stage of several, whose winner never is.
Phase = Literal["running", "interrupted", "chosen", "measured"]


@dataclass(frozen=True)
class Record:
    """A study as it stands.

    Attributes:
        name: Its own; that of a control or of a hybrid's first stage is NAME/WHICH.
        storage: URL of its database, passwords hidden.
        out: Its output folder, where there is one.
        phase: How far it has come.
        driver: Who drives it now, in words.
        fingerprint: What it was made with.
        notes: What is kept with it.
        trials: Every candidate by number, those that were cut off too.
        lines: Base, sources and uniform merge on the search items, by name: what they are there for, and their score.
        best: The winner, or as long as there is none the best so far; None before the first candidate is complete.
        finalists: Of candidates by number, the score on the select items.
        outcome: The winner and what it was compared with on the test items; None as long as there is none.
        since: How many candidates have ended since that winner was chosen; the search goes on, or was cut off again.
        aims: What the search is after, and what came of it.
        evaluator: What scored the candidates; None where a study of an early version does not say it.
        config: The space; None likewise.
        num_layers: Number of layers of the models, of paths by the sources' names.
        recipe: How `best` is made; None where that cannot be told.
        unknown: Why it cannot, in words.
        path: `best` as a path over layers; None for a merge.
        depths: Number of layers of each source by reference.
        result: result.json of this winner; None where there is none.
        stages: Further searches of the same study, by name: controls, a hybrid's first stage.
    """

    name: str
    storage: str
    out: Path | None
    phase: Phase
    driver: str | None
    fingerprint: Mapping[str, Any]
    notes: Mapping[str, Any]
    trials: tuple[Trial, ...]
    lines: Mapping[str, tuple[Role, Score]] = field(default_factory=dict)
    best: Trial | None = None
    finalists: Mapping[int, Score] = field(default_factory=dict)
    outcome: Outcome | None = None
    since: int = 0
    aims: Aims = field(default_factory=Aims)
    evaluator: EvaluatorConfig | None = None
    config: SpaceConfig | DataflowConfig | None = None
    num_layers: int | Mapping[str, int] | None = None
    recipe: Recipe | Chain | None = None
    unknown: str = ""
    path: RecipePath | None = None
    depths: Mapping[str, int] = field(default_factory=dict)
    result: Mapping[str, Any] | None = None
    stages: Mapping[str, tuple[Trial, ...]] = field(default_factory=dict)

    @property
    def goals(self) -> Goals:
        """Its objectives and constraints."""
        return self.aims.goals

    @property
    def won(self) -> bool:
        """Whether `best` is a winner, and not merely the best so far."""
        return self.notes.get("winner") is not None

    @property
    def names(self) -> dict[str, str]:
        """Short names of the sources by reference."""
        return {} if self.config is None else {s.model: s.name for s in self.config.sources}

    @property
    def ended(self) -> tuple[Trial, ...]:
        """The candidates of which something came."""
        return tuple(t for t in self.trials if t.state is not State.RUNNING)
