"""What is asked about pictures: scenes, questions and answers in English and in Japanese.

A scene is a coloured shape and two digits: how many of it there are, to be added. Every word stands alone between
spaces, in Japanese too, so that one word is one token. Numerals are the same in both languages; the words are written
in another script, so that py3langid tells an answer's language: the evaluator's language constraint is the one that is
used on real models.

What a model may know is a `Knowledge`: which Japanese words, and which sums. Every draw is made from one, so that "no
source was ever shown this" is a property of the arguments.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TypeVar

import numpy as np

T = TypeVar("T")

PAD, EOS, UNKNOWN, IMAGE = "<pad>", "</s>", "<unk>", "<image>"

#      English    Japanese
_SHAPES = """
       circle     円
       square     四角
       triangle   三角
       cross      十字
       ring       輪
       diamond    菱形
       bar        棒
       star       星
"""
_COLOURS = """
       red        赤い
       blue       青い
       green      緑の
       white      白い
       yellow     黄色い
       purple     紫の
       orange     橙の
       pink       桃色の
"""
DIGITS = tuple(str(n) for n in range(10))


def _rows(table: str) -> dict[str, str]:
    return dict(line.split() for line in table.strip().splitlines())


SHAPES, COLOURS = tuple(_rows(_SHAPES)), tuple(_rows(_COLOURS))
JAPANESE = {**_rows(_SHAPES), **_rows(_COLOURS)}
LANGUAGES = ("en", "ja")
# Question and answer of each kind by language; the answer is filled with colour, shape, both digits and their sum.
KINDS = {
    "sum": {
        "en": ("how many are there ?", "{2} + {3} = {4} {0} {1} ."),
        "ja": ("いくつ あります か ？", "{0} {1} が {2} + {3} = {4} です 。"),
    },
    "shape": {
        "en": ("which shape is it ?", "a {0} {1} ."),
        "ja": ("どの 形 です か ？", "{0} {1} です 。"),
    },
}
_ASKED = {"en": "in Japanese ?", "ja": "英語 で ？"}
# What is told where nothing is, and how many patches a side of a picture has.
EMPTY, SIDE = ".", 4
# Of 16 parts: scenes that no model is shown in training, and every test is about.
_HELD_OUT = 3


@dataclass(frozen=True)
class Scene:
    """A coloured shape, by its English words, and two digits."""

    colour: str
    shape: str
    first: str
    second: str

    @property
    def words(self) -> tuple[str, str, str, str]:
        """In the order in which they are told."""
        return self.colour, self.shape, self.first, self.second

    @property
    def sum(self) -> int:
        """Of the digits."""
        return int(self.first) + int(self.second)

    @property
    def held_out(self) -> bool:
        """Whether it is kept for tests, by a hash: a fifth or so of all."""
        return hashlib.sha256(" ".join(self.words).encode()).digest()[0] % 16 < _HELD_OUT


Sum = tuple[str, str]
SUMS: tuple[Sum, ...] = tuple((a, b) for a in DIGITS for b in DIGITS)


@dataclass(frozen=True)
class Knowledge:
    """The words of Japanese and the sums that a text may use; of English everybody knows all words."""

    shapes: tuple[str, ...] = SHAPES
    colours: tuple[str, ...] = COLOURS
    sums: tuple[Sum, ...] = SUMS


# Twenty of the hundred: every digit stands twice at either place.
_KNOWN = tuple(sorted((str(a), str((factor * a + more) % 10)) for a in range(10) for factor, more in ((3, 1), (7, 4))))
# What every model knows: half of the Japanese words, and those sums.
SCHOOL = Knowledge(SHAPES[:4], COLOURS[:4], _KNOWN)
# Of English all words, and those sums.
ENGLISH = Knowledge(sums=SCHOOL.sums)
ALL = Knowledge()


@dataclass(frozen=True)
class Item:
    """A question with its one right answer.

    Attributes:
        scene: What the picture shows; None where the prompt needs none.
    """

    prompt: str
    answer: str
    scene: Scene | None = None


def draw_scene(rng: np.random.Generator, known: Knowledge = ALL, *, held_out: bool = False) -> Scene:
    """A scene of these words and sums, for training or (held out) for tests."""
    while True:
        scene = Scene(_pick(rng, known.colours), _pick(rng, known.shapes), *_pick(rng, known.sums))
        if scene.held_out == held_out:
            return scene


def asked(scene: Scene, kind: str, language: str) -> Item:
    """A question about a scene, which is not in the prompt."""
    question, answer = KINDS[kind][language]
    colour, shape = scene.words[:2] if language == "en" else (JAPANESE[scene.colour], JAPANESE[scene.shape])
    return Item(question, answer.format(colour, shape, scene.first, scene.second, scene.sum), scene)


def draw_about_picture(
    rng: np.random.Generator, kind: str, language: str, known: Knowledge = ALL, *, held_out: bool = False
) -> Item:
    """A question about a picture."""
    return asked(draw_scene(rng, known, held_out=held_out), kind, language)


def draw_about_text(rng: np.random.Generator, kind: str, language: str, known: Knowledge) -> Item:
    """The same question about a picture that is told in English words: a board of as many words as it has patches.

    `. . . 7 red circle . . . . . 5 . . . . how many are there ?`: shape on the left, digits on the right.
    """
    item = draw_about_picture(rng, kind, language, known)
    assert item.scene is not None
    told = board(item.scene, int(rng.integers(SIDE)), int(rng.integers(2)), 2 + int(rng.integers(2)))
    return Item(f"{' '.join(told)} {item.prompt}", item.answer)


def board(scene: Scene, shape_row: int = 1, first_row: int = 1, second_row: int = 2) -> list[str]:
    """A picture in words, as many as it has patches: the shape on the left, the digits on the right, each in a row."""
    found = [EMPTY] * (SIDE * SIDE)
    found[SIDE * shape_row : SIDE * shape_row + 2] = scene.words[:2]
    found[SIDE * first_row + SIDE - 1], found[SIDE * second_row + SIDE - 1] = scene.first, scene.second
    return found


def draw_translation(rng: np.random.Generator, into: str, known: Knowledge) -> Item:
    """An answer, to be said in the other language."""
    said = "en" if into == "ja" else "ja"
    scene = draw_scene(rng, known)
    return Item(f"{asked(scene, 'shape', said).answer} {_ASKED[said]}", asked(scene, "shape", into).answer)


def vocabulary() -> tuple[str, ...]:
    """Every token, in the order of its id."""
    templates = " ".join(text for kind in KINDS.values() for pair in kind.values() for text in pair)
    words = [w for w in templates.split() if not w.startswith("{")]
    words += [*" ".join(_ASKED.values()).split(), *JAPANESE, *JAPANESE.values(), *(str(n) for n in range(19))]
    return tuple(dict.fromkeys((PAD, EOS, UNKNOWN, IMAGE, EMPTY, *words)))


def _pick(rng: np.random.Generator, options: Sequence[T]) -> T:
    return options[int(rng.integers(len(options)))]
