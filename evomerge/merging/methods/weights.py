"""Sums of weights, what they are divided by, and what weights are made of from dot products."""

from __future__ import annotations

import math
from collections.abc import Sequence

from torch import Tensor

from evomerge.errors import CandidateError
from evomerge.merging.group import Group
from evomerge.methods import NOTHING, sum_problem


def check_weights(method: str, weights: Sequence[float], switch: str = "normalize") -> float:
    """The sum of weights that are normalised.

    Args:
        switch: Name of the parameter that turns normalising off; empty where nothing does.

    Raises:
        CandidateError: the sum is 0, so that there is no average.
    """
    problem = sum_problem(weights, switch)
    if problem:
        raise CandidateError(f"{method}: {problem}")
    return math.fsum(weights)


def divisor(weight: Sequence[float], normalize: bool) -> float:
    """What a sum of task vectors is divided by: the sum of weights, or 1 where it is 0 or not asked for."""
    total = math.fsum(weight)
    return total if normalize and abs(total) >= NOTHING else 1.0


def finite(products: Sequence[Sequence[float]]) -> bool:
    """Whether all dot products are: where they are not, an input is not either."""
    return all(math.isfinite(x) for row in products for x in row)


def weighted(group: Group, weights: Sequence[float]) -> Tensor:
    """The weighted sum of what a method works on: task vectors, added to the base, where the group has one."""
    return group.combine(weights) if group.base is None else group.add(weights)


def products(group: Group) -> list[list[float]]:
    """Dot products of what a method works on: task vectors where the group has a base, else values."""
    return group.gram() if group.base is None else group.delta_gram()
