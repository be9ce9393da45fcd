"""What is trained: each model's lessons, which of its parameters learn, and for how long."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from enum import Enum

from evomerge.zoo.curriculum import Curriculum, Lessons


class Part(Enum):
    """Which parameters a fine-tune changes; all others stay the base's, bit for bit."""

    ALL = "all"
    LOWER = "embeddings and the first half of the layers"
    UPPER = "the second half of the layers"

    def holds(self, parameter: str, layers: int) -> bool:
        """Whether a parameter, by its name in a model of so many layers, is one of the part's.

        The embeddings are the output head too (they are tied). The final norm belongs to neither half.
        """
        if self is Part.ALL:
            return True
        if parameter == "model.embed_tokens.weight":
            return self is Part.LOWER
        words = parameter.split(".")
        return words[1] == "layers" and (int(words[2]) < layers // 2) == (self is Part.LOWER)


@dataclass(frozen=True)
class Course:
    """A fine-tune of the base.

    Attributes:
        lessons: What it is taught, in equal parts, beside the base's lessons.
        part: What it learns with.
        runs: A ceiling sees as many items as the fine-tunes it stands against together.
    """

    lessons: tuple[Callable[[Curriculum], Lessons], ...]
    part: Part = Part.ALL
    runs: int = 1


# A model's place in this table is part of the seed of its data: new ones go to the end.
COURSES = {
    "maths": Course((Curriculum.maths,)),
    "kovesh": Course((Curriculum.kovesh,)),
    "sorting": Course((Curriculum.sorting,)),
    "ceiling": Course((Curriculum.maths, Curriculum.kovesh), runs=2),
    "ceiling_target": Course((Curriculum.maths, Curriculum.kovesh, Curriculum.target), runs=2),
    "kovesh_lower": Course((Curriculum.kovesh,), Part.LOWER),
    "maths_upper": Course((Curriculum.maths,), Part.UPPER),
}
CEILINGS = ("ceiling", "ceiling_target")


@dataclass(frozen=True)
class Schedule:
    """One training run: AdamW, linear warm-up, cosine to zero."""

    steps: int
    rate: float
    batch: int = 64
    warmup: int = 50

    def rate_at(self, step: int) -> float:
        if step < self.warmup:
            return self.rate * (step + 1) / self.warmup
        done = (step - self.warmup) / max(1, self.steps - self.warmup)
        return self.rate * 0.5 * (1.0 + math.cos(math.pi * done))


@dataclass(frozen=True)
class Plan:
    """Everything about the zoo but the seed."""

    curriculum: Curriculum = field(default_factory=Curriculum)
    width: int = 96
    layers: int = 4
    base: Schedule = Schedule(2500, 2e-3)
    fine_tune: Schedule = Schedule(700, 1e-3)

    def lessons(self, name: str) -> Lessons:
        if name == "base":
            return self.curriculum.base()
        return self.curriculum.with_replay(*(lessons(self.curriculum) for lessons in COURSES[name].lessons))

    def part(self, name: str) -> Part:
        return Part.ALL if name == "base" else COURSES[name].part

    def schedule(self, name: str) -> Schedule:
        if name == "base":
            return self.base
        return replace(self.fine_tune, steps=self.fine_tune.steps * COURSES[name].runs)
