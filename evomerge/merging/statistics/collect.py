"""Statistics of one model from one text, to a folder; all of it or nothing."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, Protocol

import torch
from safetensors.torch import save_file
from torch import Tensor

from evomerge import __version__
from evomerge.errors import CandidateError, SourceError
from evomerge.merging.checkpoint import atomic_folder
from evomerge.merging.conversion import converted_parts
from evomerge.merging.device import check_device
from evomerge.merging.live import live_model, load_tokenizer
from evomerge.merging.statistics.files import MANIFEST, TENSORS, VERSION
from evomerge.merging.statistics.fisher import Labels, fisher_diagonal, total_tokens
from evomerge.merging.statistics.gram import input_grams
from evomerge.merging.statistics.text import read_documents, tokenized
from evomerge.sources import Source

if TYPE_CHECKING:
    from transformers import PreTrainedModel


@dataclass(frozen=True)
class Settings:
    """How statistics are collected.

    Attributes:
        labels: Of Fisher information; see `fisher_diagonal`.
        max_length: Tokens of each document that are read.
        samples: Documents at most; None takes all.
        batch_size: Documents in one pass (Gram matrices only: Fisher information needs each one's own gradient).
        seed: Of the labels that are drawn.
    """

    kind: Literal["fisher", "gram"]
    labels: Labels = "model"
    max_length: int = 512
    samples: int | None = None
    batch_size: int = 8
    device: str = "cpu"
    seed: int = 0


class Watcher(Protocol):
    """Told what goes on."""

    def begin(self, tokens: int) -> None:
        """The model is loaded; so many tokens are to be read."""

    def done(self, tokens: int) -> None:
        """So many more have been read."""


def collect(
    source: Source, text: Path, out: Path, settings: Settings, watcher: Watcher | None = None
) -> dict[str, Any]:
    """Run a model over a text and write what was asked for.

    Returns:
        The manifest, as it was written.

    Raises:
        InputError: the text or the folder cannot be used.
        SourceError: the model cannot be loaded.
        CandidateError: what was collected has NaN or infinite values.
    """
    documents, digest = read_documents(text)
    device = torch.device(check_device(settings.device))
    with atomic_folder(out, False, _bytes(source, settings.kind)) as folder:
        tokens = tokenized(documents, load_tokenizer(source), settings.max_length, settings.samples)
        model = live_model(source, torch.float32, device)
        _check_tokens(tokens, model, source)
        if watcher:
            watcher.begin(total_tokens(tokens))
        done = watcher.done if watcher else None
        if settings.kind == "fisher":
            generator = torch.Generator().manual_seed(settings.seed)
            live = fisher_diagonal(model, tokens, settings.labels, generator, done)
        else:
            live = input_grams(model, tokens, settings.batch_size, done)
        tensors = _by_checkpoint_name(live, model, source, settings.kind)
        if not tensors:
            raise SourceError(f"{source.path}: none of its tensors has statistics of kind {settings.kind}")
        bad = [name for name, x in tensors.items() if not bool(torch.isfinite(x).all())]
        if bad:
            raise CandidateError(f'{source.reference}: the statistics of "{bad[0]}" have NaN or infinite values')
        facts: dict[str, Any] = {
            "version": VERSION, "kind": settings.kind, "model": source.content_hash(), "reference": source.reference,
            "text": digest, "samples": len(tokens), "tokens": total_tokens(tokens), "max_length": settings.max_length,
            "tensors": len(tensors), "evomerge": __version__,
        }  # fmt: skip
        if settings.kind == "fisher":
            facts |= {"labels": settings.labels, "seed": settings.seed}
        save_file(tensors, folder / TENSORS, metadata={"format": "pt"})
        (folder / MANIFEST).write_text(json.dumps(facts, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
        (folder / TENSORS).chmod((folder / MANIFEST).stat().st_mode)  # the library keeps it from everybody else
    return facts


def _bytes(source: Source, kind: str) -> int:
    """About what will be written."""
    shapes = [info.shape for info in source.merged_tensors.values() if info.is_float]
    if kind == "fisher":
        return 4 * sum(info.elements for info in source.merged_tensors.values() if info.is_float)
    return 4 * sum(shape[1] ** 2 for shape in shapes if len(shape) == 2)


def _check_tokens(tokens: list[list[int]], model: PreTrainedModel, source: Source) -> None:
    weight: Any = model.get_input_embeddings().weight
    rows = int(weight.shape[0])
    largest = max(max(t) for t in tokens)
    if largest >= rows:
        raise SourceError(f"{source.path}: its tokenizer gives token {largest}, its embedding has {rows} rows")


def _by_checkpoint_name(
    live: Mapping[str, Tensor], model: PreTrainedModel, source: Source, kind: str
) -> dict[str, Tensor]:
    """From the live model's names to the checkpoint's: parts of a live parameter get their part of its statistics."""
    weights: dict[str, Tensor] = model.state_dict(keep_vars=True)
    # A tied weight has several names, and statistics under one of them.
    known = {id(weights[name]): x for name, x in live.items()}
    uses = [name for name, x in weights.items() if id(x) in known]
    shared = {id(weights[n]) for n in uses if sum(weights[m] is weights[n] for m in uses) > 1}
    shapes = {name: info.shape for name, info in source.merged_tensors.items() if info.is_float}
    found: dict[str, Tensor] = {}
    for name, part in converted_parts(shapes, model).items():
        weight = weights.get(part.name) if part is not None else None
        if part is None or weight is None or id(weight) not in known:
            continue
        x = known[id(weight)]
        if kind == "fisher":
            x = part.view(x)
        elif id(weight) in shared or (part.steps and x.shape != (shapes[name][-1],) * 2):
            continue  # a head tied to the embedding is averaged with it; a part that sees other inputs has none
        found[name] = x.cpu().contiguous().clone()
    return found
