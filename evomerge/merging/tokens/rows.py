"""Gathers carried out: rows of embeddings in the order of the merged vocabulary, read as they are needed."""

from __future__ import annotations

import math
from collections.abc import Callable, MutableMapping

import numpy as np
import torch
from torch import Tensor

from evomerge.merging.operand import Gathered, Operand, rows_of
from evomerge.merging.plan import Input
from evomerge.merging.tokens.gather import Gather

# Rows that are summed at once for the mean; fixed, so that the sum has the same bits however chunks are cut.
_BLOCK = 1024

# The mean of all tokens' rows of each tensor that was laid out, [columns].
Means = MutableMapping[tuple[Gather, Input], Tensor]


def gathered(gather: Gather, item: Input, operand: Callable[[Input], Operand], means: Means) -> Gathered:
    """The operand of a tensor under the merged vocabulary.

    Args:
        item: The tensor.
        operand: Gives the operand of any of the gather's tensors as it is in its model.
        means: What was worked out for earlier candidates over the same sources; added to here. A mean takes the whole
            tensor, and no candidate changes it.
    """
    own = operand(item)
    extra = ExtraRows(gather, [operand(other) for other in gather.inputs], own, means.get((gather, item)))
    if extra.mean is not None:
        means[gather, item] = extra.mean
    return Gathered(own, torch.from_numpy(gather.index), extra)


class ExtraRows:
    """Rows that a tensor has not: other models' rows, their means, zeros, and the mean of all tokens' rows.

    Indexed like a tensor of shape [k, columns]; each row is worked out when it is asked for, so that two vocabularies
    that have little in common cost no memory. The mean alone is worked out at once.

    Attributes:
        mean: Of all tokens' rows, [columns]: what padding gets; None where there is no padding.
    """

    def __init__(self, gather: Gather, operands: list[Operand], own: Operand, mean: Tensor | None = None) -> None:
        self._gather = gather
        self._operands = operands
        self._columns = math.prod(own.shape[1:])
        self._device = own.device
        double = any(x.dtype == torch.float64 for x in operands)
        self.dtype = torch.float64 if double else torch.float32
        self.mean = self._token_mean(own) if mean is None and gather.has_padding else mean

    def __getitem__(self, index: Tensor, /) -> Tensor:
        """Rows [n, columns] by their numbers [n]."""
        wanted = index.cpu().numpy()
        out = torch.zeros(len(wanted), self._columns, dtype=self.dtype, device=self._device)
        last = len(self._gather.start) - 1
        padding = np.flatnonzero(wanted == last)
        if len(padding) and self.mean is not None:
            out[torch.from_numpy(padding).to(self._device)] = self.mean
        places = np.flatnonzero(wanted < last)
        first = self._gather.start[wanted[places]]
        counts = self._gather.start[wanted[places] + 1] - first
        for nth in range(int(counts.max(initial=0))):
            # The nth entry of every row; in the models' order, so that sums do not depend on how rows are cut.
            has = counts > nth
            entries = first[has] + nth
            for member in np.unique(self._gather.member[entries]):
                of = self._gather.member[entries] == member
                at = torch.from_numpy(places[has][of]).to(self._device)
                row = torch.from_numpy(self._gather.row[entries[of]])
                out[at] += rows_of(self._operands[member], row).to(self.dtype)
        means = np.flatnonzero(counts > 1)
        if len(means):
            divisor = torch.from_numpy(counts[means]).to(self._device, self.dtype)
            out[torch.from_numpy(places[means]).to(self._device)] /= divisor[:, None]
        return out

    def _token_mean(self, own: Operand) -> Tensor:
        """The mean of all rows that are a token's, [columns]."""
        tokens = np.flatnonzero(self._gather.is_token)
        total = torch.zeros(self._columns, dtype=torch.float64, device=self._device)
        for start in range(0, len(tokens), _BLOCK):
            index = self._gather.index[tokens[start : start + _BLOCK]]
            total += rows_of(own, torch.from_numpy(index[index >= 0])).double().sum(0)
            lacking = torch.from_numpy(-1 - index[index < 0]).to(self._device)
            if len(lacking):
                total += self[lacking].double().sum(0)
        return (total / len(tokens)).to(self.dtype)
