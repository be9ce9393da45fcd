"""Which elements of a task vector stay, and how task vectors become one: the end of TIES, DARE, DELLA, Breadcrumbs."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from evomerge.merging.draws import BITS


@dataclass(frozen=True)
class Ranked:
    """Keep the elements from place `first` up to, without, `stop` in the order of descending magnitude."""

    first: int
    stop: int


@dataclass(frozen=True)
class Drawn:
    """Keep each element whose random number is less than `below` (`draws.threshold` of a probability)."""

    below: int


@dataclass(frozen=True)
class DrawnByRank:
    """Keep each element with a probability that rises with its rank by magnitude in its row.

    From `low` for the smallest of a row to `high` for the largest, in equal steps; a row of one element has `high`
    (MagPrune of DELLA, Deep et al., arXiv 2406.11617, section 3.1).

    Attributes:
        rescale: Divide what is kept by its probability.
    """

    low: float
    high: float
    rescale: bool


Mask = Ranked | Drawn | DrawnByRank


@dataclass(frozen=True)
class Part:
    """What is done with one source's task vector d.

    Attributes:
        weight: d times this is what is merged (with whatever rescaling goes into it).
        mask: None keeps all.
        share: What the source counts in normalisation where its sign agrees.
        vote: d times this is summed for the election of a sign; None: `weight`.
    """

    weight: float
    mask: Mask | None = None
    share: float = 1.0
    vote: float | None = None


def keep_probability(ranks: Tensor, low: float, high: float) -> Tensor:
    """Of elements by their descending rank in rows; float64, of the shape of `ranks`."""
    steps = max(ranks.shape[1] - 1, 1)
    return (
        (steps - ranks).double() * ((high - low) / steps) + low
        if ranks.shape[1] > 1
        else torch.full(ranks.shape, high, dtype=torch.float64, device=ranks.device)
    )


def below(probability: Tensor) -> Tensor:
    """What a random number must be less than; float64."""
    return probability * float(1 << BITS)


def least_share(shares: Sequence[float]) -> float:
    """What sums of shares must exceed to be more than what rounding leaves of shares that cancel each other."""
    return math.fsum(map(abs, shares)) * 2.0**-22


def elect(
    parts: Sequence[Tensor], shares: Sequence[float], votes: Sequence[Tensor], normalize: bool, lambda_: float
) -> Tensor:
    """Keep of each part what has the sign of the votes' sum, element by element, and add it up. All flat.

    A sum of 0 elects plus. Where no source agrees the result is 0; where shares cancel each other it is not divided.
    `parts` are overwritten.
    """
    total = votes[0].clone()
    for vote in votes[1:]:
        total += vote
    sign = torch.copysign(torch.ones((), dtype=total.dtype, device=total.device), total)
    mixed = torch.zeros_like(total)
    share = torch.zeros_like(total) if normalize else None
    for part, own in zip(parts, shares, strict=True):
        agreeing = part.mul_(sign).clamp_(min=0.0)
        mixed += agreeing
        if share is not None:
            share += agreeing.sign_().mul_(own)
    if share is not None:
        mixed /= torch.where(share.abs() > least_share(shares), share, 1.0)
    if lambda_ != 1.0:
        mixed *= lambda_
    return mixed.mul_(sign)
