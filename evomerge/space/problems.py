"""Everything that is wrong with a space's file in one error, each problem at its key."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from pydantic import BaseModel, ValidationError
from pydantic_core import InitErrorDetails, PydanticCustomError

from evomerge.config import Key


def refuse(config: BaseModel, problems: Iterable[tuple[Key, str]]) -> None:
    """Raise the problems, if there are any; to be called in a validator of the model.

    Raised there, their places become places of the whole file: one line per problem.
    """
    details = [
        InitErrorDetails(type=PydanticCustomError("space", "{text}", {"text": text}), loc=key, input=_at(config, key))
        for key, text in problems
    ]
    if details:
        raise ValidationError.from_exception_data("space", details)


def _at(config: BaseModel, key: Key) -> Any:
    """What the file has there, else the default."""
    for unset in (True, False):
        value: Any = config.model_dump(mode="json", exclude_unset=unset)
        try:
            for part in key:
                value = value[part]
        except (KeyError, IndexError, TypeError):
            continue
        return value.get("model", value) if isinstance(value, dict) and "sources" in key else value
    return None
