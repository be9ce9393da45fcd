"""What a fusion hands over: targets, what they were measured to be, and the search over them where there was one."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from evomerge.fusion.config import FusionConfig
from evomerge.fusion.cutting import Counts
from evomerge.fusion.targets import Targets
from evomerge.fusion.training import Outcome as Training
from evomerge.score import Score
from evomerge.study.outcome import Outcome


@dataclass(frozen=True)
class Model:
    """A model of a fusion as it was measured.

    Attributes:
        role: "target" (as it was before), "source", "fused" or "merged".
        reference: How it is named.
        content: Its content hash.
        architecture: Class name of the model.
        bits_per_byte: On the held-out documents by domain, and their mean.
        score: On the evaluator's test items.
        answers: Mean score of its answers to held-out questions, where a fusion is about answers.
    """

    name: str
    role: str
    reference: str
    content: str
    architecture: str
    bits_per_byte: Mapping[str, float]
    score: Score | None = None
    answers: float | None = None


@dataclass(frozen=True)
class Answers:
    """What a fusion by preferences learned from.

    Attributes:
        best, pairs: How many best answers were learned, and how many pairs.
        taken: How many of both are of each source.
    """

    best: int
    pairs: int
    taken: Mapping[str, int]


@dataclass(frozen=True)
class Fused:
    """A finished fusion.

    Attributes:
        models: Everything that was measured.
        counts: What became of the corpus's documents.
        tokens: How many tokens of the target are learned from.
        held_out: How many documents are measured on.
        targets: What each fused model learned from, by name.
        trainings: How each was trained, by name.
        cache_bytes: Of the passes of the sources, on disk, for each position kept.
        model: The checkpoint that came out.
        search: The search over the targets.
        answers: Of a fusion by preferences.
        overlaps: Test items that stand in the text that was learned, see `evaluation.overlaps`; None: not scored.
    """

    config: FusionConfig
    out: Path
    models: tuple[Model, ...]
    counts: Counts
    tokens: int
    held_out: int
    targets: Mapping[str, Targets]
    trainings: Mapping[str, Training]
    cache_bytes: float
    seconds: float
    model: Path
    search: Outcome | None = None
    answers: Answers | None = None
    overlaps: Mapping[str, Any] | None = None
