"""What the kernels are handed: the structures of structs.h, and a group's operands in them."""

from __future__ import annotations

import ctypes
from collections.abc import Sequence
from ctypes import c_double, c_float, c_int32, c_int64, c_uint32, c_uint64, c_void_p
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from evomerge.merging.selection import Cut

if TYPE_CHECKING:
    from evomerge.merging.operand import Operand
    from evomerge.merging.reductions import Reductions

Numbers = np.ndarray[Any, np.dtype[Any]]
DTYPES = {torch.float32: 0, torch.bfloat16: 1, torch.float16: 2}


class OperandStruct(ctypes.Structure):
    _fields_ = [("data", c_void_p), ("dtype", c_int32), ("is_delta", c_int32)]


class OutputStruct(ctypes.Structure):
    _fields_ = [("data", c_void_p), ("dtype", c_int32), ("rounded", c_int32)]


class BoundaryStruct(ctypes.Structure):
    _fields_ = [("position", c_int64), ("bits", c_int32), ("bin", c_int32)]


class PartStruct(ctypes.Structure):
    _fields_ = [
        ("operand", OperandStruct), ("weight", c_float), ("share", c_float), ("vote", c_float), ("has_vote", c_int32),
        ("mask", c_int32), ("upper", BoundaryStruct), ("lower", BoundaryStruct), ("key", c_uint64), ("low", c_double),
        ("high", c_double), ("below", c_uint32), ("rescale", c_int32),
    ]  # fmt: skip


class FoundStruct(ctypes.Structure):
    _fields_ = [("bits", c_void_p), ("positions", c_void_p), ("capacity", c_int64), ("count", c_int64)]


def fits(group: Reductions) -> bool:
    """Whether the kernels know the types of a group's inputs: float32 arithmetic on a CPU."""
    every = [*group.sources, *([group.base] if group.base else [])]
    return group.device.type == "cpu" and group.dtype == torch.float32 and all(x.dtype in DTYPES for x in every)


def can_write(rounded: torch.dtype, out: Tensor | None) -> bool:
    """Whether they can write results of a type, into memory of that type or of float32."""
    memory = rounded if out is None else out.dtype
    return rounded in DTYPES and memory in (rounded, torch.float32)


def boundary(cut: Cut) -> BoundaryStruct:
    """A cut."""
    return BoundaryStruct(cut.position, cut.bits, -1)


def output(flat: Tensor, start: int, rounded: torch.dtype) -> OutputStruct:
    """Where the range from `start` on is written."""
    return OutputStruct(flat.data_ptr() + start * flat.element_size(), DTYPES[flat.dtype], DTYPES[rounded])


class Inputs:
    """A group's operands in a range, and what must stay in memory while a kernel reads them."""

    def __init__(self, group: Reductions, start: int, stop: int) -> None:
        self.group = group
        self.start, self.stop = start, stop
        self.count = c_int64(stop - start)
        self._alive: list[object] = []

    def source(self, number: int, *, delta: bool) -> OperandStruct:
        """Values of a source, for the kernel to subtract the base from; or (an adapter on the base) its task vector."""
        if delta and self.group.is_adapter(number):
            return self._worked_out(self.group.delta(number, self.start, self.stop), True)
        return self._values(self.group.sources[number])

    def base(self) -> OperandStruct:
        """Values of the base."""
        assert self.group.base is not None
        return self._values(self.group.base)

    def sources(self, numbers: Sequence[int], *, deltas: bool) -> ctypes.Array[OperandStruct]:
        """Several of them."""
        return array([self.source(i, delta=deltas) for i in numbers])

    def _values(self, operand: Operand) -> OperandStruct:
        if operand.address is not None:
            return OperandStruct(operand.address + self.start * operand.dtype.itemsize, DTYPES[operand.dtype], 0)
        return self._worked_out(operand.chunk(self.start, self.stop))

    def _worked_out(self, values: Tensor, is_delta: bool = False) -> OperandStruct:
        values = values.contiguous()
        self._alive.append(values)
        return OperandStruct(values.data_ptr(), DTYPES[values.dtype], int(is_delta))


def array(listed: Sequence[OperandStruct]) -> ctypes.Array[OperandStruct]:
    """As C has it; never empty."""
    return (OperandStruct * max(len(listed), 1))(*listed)


def pointer(numbers: Numbers) -> c_void_p:
    """Where an array's memory begins."""
    return numbers.ctypes.data_as(c_void_p)
