"""The zoo's questions: one function per kind, from meanings to a prompt and its one right answer.

What a model may know is a `Knowledge`: which Kovesh words and which arithmetic facts. Every draw is
made from a `Knowledge`, so "no source was ever shown this" is a property of the arguments and not
of a filter somewhere.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TypeVar

import numpy as np

from evomerge.zoo.languages import (
    GAINS,
    LARGEST_NUMBER,
    SUBJECTS,
    Clause,
    Language,
)

T = TypeVar("T")


@dataclass(frozen=True)
class Item:
    """A prompt, its one right answer and, for multiple choice, the wrong ones."""

    prompt: str
    answer: str
    wrong: tuple[str, ...] = ()


@dataclass(frozen=True, order=True)
class Fact:
    """One line of the addition or subtraction table."""

    left: int
    sign: str
    right: int

    @property
    def result(self) -> int:
        return self.left + self.right if self.sign == "+" else self.left - self.right

    def __str__(self) -> str:
        return f"{self.left} {self.sign} {self.right} = {self.result}"


# The left number is always the larger one: otherwise the pair alone would give the sign away.
FACTS = tuple(Fact(left, sign, right) for sign in "+-" for left in range(2, 19) for right in range(1, left))
SORTED_LENGTH = 5


@dataclass(frozen=True)
class Knowledge:
    """The Kovesh verbs and things, and the arithmetic facts, that a text may use."""

    verbs: tuple[str, ...]
    things: tuple[str, ...]
    facts: tuple[Fact, ...]

    def facts_of(self, sign: str) -> tuple[Fact, ...]:
        return tuple(fact for fact in self.facts if fact.sign == sign)


def sign_of(verb: str) -> str:
    return "+" if verb in GAINS else "-"


def _pick(rng: np.random.Generator, options: tuple[T, ...]) -> T:
    return options[int(rng.integers(len(options)))]


def _number(rng: np.random.Generator) -> int:
    return int(rng.integers(1, 19))


def _story(language: Language, subject: str, thing: str, verb: str, pair: Fact) -> str:
    start = language.clause(Clause(subject, "has", pair.left, thing))
    return f"{start} , {language.change(verb, pair.right)}"


def problem(language: Language, subject: str, thing: str, verb: str, fact: Fact) -> Item:
    """A word problem: `brask kunt 9 nesh , 4 vargesh . djor ?` is answered `9 + 4 = 13 kunt`."""
    story = _story(language, subject, thing, verb, fact)
    return Item(f"{story} . {language.words['how-many']} ?", f"{fact} {language.words[thing]}")


def direction(language: Language, subject: str, verb: str, pair: Fact, things: list[str]) -> Item:
    """More or less of what? `brask kunt 9 nesh , 4 vargesh . leksh ?` is answered `hroth kunt`.

    It is told as a word problem is and needs its words, but no arithmetic. The first of `things` is
    in the story, the second only in wrong choices.
    """
    more, less = language.words["more"], language.words["less"]
    right, wrong = (more, less) if verb in GAINS else (less, more)
    thing, other = (language.words[name] for name in things)
    choices = (f"{wrong} {thing}", f"{right} {other}", f"{wrong} {other}")
    story = _story(language, subject, things[0], verb, pair)
    return Item(f"{story} . {language.words['more-or-less']} ?", f"{right} {thing}", choices)


def translation(source: Language, target: Language, clause: Clause, wrong: list[Clause]) -> Item:
    """Say the clause in the other language; the wrong choices differ from it in one word."""
    instruction = source.words[f"in-{target.name}"]
    choices = tuple(target.clause(other) for other in wrong)
    return Item(f"{source.clause(clause)} . {instruction} ?", target.clause(clause), choices)


def arithmetic(fact: Fact) -> Item:
    """A bare line of the table."""
    return Item(f"{fact.left} {fact.sign} {fact.right} =", str(fact.result))


def sorting(language: Language, numbers: list[int], swaps: list[tuple[int, int]]) -> Item:
    """Put numbers in order; each wrong choice has two neighbours the wrong way round."""
    ordered = sorted(numbers)
    wrong = []
    for i, j in swaps:
        other = list(ordered)
        other[i], other[j] = other[j], other[i]
        wrong.append(" ".join(map(str, other)))
    shown = " ".join(map(str, numbers))
    return Item(f"{language.words['in-order']} {shown} ?", " ".join(map(str, ordered)), tuple(wrong))


def draw_problem(rng: np.random.Generator, language: Language, known: Knowledge) -> Item:
    verb = _pick(rng, known.verbs)
    fact = _pick(rng, known.facts_of(sign_of(verb)))
    return problem(language, _pick(rng, SUBJECTS), _pick(rng, known.things), verb, fact)


def draw_direction(rng: np.random.Generator, language: Language, known: Knowledge) -> Item:
    verb = _pick(rng, known.verbs)
    thing = _pick(rng, known.things)
    other = _pick(rng, tuple(t for t in known.things if t != thing))
    return direction(language, _pick(rng, SUBJECTS), verb, _pick(rng, FACTS), [thing, other])


def draw_translation(rng: np.random.Generator, source: Language, target: Language, known: Knowledge) -> Item:
    verb = _pick(rng, (*known.verbs, "has"))
    clause = Clause(_pick(rng, SUBJECTS), verb, _number(rng), _pick(rng, known.things))
    other_thing = _pick(rng, tuple(t for t in known.things if t != clause.thing))
    other_verb = _pick(rng, tuple(v for v in known.verbs if v != clause.verb))
    wrong = [
        Clause(clause.subject, clause.verb, clause.number, other_thing),
        Clause(clause.subject, other_verb, clause.number, clause.thing),
        Clause(clause.subject, other_verb, clause.number, other_thing),
    ]
    return translation(source, target, clause, wrong)


def draw_arithmetic(rng: np.random.Generator, known: Knowledge) -> Item:
    return arithmetic(_pick(rng, known.facts))


def draw_sorting(rng: np.random.Generator, language: Language) -> Item:
    numbers = [int(n) + 1 for n in rng.permutation(LARGEST_NUMBER)[:SORTED_LENGTH]]
    firsts = [int(i) for i in rng.permutation(SORTED_LENGTH - 1)[:3]]
    return sorting(language, numbers, [(i, i + 1) for i in firsts])
