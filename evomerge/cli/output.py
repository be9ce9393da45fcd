"""What a command prints: one result on stdout, as text or (`--json`) as one JSON value; errors on stderr."""

from __future__ import annotations

import argparse
import json
import math
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from os import PathLike, fspath
from pathlib import Path
from typing import Any

from evomerge.errors import RecipeError
from evomerge.hiding import hidden


def emit(args: argparse.Namespace, result: Mapping[str, Any] | Sequence[Any], text: str) -> None:
    """Print a command's result: `result` as JSON where `--json` was given, else `text` (nothing when empty).

    `args.stdout` is the real one: while a `--json` command runs, `sys.stdout` points to stderr, so that what
    libraries print does not land beside the result.
    """
    if args.json:
        print(dumps(result), file=args.stdout)
    elif text:
        print(text, file=args.stdout)


def say(args: argparse.Namespace, text: str) -> None:
    """One line of progress on stderr (the same with and without `--json`)."""
    print(hidden(text), file=sys.stderr, flush=True)


def emit_error(message: str, as_json: bool) -> None:
    """Print an error on stderr, and with `--json` also `{"error": message}` on stdout; no secret in either."""
    message = hidden(message)
    print(f"evomerge: error: {message}", file=sys.stderr)
    if as_json:
        print(dumps({"error": message}))


@contextmanager
def about(file: Path) -> Iterator[None]:
    """Name a recipe's file in front of what its models show to be wrong with it."""
    try:
        yield
    except RecipeError as e:
        lines = (x if x.startswith(" ") or str(file) in x else f"{file}: {x}" for x in str(e).splitlines())
        raise RecipeError("\n".join(lines)) from None


def dumps(value: Any) -> str:
    """Strict JSON on one line: NaN and infinities, which JSON does not have, become null."""
    return json.dumps(_plain(value), ensure_ascii=False, allow_nan=False)


def _plain(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {str(k): _plain(v) for k, v in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(v) for v in value]
    if isinstance(value, PathLike):
        return fspath(value)
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value
