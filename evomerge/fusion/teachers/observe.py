"""One model's predictions of documents: the likelihood of what comes, and the likeliest next tokens."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from evomerge.errors import EvoMergeError
from evomerge.fusion.tokenized import Tokenized

if TYPE_CHECKING:
    from transformers import PreTrainedModel

Array = np.ndarray[Any, Any]
# Bytes of logits that one pass may make: memory grows with the vocabulary, not only with the model.
_LOGITS = {"cpu": 512 << 20, "cuda": 4 << 30}
# Bytes of logits in float32 that are worked on at once: on a CPU what its cache holds, 2.5 times as fast as more.
_CHUNK = {"cpu": 4 << 20, "cuda": 512 << 20}
# Entries of a block of the vocabulary, of which the greatest is looked for first.
_BLOCK = 256


@dataclass(frozen=True)
class Observed:
    """What a model says of one document, at the positions whose next token is to be learned.

    Attributes:
        positions: Which positions, int32 [m].
        likelihoods: Log-probability of the next token that comes, in nats, float32 [m].
        top_ids: The likeliest next tokens, the likeliest first, int32 [m, k].
        top_logprobs: Their log-probabilities, float16 [m, k].
    """

    positions: Array
    likelihoods: Array
    top_ids: Array
    top_logprobs: Array


def wanted(tokens: Tokenized) -> Array:
    """Positions whose next token is to be learned; what the tokenizer could not write is not."""
    return np.flatnonzero(tokens.learned[1:] & tokens.known[1:])


def observe(
    model: PreTrainedModel,
    documents: Sequence[Tokenized],
    top_k: int,
    batch_tokens: int,
    progress: Callable[[int], None] | None = None,
) -> list[Observed]:
    """Run a model over documents, batched by length.

    Batches depend on the documents alone, so that the same documents give the same results.

    Args:
        top_k: How many likely tokens are kept, at most as many as the vocabulary has; 0: none.
        batch_tokens: Tokens of a pass, padding included.
        progress: Called with the number of tokens after each pass.

    Raises:
        EvoMergeError: logits are NaN or infinite.
    """
    config: Any = model.config
    vocabulary = int(config.get_text_config().vocab_size)
    itemsize = torch.finfo(model.dtype).bits // 8
    room = _LOGITS.get(model.device.type, _LOGITS["cuda"]) // (vocabulary * itemsize)
    found: dict[int, Observed] = {}
    for batch in _batches(documents, max(1, min(batch_tokens, room))):
        for number, observed in zip(batch, _pass(model, [documents[i] for i in batch], top_k), strict=True):
            found[number] = observed
        if progress:
            progress(sum(len(documents[i]) for i in batch))
    return [found[i] for i in range(len(documents))]


def _batches(documents: Sequence[Tokenized], tokens: int) -> Iterator[list[int]]:
    """Numbers of the documents of each pass; the longest first, so that memory runs out at once or never."""
    order = sorted(range(len(documents)), key=lambda i: (-len(documents[i]), i))
    batch: list[int] = []
    for i in order:
        if batch and (len(batch) + 1) * len(documents[batch[0]]) > tokens:
            yield batch
            batch = []
        batch.append(i)
    if batch:
        yield batch


def _log_sum_exp(logits: torch.Tensor) -> torch.Tensor:
    """log sum exp over the vocabulary, [rows, 1], in place of the logits: torch.logsumexp takes twice as long."""
    largest = logits.amax(dim=-1, keepdim=True)
    return logits.sub_(largest).exp_().sum(dim=-1, keepdim=True).log_() + largest


def _top(logits: torch.Tensor, k: int) -> tuple[torch.Tensor, torch.Tensor]:
    """The k greatest of each row and their places, [rows, k] each, the greatest first: as `torch.topk`.

    They stand in the k blocks whose greatest are the greatest, so that a large vocabulary is read once, and no more
    than k blocks of it are ordered.
    """
    rows, size = logits.shape
    blocks = size // _BLOCK
    if not k or blocks < 4 * k:
        values, places = logits.topk(k, dim=-1)
        return values, places
    whole = logits[:, : blocks * _BLOCK].view(rows, blocks, _BLOCK)
    of = whole.amax(dim=-1).topk(k, dim=-1).indices[:, :, None]
    inside = torch.arange(_BLOCK, device=logits.device)
    left = torch.arange(blocks * _BLOCK, size, device=logits.device).expand(rows, -1)
    found = torch.cat([whole.gather(1, of.expand(-1, -1, _BLOCK)).flatten(1), logits[:, blocks * _BLOCK :]], dim=1)
    places = torch.cat([(of * _BLOCK + inside).flatten(1), left], dim=1)
    values, best = found.topk(k, dim=-1)
    return values, places.gather(1, best)


@torch.inference_mode()
def _pass(model: PreTrainedModel, documents: Sequence[Tokenized], top_k: int) -> list[Observed]:
    try:
        return _in_one(model, documents, top_k)
    except torch.cuda.OutOfMemoryError:
        if len(documents) == 1:
            raise
    # Half of them at a time; what the failed pass held is free again by now.
    torch.cuda.empty_cache()
    half = len(documents) // 2
    return [*_pass(model, documents[:half], top_k), *_pass(model, documents[half:], top_k)]


def _in_one(model: PreTrainedModel, documents: Sequence[Tokenized], top_k: int) -> list[Observed]:
    length = max(len(d) for d in documents)
    ids = torch.zeros(len(documents), length, dtype=torch.long)
    mask = torch.zeros(len(documents), length, dtype=torch.long)
    rows, columns, following, counts = [], [], [], []
    for row, document in enumerate(documents):
        ids[row, : len(document)] = torch.from_numpy(document.ids.astype(np.int64))
        mask[row, : len(document)] = 1
        positions = wanted(document)
        counts.append(len(positions))
        rows.append(np.full(len(positions), row))
        columns.append(positions)
        following.append(document.ids[positions + 1])
    device = model.device
    # Without padding there is nothing to mask, and attention is faster.
    masked = {} if bool(mask.all()) else {"attention_mask": mask.to(device)}
    logits = model(input_ids=ids.to(device), use_cache=False, **masked).logits
    flat = logits.flatten(0, 1)
    places = torch.from_numpy(np.concatenate(rows) * length + np.concatenate(columns)).to(device)
    nexts = torch.from_numpy(np.concatenate(following).astype(np.int64)).to(device)
    k = min(top_k, flat.shape[-1])
    likelihoods = torch.empty(len(places))
    top_ids = torch.empty(len(places), k, dtype=torch.int32)
    top_logprobs = torch.empty(len(places), k, dtype=torch.float16)
    step = max(1, _CHUNK.get(device.type, _CHUNK["cuda"]) // (flat.shape[-1] * 4))
    for at in range(0, len(places), step):
        part = slice(at, at + step)
        chunk = flat[places[part]].float()  # a copy: indexing makes one
        own = chunk.gather(1, nexts[part, None])
        values, best = _top(chunk, k)
        total = _log_sum_exp(chunk)
        likelihoods[part] = (own - total).squeeze(1).cpu()
        if k:
            top_ids[part] = best.int().cpu()
            # Under 1e-28 float16 ends; nothing is learned from such.
            top_logprobs[part] = (values - total).clamp_(min=-6e4).half().cpu()
    if not bool(torch.isfinite(likelihoods).all()):
        raise EvoMergeError(f"{model.name_or_path or 'the model'}: its logits are NaN or infinite")
    ends = np.cumsum([0, *counts])
    return [
        Observed(
            columns[i].astype(np.int32),
            likelihoods[ends[i] : ends[i + 1]].numpy(),
            top_ids[ends[i] : ends[i + 1]].numpy(),
            top_logprobs[ends[i] : ends[i + 1]].numpy(),
        )
        for i in range(len(documents))
    ]
