"""TIES: trim, elect sign, merge what agrees (Yadav et al., arXiv 2306.01708)."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from evomerge.merging.group import Group


def ties(group: Group, *, weight: Sequence[float], density: Sequence[float], lambda_: float, normalize: bool) -> Tensor:
    """W_0 + lambda sum m_i w_i topk(d_i) / sum m_i w_i, with m_i = [sign(w_i d_i) = sign(sum w_j d_j)].

    Args:
        density: Share of each task vector that is kept, the largest by magnitude: int(density * n) elements, but at
            least one; at density 0 none.
        normalize: Divide by the weights that agree, element by element.
    """
    parts = [trimmed(group, i, w, d) for i, (w, d) in enumerate(zip(weight, density, strict=True))]
    return elect(group, parts, weight, lambda_, normalize)


def kept(density: float, elements: int) -> int:
    """How many elements a density keeps."""
    if density >= 1.0:
        return elements
    return max(1, int(density * elements)) if density > 0.0 and elements else 0


def trimmed(group: Group, source: int, weight: float, density: float) -> Tensor | None:
    """w_i topk(d_i), flat; None where nothing is left of it."""
    keep = kept(density, group.elements)
    if weight == 0.0 or keep == 0:
        return None
    part = group.deltas[source] * weight
    if keep < group.elements:
        part *= group.largest(source, keep)
    return part


def elect(
    group: Group, parts: Sequence[Tensor | None], weight: Sequence[float], lambda_: float, normalize: bool
) -> Tensor:
    """Keep of the weighted task vectors only what has the sign of their sum, element by element, and add to the base.

    A sum of 0 elects plus. Where no source agrees, the base stays as it is.
    """
    present = [(part, w) for part, w in zip(parts, weight, strict=True) if part is not None]
    if not present:
        return group.base_values.clone().reshape(group.shape)
    total = present[0][0].clone()
    for part, _ in present[1:]:
        total += part
    sign = torch.copysign(torch.ones((), dtype=group.dtype, device=group.device), total)
    mixed = torch.zeros_like(total)
    share = torch.zeros_like(total) if normalize else None
    for part, w in present:
        agreeing = part.mul_(sign).clamp_(min=0.0)
        mixed += agreeing
        if share is not None:
            share += agreeing.sign_().mul_(w)
    if share is not None:
        share += torch.eq(share, 0.0, out=torch.empty_like(share))
        mixed /= share
    if lambda_ != 1.0:
        mixed *= lambda_
    return mixed.mul_(sign).add_(group.base_values).reshape(group.shape)
