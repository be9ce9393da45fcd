"""ROUGE-L: how much of an answer's and a reference's words come in the same order (Lin, 2004, "ROUGE: A Package for
Automatic Evaluation of Summaries"), as a score for answers in any language.

The library is rouge-score, which lm-eval has. Its own way to cut words knows the letters a to z and digits alone: of a
Japanese answer nothing would be left. Here words are runs of letters, marks and digits of any script, without case; of
scripts that set no spaces between words (Chinese, Japanese, Thai, ...) every character is one. Nothing is stemmed.
"""

from __future__ import annotations

import functools
import re
import unicodedata
from collections.abc import Sequence
from importlib.metadata import version
from typing import Any

LIBRARY = "rouge-score"
# Scripts without spaces between words, by the beginning of their characters' names in Unicode.
_UNSPACED = ("CJK", "HIRAGANA", "KATAKANA", "THAI", "LAO", "KHMER", "MYANMAR", "TIBETAN", "HALFWIDTH KATAKANA")
_WORD = re.compile(r"[^\W_]+")


def words(text: str) -> list[str]:
    """A text's words: runs of letters and digits, single characters in scripts without spaces."""
    found: list[str] = []
    for run in _WORD.findall(unicodedata.normalize("NFKC", text).casefold()):
        start = 0
        for at, character in enumerate(run):
            if _alone(character):
                found += [run[start:at]] * (at > start) + [character]
                start = at + 1
        found += [run[start:]] * (start < len(run))
    return found


def rouge_l(answer: str, references: str | Sequence[str]) -> float:
    """F-measure of ROUGE-L, from 0 to 1: of the longest common subsequence of words; the best over the references."""
    listed = [references] if isinstance(references, str) else list(references)
    found: float = _scorer().score_multi(listed, answer)["rougeL"].fmeasure
    return found


def rouge_version() -> str:
    """What a result depends on beside the texts."""
    return f"{LIBRARY} {version(LIBRARY)}"


class _Words:
    """Our way to cut words, as rouge-score asks for one."""

    def tokenize(self, text: str) -> list[str]:
        return words(text)


@functools.cache
def _scorer() -> Any:
    from rouge_score.rouge_scorer import RougeScorer

    return RougeScorer(["rougeL"], tokenizer=_Words())


@functools.lru_cache(maxsize=4096)
def _alone(character: str) -> bool:
    return unicodedata.name(character, "").startswith(_UNSPACED)
