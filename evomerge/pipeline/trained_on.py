"""The texts that sources were trained on, where that is known: those of fusions, which lie beside their checkpoints."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from pathlib import Path

from evomerge.evaluation import Evaluator
from evomerge.evaluation.config import Split
from evomerge.evaluation.overlaps import Overlaps, overlaps
from evomerge.fusion.prepared import learned_texts
from evomerge.pipeline.fusion_plan import RECORD
from evomerge.sources import Source


def corpora(sources: Iterable[Source]) -> dict[str, Iterable[str]]:
    """The documents that fused sources learned from, by "the corpus of FOLDER"; each fusion's once."""
    found: dict[str, Iterable[str]] = {}
    for source in sources:
        for folder in source.folders:
            # A fusion writes OUT/model, or OUT/models/NAME.
            out = next((o for o in (folder.parent, folder.parent.parent) if (o / RECORD).is_file()), None)
            if out is not None and learned_texts(out / "corpus") is not None:
                found[f"the corpus of {out.name}"] = _Documents(out / "corpus")
    return found


class _Documents:
    """Read when they are asked for, file by file."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def __iter__(self) -> Iterator[str]:
        return iter(learned_texts(self._folder) or ())


def shared(evaluator: Evaluator, sources: Iterable[Source], splits: Iterable[Split]) -> Overlaps:
    """What items of an evaluator's splits have in common, and with what sources learned from."""
    return overlaps({split: evaluator.texts(split) for split in splits}, corpora(sources))
