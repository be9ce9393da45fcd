"""What a fusion of image models comes to."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from evomerge.images.config import ImageFusionConfig

if TYPE_CHECKING:
    from evomerge.images.measure import Distances


@dataclass(frozen=True)
class FusedImages:
    """A finished fusion of image models.

    Attributes:
        out: Everything that it made.
        model: The student: a pipeline of diffusers' with `styles` beside it; see `images.student.StyledPipeline`.
        architecture: Class of its denoiser.
        told: What it is told of a picture: "class", "text" or "none".
        distances: Of each style to each teacher.
        prompts: What was asked for to measure them.
        replaced: Of each teacher by its style, components of its own that the base's stand for.
        learned: Mean losses in the course of the training.
        contents, places: Hash and folder of what it began as ("begins") and of each teacher, by style.
        old: Styles that it had before.
        pictures: How many it was shown.
        training_seconds: In all runs together.
        seconds: Of this run.
    """

    config: ImageFusionConfig
    out: Path
    model: Path
    architecture: str
    told: str
    distances: Distances
    prompts: tuple[str | int, ...]
    replaced: Mapping[str, tuple[str, ...]]
    learned: tuple[Mapping[str, float], ...]
    contents: Mapping[str, str]
    places: Mapping[str, str]
    old: tuple[str, ...]
    pictures: int
    training_seconds: float
    seconds: float


def replaced_lines(replaced: Mapping[str, Sequence[str]]) -> list[str]:
    """What it means that teachers have components of their own, in words; nothing where none has."""
    return [
        f"{name}: its own {' and '.join(components)} differ from the base's, with which it is asked and measured here: "
        "not with its own"
        for name, components in replaced.items()
    ]
