"""What one source gives for one output tensor: values by position, read or worked out chunk by chunk."""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cached_property
from typing import Protocol

import torch
from torch import Tensor

from evomerge.merging.native import library, low_rank


class Operand(Protocol):
    """A tensor of a source, stored or virtual.

    Attributes:
        shape: As the output has it.
        dtype: What `chunk` gives.
    """

    @property
    def shape(self) -> tuple[int, ...]: ...

    @property
    def dtype(self) -> torch.dtype: ...

    @property
    def device(self) -> torch.device: ...

    def chunk(self, start: int, stop: int) -> Tensor:
        """Elements `start` up to, without, `stop` in row-major order, flat. Never written to."""
        ...


@dataclass(frozen=True, eq=False)
class Stored:
    """A tensor as it lies in its file (mapped, not copied) or on a device."""

    tensor: Tensor

    @property
    def shape(self) -> tuple[int, ...]:
        return tuple(self.tensor.shape)

    @property
    def dtype(self) -> torch.dtype:
        return self.tensor.dtype

    @property
    def device(self) -> torch.device:
        return self.tensor.device

    def chunk(self, start: int, stop: int) -> Tensor:
        return self._flat[start:stop]

    @cached_property
    def _flat(self) -> Tensor:
        return self.tensor.reshape(-1)


@dataclass(frozen=True, eq=False)
class LowRank:
    """W + scale * left @ right: an adapter on a tensor (LoRA, Hu et al., arXiv 2106.09685).

    The product is summed in float64, rank by rank, and rounded to float32 once, so that it is the same for any chunk.

    Attributes:
        tensor: W, of shape [rows, columns].
        left: [rows, r].
        right: [r, columns].
    """

    tensor: Tensor
    left: Tensor
    right: Tensor
    scale: float

    @property
    def shape(self) -> tuple[int, ...]:
        return tuple(self.tensor.shape)

    @property
    def dtype(self) -> torch.dtype:
        return torch.float64 if self.tensor.dtype == torch.float64 else torch.float32

    @property
    def device(self) -> torch.device:
        return self.tensor.device

    def chunk(self, start: int, stop: int) -> Tensor:
        return self.tensor.reshape(-1)[start:stop].to(self.dtype) + self.delta(start, stop)

    def delta(self, start: int, stop: int) -> Tensor:
        """scale * left @ right alone, flat."""
        columns = self.right.shape[1]
        if stop <= start:
            return torch.empty(0, dtype=self.dtype, device=self.device)
        first, end = start // columns, -(-stop // columns)
        left, right = self._doubles
        lib = library() if self.device.type == "cpu" and self.dtype == torch.float32 else None
        if lib is not None:
            merged = low_rank(lib, left[first:end], right, self.scale)
        else:
            product = torch.zeros(end - first, columns, dtype=torch.float64, device=self.device)
            for k in range(right.shape[0]):
                # Two roundings for each rank: a library's product may order its sums by the size of the chunk.
                product += left[first:end, k : k + 1] * right[k]
            product *= self.scale
            merged = product.to(self.dtype)
        return merged.reshape(-1)[start - first * columns : stop - first * columns]

    @cached_property
    def _doubles(self) -> tuple[Tensor, Tensor]:
        return self.left.double().contiguous(), self.right.double().contiguous()


class Rows(Protocol):
    """Rows by their numbers: a tensor [k, columns], or what works them out when they are asked for."""

    def __getitem__(self, index: Tensor, /) -> Tensor: ...


@dataclass(frozen=True, eq=False)
class Gathered:
    """Rows of another operand in another order: embeddings under another tokenizer.

    Attributes:
        operand: Of shape [old rows, ...].
        index: For each output row its row in `operand`, or -1 - k for row k of `extra`; int64, on the CPU.
        extra: Rows that the operand has not, float32 or float64, [k, columns], on the operand's device.
    """

    operand: Operand
    index: Tensor
    extra: Rows

    @property
    def shape(self) -> tuple[int, ...]:
        return (len(self.index), *self.operand.shape[1:])

    @property
    def dtype(self) -> torch.dtype:
        return torch.float64 if self.operand.dtype == torch.float64 else torch.float32

    @property
    def device(self) -> torch.device:
        return self.operand.device

    def chunk(self, start: int, stop: int) -> Tensor:
        columns = math.prod(self.operand.shape[1:])
        if stop <= start:
            return torch.empty(0, dtype=self.dtype, device=self.device)
        first, end = start // columns, -(-stop // columns)
        rows = self.index[first:end]
        out = torch.empty(end - first, columns, dtype=self.dtype, device=self.device)
        own = (rows >= 0).nonzero().flatten()
        other = (rows < 0).nonzero().flatten()
        if len(own):
            out[own.to(self.device)] = self._own(rows[own], columns).to(self.dtype)
        if len(other):
            out[other.to(self.device)] = self.extra[(-1 - rows[other]).to(self.device)].to(self.dtype)
        return out.reshape(-1)[start - first * columns : stop - first * columns]

    def _own(self, rows: Tensor, columns: int) -> Tensor:
        if isinstance(self.operand, Stored):
            return self.operand.tensor.reshape(-1, columns)[rows.to(self.device)]
        return torch.stack([self.operand.chunk(r * columns, (r + 1) * columns) for r in rows.tolist()])
