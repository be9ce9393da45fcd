"""From scored answers to what is learned: best answers, and pairs of a better and a worse one of the same source."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from evomerge.fusion.documents import Document
from evomerge.fusion.files import whole
from evomerge.fusion.preferences.answers import Answered, questions

Row = dict[str, Any]


@dataclass(frozen=True)
class Pairs:
    """What is learned, in TRL's conversational formats.

    Attributes:
        sft: {"prompt", "completion"} of each question of the first part: the best answer of all sources.
        dpo: {"prompt", "chosen", "rejected"} of the others that have a pair.
        taken: How many best answers and pairs are of each source.
    """

    sft: tuple[Row, ...]
    dpo: tuple[Row, ...]
    taken: dict[str, int]


def choose_pairs(answered: Sequence[Answered], documents: Sequence[Document], sft_share: float, margin: float) -> Pairs:
    """Choose as FuseChat-3.0 does: the source whose best answer is the best of all; of it, its best and its worst.

    Which part a question goes to is told by a hash of it, so that equal questions go together. Of equal scores the
    first source's, and the first of its answers, is taken.
    """
    sft: list[Row] = []
    dpo: list[Row] = []
    taken = {a.name: 0 for a in answered}
    for number, ((question, _), document) in enumerate(zip(questions(documents), documents, strict=True)):
        source = max(answered, key=lambda a: max(a.scores[number]))
        scores, answers = source.scores[number], source.answers[number]
        best = max(range(len(scores)), key=lambda i: scores[i])
        worst = min(range(len(scores)), key=lambda i: scores[i])
        part = int(document.beginning(len(question)).digest[:13], 16) / 16**13
        if part < sft_share:
            sft.append({"prompt": question, "completion": _answer(answers[best])})
            taken[source.name] += 1
        elif scores[best] - scores[worst] > margin and answers[best] != answers[worst]:
            dpo.append({"prompt": question, "chosen": _answer(answers[best]), "rejected": _answer(answers[worst])})
            taken[source.name] += 1
    return Pairs(tuple(sft), tuple(dpo), taken)


def _answer(text: str) -> list[dict[str, str]]:
    return [{"role": "assistant", "content": text}]


def write_pairs(pairs: Pairs, folder: Path) -> tuple[Path, Path]:
    """Write both as JSON lines, for TRL here and elsewhere."""
    files = folder / "sft.jsonl", folder / "dpo.jsonl"
    for file, rows in zip(files, (pairs.sft, pairs.dpo), strict=True):
        with whole(file) as part:
            part.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")
    return files
