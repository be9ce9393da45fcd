"""What Python code hands over as arguments, checked as the command line checks its options: one message, before work.

Each function gives the plain value: a number of numpy's becomes Python's, so that what is kept of it (a study's
fingerprint, a recipe) is what a file or the command line would have given.
"""

from __future__ import annotations

import sys
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from evomerge.errors import InputError, choose

# What a count can be at most; more is a slip.
MANY = 10**9


def plain(value: Any) -> Any:
    """What Python code gives instead of a file, as a file would have it.

    Lists of tuples and of numpy's arrays, texts of paths, Python's numbers of numpy's.
    """
    if isinstance(value, Mapping):
        return {k: plain(v) for k, v in value.items()}
    if isinstance(value, list | tuple):
        return [plain(v) for v in value]
    if isinstance(value, Path):
        return str(value)
    # Where nothing has loaded numpy, nothing is of its kinds.
    numpy = sys.modules.get("numpy")
    return value.tolist() if numpy is not None and isinstance(value, numpy.generic | numpy.ndarray) else value


def describe(value: Any) -> str:
    """A short form of a value for messages."""
    if value is None:
        return "nothing (empty)"
    text = repr(value)
    return text if len(text) <= 80 else text[:77] + "..."


def whole(name: str, value: Any, low: int, high: int = MANY) -> int:
    """A whole number; true and false are none.

    Args:
        name: How messages call the argument.

    Raises:
        InputError: it is none, or outside of low to high.
    """
    found = plain(value)
    if isinstance(found, bool) or not isinstance(found, int) or not low <= found <= high:
        raise InputError(f"{name} = {describe(found)}: expected a whole number from {low} to {high}")
    return int(found)


def number(name: str, value: Any, *, above_zero: bool = False) -> float:
    """A number that is 0 or more, or above 0, and at most MANY.

    Raises:
        InputError: it is none.
    """
    found = plain(value)
    # A NaN is in no range.
    if isinstance(found, bool) or not isinstance(found, int | float) or not 0 <= found <= MANY or (
        above_zero and not found
    ):
        if above_zero:
            raise InputError(f"{name} = {describe(found)}: expected a number above 0")
        raise InputError(f"{name} = {describe(found)}: expected a number, 0 or more")
    return found


def share(name: str, value: Any) -> float:
    """The share of a GPU that Ray can give a worker: it has none of several GPUs.

    Raises:
        InputError: it is none.
    """
    found = plain(value)
    if isinstance(found, bool) or not isinstance(found, int | float) or not (
        0 <= found <= 1 or (1 < found <= MANY and found == int(found))
    ):
        raise InputError(f"{name} = {describe(found)}: expected 0, a share up to 1, or a whole number of GPUs")
    return found


def word(name: str, value: Any, choices: Sequence[str]) -> str:
    """One of some words.

    Raises:
        InputError: it is none of them; the nearest is named.
    """
    found = plain(value)
    if not isinstance(found, str) or found not in choices:
        shown = f'"{found}"' if isinstance(found, str) else describe(found)
        raise InputError(f"{name} = {shown}: expected one of some words; {choose(str(found), choices)}")
    return str(found)


def flag(name: str, value: Any) -> bool:
    """True or false.

    Raises:
        InputError: it is neither.
    """
    found = plain(value)
    if not isinstance(found, bool):
        raise InputError(f"{name} = {describe(found)}: expected True or False")
    return found


def text(name: str, value: Any) -> str:
    """A text that says something; of a path its text.

    Raises:
        InputError: it is none, or empty.
    """
    found = plain(value)
    if not isinstance(found, str) or not found.strip():
        raise InputError(f"{name} = {describe(found)}: expected a text that is not empty")
    return str(found)


def texts(name: str, value: Any) -> list[str]:
    """Some texts: one, several, or (None) none.

    Raises:
        InputError: it is something else, or has something else in it.
    """
    found = plain(value)
    if found is None:
        return []
    if isinstance(found, str):
        return [text(name, found)]
    if isinstance(found, Mapping | bytes) or not isinstance(found, Iterable):
        raise InputError(f"{name} = {describe(found)}: expected a list of texts")
    return [text(f"{name}[{i}]", x) for i, x in enumerate(found)]


def path(name: str, value: Any) -> Path:
    """A file or a folder.

    Raises:
        InputError: it is neither a text nor a path.
    """
    if not isinstance(value, str | Path) or not str(value).strip():
        raise InputError(f"{name} = {describe(value)}: expected the path of a file or folder")
    return Path(value)
