"""What a search is after: one or several objectives, and limits that a model must keep. Part of an evaluator's file."""

from __future__ import annotations

from collections.abc import Sequence

from pydantic import Field, model_validator

from evomerge.config import Frozen

# The weighted mean of the tasks; the number of layers of a path.
SCORE, DEPTH = "score", "depth"
# What is measured of a task's generated answers beside its metric: TASK.length is their mean number of characters,
# TASK.language the share of them in the language that the task asks for.
LENGTH, LANGUAGE = "length", "language"
MEASURES = (LENGTH, LANGUAGE)


class Constraint(Frozen):
    """A limit on something that is measured; exactly one of the three ways to give it.

    Attributes:
        of: A task (its metric as its authors report it), TASK.length, TASK.language, or depth.
        at_least, at_most: The limit itself.
        keep: At least this share of what the base has, or without one the best source: what must not be forgotten.
    """

    of: str
    at_least: float | None = None
    at_most: float | None = None
    keep: float | None = Field(default=None, gt=0, le=1)

    @model_validator(mode="after")
    def _one(self) -> Constraint:
        given = [k for k in ("at_least", "at_most", "keep") if getattr(self, k) is not None]
        if len(given) != 1:
            raise ValueError(f"expected one of at_least, at_most and keep, got {', '.join(given) or 'none'}")
        return self


def measured(name: str) -> tuple[str, str | None]:
    """`TASK.length` as (TASK, "length"); a task's name as (TASK, None)."""
    task, _, measure = name.rpartition(".")
    return (task, measure) if task and measure in MEASURES else (name, None)


def named_twice(names: Sequence[str]) -> list[str]:
    """What a list has more than once."""
    return sorted({n for n in names if names.count(n) > 1})
