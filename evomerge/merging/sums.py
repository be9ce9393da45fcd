"""Sums over task vectors that one method or another needs; float64, the same for any threads and chunks."""

from __future__ import annotations

import torch
from torch import Tensor

from evomerge.merging.group import Group
from evomerge.merging.masks import Ranked
from evomerge.merging.selection import Cut, magnitude_bits

# Elements of the pieces by which columns are summed: fixed, so that the order of the sums is.
_PIECE = 1 << 18
_PIECES = 16


def energies(group: Group, selection: Cut | None = None) -> list[float]:
    """Sum of squares of each task vector, over all positions or over those whose variance lies before a cut."""
    gram = group.delta_gram(selection)
    return [gram[i][i] for i in range(group.n)]


def kept_magnitude(group: Group, source: int, mask: Ranked) -> float:
    """Sum of the magnitudes of a task vector's elements that a mask keeps."""
    return _magnitude(group, source, mask.stop) - _magnitude(group, source, mask.first)


def _magnitude(group: Group, source: int, keep: int) -> float:
    if keep <= 0:
        return 0.0

    cut = group.cut(source, keep)

    def block(start: int, stop: int) -> Tensor:
        delta = group.delta(source, start, stop)
        return (delta.double().abs() * cut.before(magnitude_bits(delta), start)).sum().reshape(1)

    return group.fact(("magnitude", source, keep), lambda: group.total(block)[0])


def column_gram(group: Group, *, deltas: bool) -> Tensor:
    """Dot products column by column of the sources' values or task vectors: float64 [columns, n, n]."""
    columns = max(group.columns, 1)
    step = max(1, _PIECE // columns) * columns
    give = group.delta if deltas else group.values

    def piece(start: int, stop: int) -> Tensor:
        own = [give(i, start, stop).reshape(-1, columns).double() for i in range(group.n)]
        return torch.stack([torch.stack([(a * b).sum(dim=0) for b in own], dim=1) for a in own], dim=1)

    def several(start: int, stop: int) -> Tensor:
        total = torch.zeros(columns, group.n, group.n, dtype=torch.float64, device=group.device)
        for at in range(start, stop, step):
            total += piece(at, min(at + step, stop))
        return total

    size = step * _PIECES
    ranges = [(a, min(a + size, group.elements)) for a in range(0, group.elements, size)]
    total = torch.zeros(columns, group.n, group.n, dtype=torch.float64, device=group.device)
    for found in group.chunks.run(several, ranges):
        total += found
    return total
