"""Fisher-weighted averaging (Matena & Raffel, arXiv 2111.09832)."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from evomerge.merging.group import Group
from evomerge.merging.methods.weights import check_weights


def fisher(group: Group, *, weight: Sequence[float]) -> Tensor:
    """sum w_i F_i W_i / sum w_i F_i, element by element; F_i the diagonal Fisher information of source i.

    Where no source has any information about an element, and for tensors without statistics, it is the average
    sum w_i W_i / sum w_i.

    Args:
        weight: Of each source, on top of its information; not negative.

    Raises:
        CandidateError: all weights are 0.
    """
    plain = shares("fisher", weight)
    if not group.statistics:
        return group.combine(plain)
    # Fisher information spans many orders of magnitude, and squares of small gradients are tiny: float64.
    used = [i for i, w in enumerate(weight) if w != 0.0]

    def averaged(values: list[Tensor], information: list[Tensor]) -> Tensor:
        total = torch.zeros_like(values[0], dtype=torch.float64)
        weighted, average = torch.zeros_like(total), torch.zeros_like(total)
        for i in used:
            importance, value = information[i].double() * weight[i], values[i].double()
            total += importance
            weighted += importance * value
            average += plain[i] * value
        return torch.where(total > 0.0, weighted / total, average).to(values[0].dtype)

    return group.with_statistics(averaged)


def shares(method: str, weight: Sequence[float]) -> list[float]:
    """The weights of a plain average, which sum to 1.

    Raises:
        CandidateError: all weights are 0.
    """
    total = check_weights(method, weight, switch="")
    return [w / total for w in weight]
