"""What a Trainer is fed: documents to learn, mapped from disk, and documents to measure."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from evomerge.fusion.documents import Document
from evomerge.fusion.losses import IGNORED
from evomerge.fusion.tokenized import Reader, unwritable

if TYPE_CHECKING:
    import datasets

Row = Mapping[str, Any]


def documents_to_learn(files: Sequence[Path]) -> datasets.Dataset:
    """The rows that `evomerge.fusion.targets` wrote, mapped from disk; one for each document."""
    import datasets

    parts = [datasets.Dataset.from_file(str(f)) for f in files]
    return datasets.concatenate_datasets(parts).with_format("numpy")


class HeldOut(torch.utils.data.Dataset[dict[str, Any]]):
    """Documents to measure bits per byte on.

    Each item has `input_ids`, `labels`, `scored`, the bytes that each token counts for (0: none), `unwritable`, how
    many bytes there are that the tokenizer has no token for, and `group`, the number of its domain.
    """

    def __init__(self, documents: Sequence[Document], reader: Reader, domains: Sequence[str]) -> None:
        self._items: list[dict[str, Any]] = []
        for document, tokens in zip(documents, reader.read(documents), strict=True):
            counted = tokens.scored & tokens.known
            # As `nats_and_bytes` does it: the first token is predicted from nothing.
            sizes = np.where(counted & (np.arange(len(tokens)) > 0), tokens.sizes, 0)
            self._items.append(
                {
                    "input_ids": tokens.ids, "labels": np.where(counted, tokens.ids, IGNORED), "scored": sizes,
                    "unwritable": unwritable(tokens), "group": domains.index(document.domain),
                }
            )  # fmt: skip

    def __len__(self) -> int:
        return len(self._items)

    def __getitem__(self, index: int) -> dict[str, Any]:
        return self._items[index]


@dataclass(frozen=True)
class Collator:
    """Pads documents, on the right, into one batch; sparse columns become dense in the number of tokens they are
    about."""

    pad: int

    def __call__(self, rows: Sequence[Row]) -> dict[str, Tensor]:
        length = max(len(r["input_ids"]) for r in rows)
        batch = {
            "input_ids": _padded([r["input_ids"] for r in rows], length, self.pad),
            "attention_mask": _padded([np.ones(len(r["input_ids"]), np.int64) for r in rows], length, 0),
            "labels": _padded([r["labels"] for r in rows], length, IGNORED),
        }
        first = rows[0]
        if "scored" in first:
            batch["scored"] = _padded([r["scored"] for r in rows], length, 0)
            batch["unwritable"] = torch.tensor([r["unwritable"] for r in rows])
            batch["group"] = torch.tensor([r["group"] for r in rows])
        if "fused_positions" in first:
            batch |= _fused(rows, length)
        if "sorted_positions" in first:
            batch["sorted_probabilities"] = _sorted(rows, length)
        if "chunks" in first:
            batch["chunks"] = _padded([r["chunks"] for r in rows], length, -1)
            most = max(1, max(len(r["chunk_likelihoods"]) for r in rows))
            likelihoods = torch.zeros(len(rows), most)
            for i, r in enumerate(rows):
                likelihoods[i, : len(r["chunk_likelihoods"])] = torch.from_numpy(_numbers(r["chunk_likelihoods"]))
            batch["chunk_likelihoods"] = likelihoods
        return batch


def _padded(values: Sequence[Any], length: int, fill: int) -> Tensor:
    found = torch.full((len(values), length), fill, dtype=torch.long)
    for i, value in enumerate(values):
        found[i, : len(value)] = torch.from_numpy(np.asarray(value, np.int64))
    return found


def _numbers(value: Any) -> np.ndarray[Any, Any]:
    return np.array(value, np.float32)  # a copy: what is mapped from disk may not be written to


def _fused(rows: Sequence[Row], length: int) -> dict[str, Tensor]:
    """ids [B, T, K], -1 where there is none, and probabilities [B, T, K], 0 there."""
    widest = max(1, max(int(np.max(r["fused_counts"], initial=0)) for r in rows))
    ids = torch.full((len(rows), length, widest), -1, dtype=torch.long)
    probabilities = torch.zeros(len(rows), length, widest)
    for i, r in enumerate(rows):
        counts = np.asarray(r["fused_counts"], np.int64)
        if not len(counts):
            continue
        positions = torch.from_numpy(np.repeat(np.asarray(r["fused_positions"], np.int64), counts))
        starts = np.repeat(np.cumsum(counts) - counts, counts)
        places = torch.from_numpy(np.arange(int(counts.sum())) - starts)
        ids[i, positions, places] = torch.from_numpy(np.asarray(r["fused_ids"], np.int64))
        probabilities[i, positions, places] = torch.from_numpy(_numbers(r["fused_probabilities"]))
    return {"fused_ids": ids, "fused_probabilities": probabilities}


def _sorted(rows: Sequence[Row], length: int) -> Tensor:
    """Probabilities from the greatest, [B, T, K]."""
    widest = max(int(r["sorted_width"][0]) for r in rows)
    found = torch.zeros(len(rows), length, widest)
    for i, r in enumerate(rows):
        positions = torch.from_numpy(np.asarray(r["sorted_positions"], np.int64))
        if len(positions):
            width = int(r["sorted_width"][0])
            found[i, positions, :width] = torch.from_numpy(_numbers(r["sorted_probabilities"]).reshape(-1, width))
    return found
