"""A source's tensor as an operand: as it lies in its file, or with a LoRA adapter on it, never multiplied out."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from evomerge.errors import SourceError
from evomerge.header import TensorInfo
from evomerge.merging.mapped import MappedFiles
from evomerge.merging.operand import LowRank, Operand, Stored
from evomerge.sources import Source

if TYPE_CHECKING:
    from transformers import PreTrainedModel

# Elements that are worked out at a time when an adapter is merged into a live model.
_PIECE = 1 << 22


def operand(source: Source, name: str, read: Callable[[TensorInfo], Tensor]) -> Operand:
    """What a source gives for one of its tensors.

    Args:
        name: In the source (`source.tensors`).
        read: The tensor that lies where a header says, mapped, on the device of computation. It must give the same
            bytes for the same place, so that an adapter's task vector against its own model is exactly the product.
    """
    stored = read(source.tensors[name])
    update = source.adapter.updates.get(name) if source.adapter is not None else None
    if update is None:
        return Stored(stored)
    a, b = read(update.a), read(update.b)
    left, right = (a.t(), b.t()) if update.transposed else (b, a)
    return LowRank(stored, left, right, update.scale)


@torch.no_grad()
def merge_into(model: PreTrainedModel, source: Source) -> None:
    """Put a source's adapter on a live model that holds the weights of the source's own model, in place.

    Raises:
        SourceError: the live model keeps a weight that the adapter changes in another form.
    """
    if source.adapter is None:
        return
    from evomerge.merging.conversion import converted_parts

    files = MappedFiles()
    live: dict[str, Tensor] = model.state_dict(keep_vars=True)
    shapes = {name: source.tensors[name].shape for name in (*source.adapter.updates, *source.adapter.replaced)}
    for name, part in converted_parts(shapes, model).items():
        place = part.view(live[part.name].detach()) if part is not None and part.name in live else None
        if place is None or tuple(place.shape) != shapes[name]:
            raise SourceError(f'{source.adapter.path}: the live model has no place for "{name}", which it changes')
        own = operand(source, name, files.tensor)
        if not place.is_contiguous():
            place.copy_(own.chunk(0, math.prod(own.shape)).reshape(place.shape))
            continue
        flat = place.view(-1)
        for start in range(0, flat.numel(), _PIECE):
            stop = min(start + _PIECE, flat.numel())
            flat[start:stop].copy_(own.chunk(start, stop))
