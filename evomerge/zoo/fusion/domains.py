"""Two domains of invented text: chains of words in which each word says which few may follow, and how likely.

The knowledge of a domain is its table of followers. A short text shows a part of it, and how often once or twice; a
model that was trained on a lot of such text knows the whole table. That is what a teacher has that the text has not.
The two share letters and not one word, so that what a model learns of one tells it nothing about the other.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from typing import Any

import numpy as np

Array = np.ndarray[Any, Any]
WORDS = 200
FOLLOWERS = 8
SENTENCE = (6, 14)
SENTENCES = (3, 6)
# Words of a question, and of its answer.
OPENING, ANSWER = 3, 10
# What syllables are made of, and how many a word has.
_SOUNDS = {"tides": ("lmnrsw", "aeiou", ("", "", "n", "l")), "roads": ("ktgdbz", "aeiou", ("", "k", "t", "rd"))}
NAMES = tuple(_SOUNDS)
_WORDS_SEED = 20250518


@dataclass(frozen=True)
class Domain:
    """A chain over words.

    Attributes:
        followers: For each word the numbers of those that may follow, [WORDS, FOLLOWERS].
        shares: How likely each is, [WORDS, FOLLOWERS]; rows sum to one.
    """

    name: str
    words: tuple[str, ...]
    followers: Array
    shares: Array

    def walk(self, rng: np.random.Generator, length: int, start: int | None = None) -> list[int]:
        """Numbers of `length` words, each drawn from those that may follow the one before."""
        at = int(rng.integers(len(self.words))) if start is None else start
        found = [at]
        cumulated = self._cumulated
        for number in rng.random(length - 1):
            choice = min(int(np.searchsorted(cumulated[at], number, side="right")), FOLLOWERS - 1)
            at = int(self.followers[at, choice])
            found.append(at)
        return found

    def sentence(self, rng: np.random.Generator) -> str:
        """A walk of SENTENCE words, ended by a full stop."""
        length = int(rng.integers(SENTENCE[0], SENTENCE[1] + 1))
        return " ".join(self.words[i] for i in self.walk(rng, length)) + "."

    def exchange(self, rng: np.random.Generator) -> tuple[str, str]:
        """A question that gives the beginning of a walk, and its answer, how that goes on."""
        walk = self.walk(rng, OPENING + ANSWER)
        opening, answer = walk[:OPENING], walk[OPENING:]
        return " ".join(self.words[i] for i in opening), " ".join(self.words[i] for i in answer)

    def document(self, rng: np.random.Generator) -> str:
        """SENTENCES sentences on one line."""
        return " ".join(self.sentence(rng) for _ in range(int(rng.integers(SENTENCES[0], SENTENCES[1] + 1))))

    def follows(self, first: str, second: str) -> bool:
        """Whether a word may follow another here."""
        numbers = _numbers(self.words)
        if first not in numbers or second not in numbers:
            return False
        return bool(np.any(self.followers[numbers[first]] == numbers[second]))

    @property
    def _cumulated(self) -> Array:
        return np.cumsum(self.shares, axis=1)


@cache
def _numbers(words: tuple[str, ...]) -> dict[str, int]:
    return {word: number for number, word in enumerate(words)}


@cache
def words(name: str) -> tuple[str, ...]:
    """The words of a domain, the same for every seed."""
    first, vowels, last = _SOUNDS[name]
    rng = np.random.default_rng([_WORDS_SEED, NAMES.index(name)])
    found: dict[str, None] = {}
    while len(found) < WORDS:
        parts = []
        for _ in range(int(rng.integers(2, 4))):
            parts += [str(sounds[int(rng.integers(len(sounds)))]) for sounds in (first, vowels, last)]
        found["".join(parts)] = None
    return tuple(found)


@cache
def domain(name: str, seed: int) -> Domain:
    """A domain whose table of followers is a function of the seed."""
    rng = np.random.default_rng([seed, NAMES.index(name)])
    followers = np.stack([rng.choice(WORDS, FOLLOWERS, replace=False) for _ in range(WORDS)])
    shares = rng.dirichlet(np.full(FOLLOWERS, 0.7), WORDS)
    return Domain(name, words(name), followers, shares)
