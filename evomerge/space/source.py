"""The models of a space and the short names that its parameters bear."""

from __future__ import annotations

import re
from collections.abc import Collection, Iterator, Mapping, Sequence
from typing import Annotated, Any

from pydantic import AfterValidator, Field, field_validator, model_validator

from evomerge.config import Frozen, Key
from evomerge.errors import RecipeError
from evomerge.recipe import ModelReference

# Names of what every search measures beside its sources.
RESERVED = ("base", "uniform", "best")
NAME = re.compile(r"[\w.+-]+")


class Source(Frozen):
    """A model to merge: its reference and the short name that parameters bear.

    Attributes:
        model: A folder, a hub id (`org/name@revision`) or `zoo:NAME`; `+` adds a LoRA adapter.
        name: Short name in parameters, tables and reports; default: the last part of the reference.
    """

    model: str
    name: str = ""

    @model_validator(mode="before")
    @classmethod
    def _plain(cls, value: Any) -> Any:
        return {"model": value} if isinstance(value, str) else value

    @field_validator("model")
    @classmethod
    def _spelled(cls, value: str) -> str:
        return reference(value)

    @field_validator("name")
    @classmethod
    def _readable(cls, value: str) -> str:
        if value and not NAME.fullmatch(value):
            raise ValueError("expected letters, digits and _ . + -")
        return value

    def at(self, places: Mapping[str, str]) -> Source:
        """The same source at another reference."""
        return self.model_copy(update={"model": places.get(self.model, self.model)})


def repeated(sources: Sequence[Source]) -> Iterator[tuple[Key, str]]:
    """The problem of every source that stands twice."""
    seen: dict[str, int] = {}
    for i, source in enumerate(sources):
        if source.model in seen:
            yield ("sources", i), f"is given twice (as source {seen[source.model] + 1} too)"
        seen[source.model] = i


def reference(value: str) -> str:
    """One spelling of a model reference (no slash at the end).

    Raises:
        ValueError: a part of it is empty.
    """
    try:
        return str(ModelReference.parse(value.rstrip("/") or value))
    except RecipeError as e:
        raise ValueError(str(e)) from None


def unique_names(sources: Sequence[Source], reserved: Collection[str] = RESERVED) -> tuple[Source, ...]:
    """Fill in short names: the last part of the path; where two share it, with its parent, then with a number.

    Args:
        reserved: Names that results use.

    Raises:
        ValueError: two sources are given one name, or one a name that results use.
    """
    given = [s.name for s in sources if s.name]
    for name in given:
        if given.count(name) > 1:
            raise ValueError(f'two sources are named "{name}"')
        if name in reserved:
            raise ValueError(f'"{name}" is what results call something else; give the source another name')
    taken = {*given, *reserved}
    last = [_short(s.model, 1) for s in sources]
    out = []
    for i, source in enumerate(sources):
        if source.name:
            out.append(source)
            continue
        tries = [] if last.count(last[i]) > 1 else [last[i]]
        tries += [_short(source.model, 2), *(f"{last[i]}_{n}" for n in range(1, len(sources) + 2))]
        name = next(t for t in tries if t not in taken)
        taken.add(name)
        out.append(Source(model=source.model, name=name))
    return tuple(out)


def named_models(base: str | None, sources: Sequence[Source]) -> list[str]:
    """Every model that a space names, the base first."""
    return list(dict.fromkeys([*([base] if base else []), *(s.model for s in sources)]))


# As fields of a space's configuration: a model in one spelling, and the sources with their short names filled in.
Model = Annotated[str, AfterValidator(reference)]
Sources = Annotated[tuple[Source, ...], Field(min_length=1), AfterValidator(lambda found: unique_names(found))]


def _short(model: str, parts: int) -> str:
    found = ModelReference.parse(model)
    path = (found.lora or found.path).removeprefix("zoo:")
    words = [p for p in re.split(r"[/\\]", path) if p not in ("", ".", "..")][-parts:]
    return re.sub(r"[^\w.+-]+", "_", "_".join(words)) or "source"
