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
        address: Where in memory its elements lie one after the other; None where they are worked out.
    """

    @property
    def shape(self) -> tuple[int, ...]: ...

    @property
    def dtype(self) -> torch.dtype: ...

    @property
    def device(self) -> torch.device: ...

    @property
    def address(self) -> int | None: ...

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
    def address(self) -> int | None:
        return self._flat.data_ptr()

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

    @property
    def address(self) -> int | None:
        return None

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

    @property
    def address(self) -> int | None:
        return None

    def chunk(self, start: int, stop: int) -> Tensor:
        columns = math.prod(self.operand.shape[1:])
        if stop <= start:
            return torch.empty(0, dtype=self.dtype, device=self.device)
        first, end = start // columns, -(-stop // columns)
        rows = self.index[first:end]
        other = (rows < 0).nonzero().flatten()
        if not len(other):
            out = rows_of(self.operand, rows).to(self.dtype)
        else:
            out = torch.empty(end - first, columns, dtype=self.dtype, device=self.device)
            own = (rows >= 0).nonzero().flatten()
            if len(own):
                out[own.to(self.device)] = rows_of(self.operand, rows[own]).to(self.dtype)
            out[other.to(self.device)] = self.extra[(-1 - rows[other]).to(self.device)].to(self.dtype)
        return out.reshape(-1)[start - first * columns : stop - first * columns]


def rows_of(operand: Operand, rows: Tensor) -> Tensor:
    """Some rows of an operand, [n, columns], in its type.

    Args:
        rows: Their numbers, [n], on the CPU. Where they follow each other they are read at one go.
    """
    columns = math.prod(operand.shape[1:])
    if not len(rows):
        return torch.empty(0, columns, dtype=operand.dtype, device=operand.device)
    ends = [*((rows[1:] - rows[:-1]) != 1).nonzero().flatten().add_(1).tolist(), len(rows)]
    if len(ends) > 1 and isinstance(operand, Stored):
        return operand.tensor.reshape(-1, columns)[rows.to(operand.device)]
    firsts = rows[[0, *ends[:-1]]].tolist()
    counts = [end - start for start, end in zip([0, *ends[:-1]], ends, strict=True)]
    parts = [operand.chunk(r * columns, (r + n) * columns) for r, n in zip(firsts, counts, strict=True)]
    return (parts[0] if len(parts) == 1 else torch.cat(parts)).reshape(-1, columns)


@dataclass(frozen=True, eq=False)
class Change:
    """scale * left @ right alone: what an adapter changes."""

    adapter: LowRank

    @property
    def shape(self) -> tuple[int, ...]:
        return self.adapter.shape

    @property
    def dtype(self) -> torch.dtype:
        return self.adapter.dtype

    @property
    def device(self) -> torch.device:
        return self.adapter.device

    @property
    def address(self) -> int | None:
        return None

    def chunk(self, start: int, stop: int) -> Tensor:
        return self.adapter.delta(start, stop)


@dataclass(frozen=True)
class _Differences:
    """Rows less other rows of the same numbers."""

    own: Rows
    base: Rows

    def __getitem__(self, index: Tensor, /) -> Tensor:
        return self.own[index] - self.base[index]


def task_vector(own: Operand, base: Operand) -> Operand | None:
    """Own less base where both lie on the same stored tensor, which then is not rounded away: the adapters' product.

    Of two adapters it is the product of both pairs at once. Under a tokenizer rows are gathered as the tensor's are,
    where both are gathered alike. None where values must be subtracted.
    """
    if isinstance(own, Gathered) and isinstance(base, Gathered):
        inner = task_vector(own.operand, base.operand)
        if inner is None or not (own.index is base.index or torch.equal(own.index, base.index)):
            return None
        return Gathered(inner, own.index, _Differences(own.extra, base.extra))
    if not isinstance(own, Stored | LowRank) or not isinstance(base, Stored | LowRank):
        return None
    if not _same(own.tensor, base.tensor):
        return None
    if isinstance(own, LowRank) and isinstance(base, Stored):
        return Change(own)
    if not isinstance(base, LowRank) or (isinstance(own, LowRank) and _is_same_adapter(own, base)):
        return None  # less itself it is 0
    signed = [(base, -base.scale), *([(own, own.scale)] if isinstance(own, LowRank) else [])]
    left = torch.cat([x.left.double() * scale for x, scale in signed], dim=1)
    right = torch.cat([x.right.double() for x, _ in signed])
    return Change(LowRank(own.tensor, left, right, 1.0))


def _is_same_adapter(a: LowRank, b: LowRank) -> bool:
    return a.scale == b.scale and _same(a.left, b.left) and _same(a.right, b.right)


def _same(a: Tensor, b: Tensor) -> bool:
    return a is b or (a.data_ptr() == b.data_ptr() and a.dtype == b.dtype and a.shape == b.shape)
