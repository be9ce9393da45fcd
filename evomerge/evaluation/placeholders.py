"""What stands in braces in a command's arguments. Known before anything is loaded."""

from __future__ import annotations

import re
from collections.abc import Mapping

PLACEHOLDERS = ("model", "items", "output", "seed", "split")
# A word in single braces; doubled braces are braces, and other ones (JSON) stay as they are.
_NAMED = re.compile(r"\{\{([A-Za-z_]+)\}\}|\{([A-Za-z_]+)\}")


def named(argument: str) -> list[str]:
    """The placeholders of an argument, known or not."""
    return [m[2] for m in _NAMED.finditer(argument) if m[2] is not None]


def filled(argument: str, values: Mapping[str, str]) -> str:
    """An argument with its placeholders replaced; `{{word}}` becomes `{word}`."""
    return _NAMED.sub(lambda m: f"{{{m[1]}}}" if m[1] is not None else values[m[2]], argument)
