"""What goes to a worker and what comes back: the only two things that cross."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

from evomerge.evaluation.config import Split
from evomerge.evaluation.splits import Places
from evomerge.recipe import Recipe
from evomerge.score import Score


@dataclass(frozen=True)
class Job:
    """Score one model on one split.

    Attributes:
        recipe: What to build; None for a source as it is.
        source: Reference of the source, where there is no recipe.
        split: Which items.
        exported: Score the checkpoint as it is written to disk and loaded again, not the live model.
        only: Which of the split's items; default all.
        hash: Of the recipe, where it is known: jobs with an equal one need the same model.
    """

    split: Split
    recipe: Recipe | None = None
    source: str | None = None
    exported: bool = False
    only: Places | None = None
    hash: str | None = None


@dataclass(frozen=True)
class Answer:
    """A worker's answer: a score, or the reason why there is none.

    Attributes:
        seconds: Time per step: "build", "evaluate".
        layers: Of a path: how many evaluations of a layer on a sequence it took, and how many of them were run; the
            rest was known from earlier candidates.
        notes: What the user should know of the worker: a smaller batch because memory ran out.
    """

    score: Score | None
    reason: str | None = None
    seconds: Mapping[str, float] = field(default_factory=dict)
    layers: tuple[int, int] | None = None
    notes: tuple[str, ...] = ()


class Told:
    """Tells what answers note, each thing once, whichever workers meet it."""

    def __init__(self, say: Callable[[str], None] | None = None) -> None:
        self._say = say or (lambda text: None)
        self._told: set[str] = set()

    def of(self, answer: Answer) -> None:
        """Tell what is new in an answer."""
        for note in answer.notes:
            if note not in self._told:
                self._told.add(note)
                self._say(note)
