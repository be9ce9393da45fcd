"""Which tensors of a checkpoint have a row for each token: the input embedding and the output head."""

from __future__ import annotations

from evomerge.sources import Source


def embedding_rows(source: Source) -> int:
    """How many rows the input embedding has, padding included; 0 where there is none."""
    named = [info.shape[0] for name, info in source.merged_tensors.items() if _named(source, name) and info.shape]
    for part in (source.text_config, source.config):
        # A composite model's configuration may leave out its text model's default.
        if part.get("vocab_size") in named:
            return int(part["vocab_size"])
    return max(named, key=named.count, default=0)


def is_vocabulary(source: Source, tensor: str) -> bool:
    """Whether a tensor is laid out anew when the vocabulary changes: by its name, and a row for every token."""
    shape = source.tensors[tensor].shape
    return _named(source, tensor) and shape[:1] == (embedding_rows(source),)


def _named(source: Source, tensor: str) -> bool:
    return source.layout.places[tensor].by_token
