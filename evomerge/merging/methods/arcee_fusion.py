"""Arcee Fusion: of another model only the changes that stand out (mergekit's method, https://arcee.ai)."""

from __future__ import annotations

import torch
from torch import Tensor

from evomerge.merging.group import Group
from evomerge.merging.reductions import row_sums
from evomerge.merging.selection import value_of

# Added to probabilities, so that each has a logarithm.
SMALL = 1e-8


def arcee_fusion(group: Group) -> Tensor:
    """A + (B - A) where the importance |B - A| * KL(softmax B || softmax A) is at least median + 1.5 (Q3 - Q1).

    The divergence is that of the element's row, along the last dimension. A quartile is the element at place
    int(q (n - 1)) of all n in order.
    """
    if not group.elements:
        return group.add([0.0])
    rows = group.by_last()
    each = group.fact("divergence", lambda: _divergence(rows)).to(group.dtype)

    def importance(start: int, stop: int) -> Tensor:
        first, end = start // rows.columns, -(-stop // rows.columns)
        spread = each[first:end].repeat_interleave(rows.columns)
        return group.delta(0, start, stop).abs() * spread[start - first * rows.columns : stop - first * rows.columns]

    def quartile(q: int) -> float:
        place = (group.elements - 1) * q // 4
        if place == 0:
            return float(importance(0, group.elements).min())  # of four elements at most
        return value_of(group.find("importance", importance, group.elements - place).bits, group.dtype)

    threshold = group.fact("threshold", lambda: quartile(2) + 1.5 * (quartile(3) - quartile(1)))

    def fused(start: int, stop: int) -> Tensor:
        stands_out = (importance(start, stop) >= threshold).to(group.dtype)
        return (group.delta(0, start, stop) * stands_out).add_(group.base_values(start, stop))

    return group.by_range(fused)


def _divergence(rows: Group) -> Tensor:
    """KL(softmax B || softmax A) of each row, float64 [rows]."""

    def some(start: int, stop: int) -> Tensor:
        both = rows.values(0, start, stop), rows.base_values(start, stop)
        p, q = (torch.softmax(v.reshape(-1, rows.columns).double(), dim=1) + SMALL for v in both)
        return row_sums(p * (p / q).log()).clamp_(min=0.0)

    return torch.cat(rows.chunks.run(some, rows.chunks.ranges(rows.elements, rows.columns)))
