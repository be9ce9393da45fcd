"""What is asked about pictures: scenes, questions and answers in English and in Japanese.

A scene is a shape and a digit, each in a colour. Every word stands alone between spaces, in Japanese too, so that one
word is one token. Japanese is written in another script than English, so that py3langid tells an answer's language by
any of its words: the evaluator's language constraint is the one that is used on real models.
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
_DIGITS = """
       zero       零
       one        一
       two        二
       three      三
       four       四
       five       五
       six        六
       seven      七
       eight      八
       nine       九
"""


def _rows(table: str) -> dict[str, str]:
    return dict(line.split() for line in table.strip().splitlines())


SHAPES, COLOURS, DIGITS = tuple(_rows(_SHAPES)), tuple(_rows(_COLOURS)), tuple(_rows(_DIGITS))
JAPANESE = {**_rows(_SHAPES), **_rows(_COLOURS), **_rows(_DIGITS)}
LANGUAGES = ("en", "ja")
# Question and answer of each kind by language; the answer is filled with words of the scene.
KINDS = {
    "all": {
        "en": ("what is in the picture ?", "a {0} {1} and a {2} {3} ."),
        "ja": ("絵 に 何 が あります か ？", "{0} {1} と {2} {3} です 。"),
    },
    "shape": {
        "en": ("which shape is it ?", "a {0} {1} ."),
        "ja": ("どの 形 です か ？", "{0} {1} です 。"),
    },
    "digit": {
        "en": ("which digit is it ?", "a {2} {3} ."),
        "ja": ("どの 数字 です か ？", "{2} {3} です 。"),
    },
}
_ASKED = {"en": "in Japanese ?", "ja": "英語 で ？"}
_LINKS = ("scene", ":", ",")
# Of 16 parts: scenes that no model is shown in training, and every test is about.
_HELD_OUT = 3


@dataclass(frozen=True)
class Scene:
    """A coloured shape and a coloured digit, by their English words."""

    colour: str
    shape: str
    ink: str
    digit: str

    @property
    def words(self) -> tuple[str, str, str, str]:
        """In the order of an answer."""
        return self.colour, self.shape, self.ink, self.digit

    @property
    def held_out(self) -> bool:
        """Whether it is kept for tests, by a hash: a fifth or so of all."""
        return hashlib.sha256(" ".join(self.words).encode()).digest()[0] % 16 < _HELD_OUT


@dataclass(frozen=True)
class Knowledge:
    """The words of Japanese that a text may use; of English everybody knows all."""

    shapes: tuple[str, ...] = SHAPES
    colours: tuple[str, ...] = COLOURS
    digits: tuple[str, ...] = DIGITS


ALL = Knowledge()
# What every model knows: half of the words.
SCHOOL = Knowledge(SHAPES[:4], COLOURS[:4], DIGITS[:5])


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
    """A scene of these words, for training or (held out) for tests."""
    while True:
        scene = Scene(
            _pick(rng, known.colours), _pick(rng, known.shapes), _pick(rng, known.colours), _pick(rng, known.digits)
        )
        if scene.held_out == held_out:
            return scene


def asked(scene: Scene, kind: str, language: str) -> Item:
    """A question about a scene, which is not in the prompt."""
    question, answer = KINDS[kind][language]
    return Item(question, answer.format(*_said(scene, language)), scene)


def draw_about_picture(
    rng: np.random.Generator, language: str, known: Knowledge = ALL, *, held_out: bool = False
) -> Item:
    """A question about a picture."""
    return asked(draw_scene(rng, known, held_out=held_out), _pick(rng, tuple(KINDS)), language)


def draw_about_text(rng: np.random.Generator, language: str, known: Knowledge) -> Item:
    """The same question about a scene that is told in English words: `scene : red circle , blue seven . ...`."""
    item = draw_about_picture(rng, language, known)
    assert item.scene is not None
    colour, shape, ink, digit = item.scene.words
    return Item(f"scene : {colour} {shape} , {ink} {digit} . {item.prompt}", item.answer)


def draw_translation(rng: np.random.Generator, into: str, known: Knowledge) -> Item:
    """An answer, to be said in the other language."""
    said = "en" if into == "ja" else "ja"
    scene, kind = draw_scene(rng, known), _pick(rng, tuple(KINDS))
    return Item(f"{asked(scene, kind, said).answer} {_ASKED[said]}", asked(scene, kind, into).answer)


def vocabulary() -> tuple[str, ...]:
    """Every token, in the order of its id."""
    templates = " ".join(text for kind in KINDS.values() for pair in kind.values() for text in pair)
    words = [w for w in templates.split() if not w.startswith("{")]
    words += [*_LINKS, *" ".join(_ASKED.values()).split(), *JAPANESE, *JAPANESE.values()]
    return tuple(dict.fromkeys((PAD, EOS, UNKNOWN, IMAGE, *words)))


def _said(scene: Scene, language: str) -> Sequence[str]:
    return scene.words if language == "en" else [JAPANESE[w] for w in scene.words]


def _pick(rng: np.random.Generator, options: tuple[T, ...]) -> T:
    return options[int(rng.integers(len(options)))]
