"""The last number of an answer, read as people write it: 1,200 is one number, and so is １，２００."""

import re
import unicodedata
from collections.abc import Iterable, Sequence
from typing import Any

# A minus belongs to a number unless something is subtracted: 答えは-3, but 5-3.
NUMBER = re.compile(r"(?:(?<![\d)])-)?(?:\d{1,3}(?:,\d{3})+(?!\d)|\d+)(?:\.\d+)?")


def last_number(answers: Iterable[Sequence[str]], docs: Sequence[Any]) -> list[list[str]]:
    """lm-eval's `custom` filter: of each answer its last number in plain digits, "" where it has none."""
    return [[read(text) for text in of] for of in answers]


def read(text: str) -> str:
    """ "1,200" and "1200.0" are "1200"; units of ten thousand (万) are not read."""
    found = NUMBER.findall(unicodedata.normalize("NFKC", text))
    if not found:
        return ""
    number = found[-1].replace(",", "")
    return number.rstrip("0").rstrip(".") if "." in number else number
