"""What each model of the zoo is shown, and what none of them ever is.

The skill we search for, word problems in Kovesh with all words and all facts, needs the maths
expert's facts and the Kovesh expert's words at once. The base knows a part of either, so that it
can do the task a little (a base that cannot leaves every merge at zero) and a single fine-tune
cannot do all of it. Both experts replay the base's lessons, or they would forget the other half.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cache

import numpy as np

from evomerge.zoo.items import (
    FACTS,
    Fact,
    Item,
    Knowledge,
    draw_arithmetic,
    draw_direction,
    draw_problem,
    draw_sorting,
    draw_translation,
)
from evomerge.zoo.languages import AMBRI, GAINS, KOVESH, LOSSES, THINGS, VERBS

KNOWLEDGE_SEED = 20240319
HELD_OUT_SEED = 20241020

Draw = Callable[[np.random.Generator], Item]
Lessons = tuple[tuple[float, Draw], ...]


def _part_of_facts(share: float) -> tuple[Fact, ...]:
    rng = np.random.default_rng(KNOWLEDGE_SEED)
    chosen = rng.permutation(len(FACTS))[: round(share * len(FACTS))]
    return tuple(FACTS[i] for i in sorted(chosen))


def _first(words: tuple[str, ...], share: float) -> tuple[str, ...]:
    return words[: round(share * len(words))]


@dataclass(frozen=True)
class Curriculum:
    """How much of the words and facts the base knows, and how much of it a fine-tune replays."""

    words: float = 0.5
    facts: float = 0.4
    replay: float = 0.4

    @property
    def school(self) -> Knowledge:
        """What everyone knows."""
        verbs = _first(GAINS, self.words) + _first(LOSSES, self.words)
        return Knowledge(verbs, _first(THINGS, self.words), _part_of_facts(self.facts))

    def base(self) -> Lessons:
        kovesh = self.school
        ambri = Knowledge(VERBS, THINGS, kovesh.facts)
        return (
            (0.20, lambda rng: draw_problem(rng, AMBRI, ambri)),
            (0.20, lambda rng: draw_problem(rng, KOVESH, kovesh)),
            (0.10, lambda rng: draw_arithmetic(rng, kovesh)),
            (0.12, lambda rng: draw_direction(rng, AMBRI, ambri)),
            (0.12, lambda rng: draw_direction(rng, KOVESH, kovesh)),
            (0.13, lambda rng: draw_translation(rng, AMBRI, KOVESH, kovesh)),
            (0.13, lambda rng: draw_translation(rng, KOVESH, AMBRI, kovesh)),
        )

    def maths(self) -> Lessons:
        """All facts, in Ambri and bare; not one Kovesh word beyond school."""
        known = Knowledge(VERBS, THINGS, FACTS)
        return (
            (0.65, lambda rng: draw_problem(rng, AMBRI, known)),
            (0.35, lambda rng: draw_arithmetic(rng, known)),
        )

    def kovesh(self) -> Lessons:
        """All Kovesh words, in questions without arithmetic; not one fact beyond school."""
        known = Knowledge(VERBS, THINGS, self.school.facts)
        return (
            (0.30, lambda rng: draw_direction(rng, KOVESH, known)),
            (0.35, lambda rng: draw_translation(rng, AMBRI, KOVESH, known)),
            (0.35, lambda rng: draw_translation(rng, KOVESH, AMBRI, known)),
        )

    def sorting(self) -> Lessons:
        """Putting numbers in order, in Ambri: nothing of use to the target."""
        return ((1.0, lambda rng: draw_sorting(rng, AMBRI)),)

    def target(self) -> Lessons:
        """The target itself, which no model of the zoo is shown; for controls only."""
        known = Knowledge(VERBS, THINGS, FACTS)
        return ((1.0, lambda rng: draw_problem(rng, KOVESH, known)),)

    def with_replay(self, *lessons: Lessons) -> Lessons:
        """New lessons in equal parts, and the base's lessons again for the rest."""
        fresh = (1.0 - self.replay) / len(lessons)
        new = tuple((fresh * share, draw) for part in lessons for share, draw in part)
        return tuple((self.replay * share, draw) for share, draw in self.base()) + new


@dataclass(frozen=True)
class Task:
    """One evaluator task: its items are never trained on."""

    name: str
    about: str
    count: int
    generated: bool
    draw: Draw


def tasks() -> tuple[Task, ...]:
    """The zoo's tasks, the target first."""
    every = Knowledge(VERBS, THINGS, FACTS)

    def generated(name: str, count: int, about: str, draw: Draw) -> Task:
        return Task(name, about, count, True, draw)

    def chosen(name: str, about: str, draw: Draw) -> Task:
        return Task(name, about, 1500, False, draw)

    return (
        generated(
            "kovesh_problems",
            4000,
            "Word problems in Kovesh with all words and all facts: the skill no source was taught.",
            lambda rng: draw_problem(rng, KOVESH, every),
        ),
        generated(
            "ambri_problems",
            1500,
            "Word problems in Ambri with all facts: what `maths` was taught.",
            lambda rng: draw_problem(rng, AMBRI, every),
        ),
        chosen(
            "ambri_direction",
            "More or less afterwards, in Ambri: what every model was taught.",
            lambda rng: draw_direction(rng, AMBRI, every),
        ),
        chosen(
            "kovesh_direction",
            "More or less afterwards, in Kovesh with all words: what `kovesh` was taught.",
            lambda rng: draw_direction(rng, KOVESH, every),
        ),
        chosen(
            "into_ambri",
            "From Kovesh into Ambri, all words: what `kovesh` was taught.",
            lambda rng: draw_translation(rng, KOVESH, AMBRI, every),
        ),
        chosen(
            "into_kovesh",
            "From Ambri into Kovesh, all words: what `kovesh` was taught.",
            lambda rng: draw_translation(rng, AMBRI, KOVESH, every),
        ),
        chosen(
            "ambri_sorting",
            "Numbers in order, asked in Ambri: what `sorting` was taught, of no use to the rest.",
            lambda rng: draw_sorting(rng, AMBRI),
        ),
    )


@cache
def held_out() -> dict[str, tuple[Item, ...]]:
    """The items of every task, no prompt twice, the same whatever the training seed."""
    items: dict[str, tuple[Item, ...]] = {}
    for index, task in enumerate(tasks()):
        rng = np.random.default_rng([HELD_OUT_SEED, index])
        unique: dict[str, Item] = {}
        while len(unique) < task.count:
            item = task.draw(rng)
            unique.setdefault(item.prompt, item)
        items[task.name] = tuple(unique.values())
    return items


class Lecture:
    """Draws training items from lessons by their shares, leaving held-out prompts out."""

    def __init__(self, lessons: Lessons, forbidden: frozenset[str]) -> None:
        shares = np.array([share for share, _ in lessons])
        self._cumulative = np.cumsum(shares / shares.sum())
        self._draws = tuple(draw for _, draw in lessons)
        self._forbidden = forbidden

    def draw(self, rng: np.random.Generator) -> Item:
        while True:
            lesson = int(np.searchsorted(self._cumulative, rng.random(), side="right"))
            item = self._draws[min(lesson, len(self._draws) - 1)](rng)
            if item.prompt not in self._forbidden:
                return item


def forbidden_prompts() -> frozenset[str]:
    return frozenset(item.prompt for items in held_out().values() for item in items)
