"""Every error that evomerge raises on purpose, with the exit code that the command line gives it.

One root (`EvoMergeError`), typed kinds below it. A message is one line (or one line per problem) that says where
the problem is (file, key), what was found, what was expected, and the nearest valid choice.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Sequence
from pathlib import Path

from evomerge.hiding import hidden


class EvoMergeError(Exception):
    """Root of all errors raised on purpose; the command line prints its message without a traceback.

    A message has no secrets, whatever it quotes: it is shown, logged, and kept with studies.
    """

    exit_code = 1

    def __init__(self, *args: object) -> None:
        super().__init__(*(hidden(a) if isinstance(a, str) else a for a in args))


class InputError(EvoMergeError, ValueError):
    """What the user gave is wrong: refused before time is spent (exit code 2)."""

    exit_code = 2


class RecipeError(InputError):
    """A merge recipe cannot be read, or says something that cannot be built."""


class SourceError(InputError):
    """A source model is missing, incomplete, in a refused format, or does not fit the others."""


class SpaceError(InputError):
    """A search space is wrong, or an optimizer cannot take it."""


class EvaluatorError(InputError):
    """An evaluator is wrong: unknown task, metric or option."""


class StudyError(InputError):
    """A study or its storage is not what the command says it is."""


class DiskFullError(InputError):
    """There is no room where something is to be written. (While a search runs it is a plain stop, exit code 1.)"""


class SourceChangedError(EvoMergeError):
    """A source model's file has changed while it was in use."""


class CandidateError(EvoMergeError):
    """One candidate failed (NaN weights, an evaluator that raised, ...). The search records it and goes on."""


class Interrupted(KeyboardInterrupt):
    """A signal ended the command. Like `KeyboardInterrupt` no error: whatever catches those must not catch it.

    Attributes:
        exit_code: As shells count it: 130 for SIGINT, 143 for SIGTERM.
    """

    def __init__(self, words: str, signum: int) -> None:
        super().__init__(words)
        self.exit_code = 128 + signum


def nearest(value: str, choices: Iterable[str]) -> str | None:
    """The choice that looks most like `value`, or None when nothing is near."""
    found = difflib.get_close_matches(str(value), list(choices), n=1, cutoff=0.6)
    return found[0] if found else None


def beside(path: Path) -> str:
    """Words that end a message about a path that is not there: the nearest name beside it, where there is one."""
    try:
        near = nearest(path.name, [p.name for p in path.parent.iterdir()])
    except OSError:  # no such folder, or one that may not be looked into
        return ""
    return f'; did you mean "{path.parent / near}"?' if near else ""


def choose(value: str, choices: Sequence[str]) -> str:
    """Words that end a message about a wrong choice: the nearest one first, then all of them when they are few.

    >>> choose("tise", ["ties", "linear"])
    'did you mean "ties"? Valid: ties, linear'
    """
    near = nearest(value, choices)
    words = f'did you mean "{near}"? ' if near else ""
    shown = list(choices) if len(choices) <= 24 else [*list(choices)[:24], f"... ({len(choices)} in all)"]
    return f"{words}Valid: {', '.join(shown)}"


def first_line(error: BaseException | str, most: int = 300) -> str:
    """What an error says, in one line and without secrets; its kind where it says nothing.

    Args:
        most: Characters that are kept.
    """
    text = str(error).strip() or (type(error).__name__ if isinstance(error, BaseException) else "no reason given")
    return hidden(text.splitlines()[0])[:most]
