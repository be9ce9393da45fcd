"""Weighted sums and dot products by the kernels."""

from __future__ import annotations

import ctypes
import math
from collections.abc import Sequence
from ctypes import byref, c_float, c_int64
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from evomerge.merging.chunks import BLOCK
from evomerge.merging.native.structs import Inputs, Numbers, array, boundary, output, pointer
from evomerge.merging.selection import Cut

if TYPE_CHECKING:
    from evomerge.merging.group import Group
    from evomerge.merging.reductions import Reductions


def weighted_sum(
    lib: ctypes.CDLL, group: Group, weights: Sequence[float], base_weight: float | None, out: Tensor
) -> None:
    """`Group.combine`, or (base_weight None) `Group.add`."""
    flat = out.reshape(-1)
    used = [i for i, w in enumerate(weights) if w != 0.0]
    deltas = base_weight is None
    factors = [weights[i] for i in used]
    if base_weight:
        factors.insert(0, base_weight)

    def work(start: int, stop: int) -> None:
        inputs = Inputs(group, start, stop)
        listed = [inputs.source(i, delta=deltas) for i in used]
        if base_weight:
            listed.insert(0, inputs.base())
        base = byref(inputs.base()) if deltas else None
        factor = (c_float * max(len(factors), 1))(*factors)
        target = output(flat, start, group.out_dtype)
        if lib.evomerge_sum(len(listed), array(listed), factor, base, inputs.count, byref(target)):
            group.note_not_finite()

    group.pieces.run(work, group.pieces.ranges(group.elements))


def gram(lib: ctypes.CDLL, group: Reductions, *, deltas: bool, selection: Cut | None = None) -> list[list[float]]:
    """`Group.gram` (the base last) or `Group.delta_gram`."""
    with_base = group.base is not None and not deltas
    size = group.n + with_base
    pairs = size * (size + 1) // 2
    chosen = byref(boundary(selection)) if selection is not None else None

    def work(start: int, stop: int) -> Numbers:
        inputs = Inputs(group, start, stop)
        listed = [inputs.source(i, delta=deltas) for i in range(group.n)]
        if with_base:
            listed.append(inputs.base())
        base = byref(inputs.base()) if deltas else None
        out = np.zeros((-(-(stop - start) // BLOCK), pairs))
        lib.evomerge_gram(size, array(listed), base, chosen, c_int64(start), inputs.count, pointer(out))
        return out

    found = group.pieces.run(work, group.pieces.ranges(group.elements))
    parts = np.concatenate(found) if found else np.zeros((0, pairs))
    sums = iter([exact_sum(column) for column in parts.T.tolist()])
    products = [[0.0] * size for _ in range(size)]
    for i in range(size):
        for j in range(i, size):
            products[i][j] = products[j][i] = next(sums)
    return products


def low_rank(lib: ctypes.CDLL, left: Tensor, right: Tensor, scale: float) -> Tensor:
    """scale * left @ right, float64 in and float32 out: `LowRank.delta` of some rows."""
    (rows, rank), columns = left.shape, right.shape[1]
    left, right = left.contiguous(), right.contiguous()
    out = torch.empty(rows, columns, dtype=torch.float32)
    lib.evomerge_low_rank(
        ctypes.c_void_p(left.data_ptr()), ctypes.c_void_p(right.data_ptr()), c_int64(rank), c_int64(rows),
        c_int64(columns), ctypes.c_double(scale), ctypes.c_void_p(out.data_ptr()),
    )  # fmt: skip
    return out


def exact_sum(parts: Sequence[float]) -> float:
    """math.fsum, which refuses infinities, or their plain sum."""
    return math.fsum(parts) if all(map(math.isfinite, parts)) else sum(parts)
