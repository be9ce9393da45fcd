"""RAM: what one task vector changes alone is added, what several change is averaged (arXiv 2601.13572).

RAM+, tensor by tensor: what one changes alone is amplified the more, the more of its changes it shares with others.
"""

from __future__ import annotations

import torch
from torch import Tensor

from evomerge.merging.group import Group


def ram(group: Group, *, epsilon: float) -> Tensor:
    """W_0 + sum m_i d_i / sum m_i, m_i = [|d_i| > epsilon]; where no m_i is 1, W_0.

    Args:
        epsilon: Changes up to this size are none.
    """
    return _fused(group, epsilon, [1.0] * group.n)


def ramplus_tl(group: Group, *, epsilon: float, r: float, alpha: float) -> Tensor:
    """As RAM, but what source i changes alone counts 1 + r min(rho_i, alpha), rho_i = elements it shares / has alone.

    Args:
        r: How much sharing amplifies.
        alpha: Limit of rho.
    """
    counts = group.fact(("shared", epsilon), lambda: _counts(group, epsilon))
    factors = [
        1.0 + r * min(shared / alone if alone else (alpha if shared else 0.0), alpha) for shared, alone in counts
    ]
    return _fused(group, epsilon, factors)


def _fused(group: Group, epsilon: float, alone: list[float]) -> Tensor:
    """The merge, with a factor for what each source changes alone."""

    def some(deltas: list[Tensor], base: Tensor | None) -> Tensor:
        assert base is not None
        changed = [(d.abs() > epsilon).to(base.dtype) for d in deltas]
        count = sum(changed, torch.zeros_like(base))
        total = torch.zeros_like(base)
        for d, own, factor in zip(deltas, changed, alone, strict=True):
            part = d * own
            total += part if factor == 1.0 else torch.where(count == 1.0, part * factor, part)
        return total.div_(count.clamp_(min=1.0)).add_(base)

    return group.elementwise(some, deltas=True)


def _counts(group: Group, epsilon: float) -> list[tuple[float, float]]:
    """For each source how many elements it changes together with others, and how many alone."""

    def block(start: int, stop: int) -> Tensor:
        changed = [group.delta(i, start, stop).abs() > epsilon for i in range(group.n)]
        count = torch.stack(changed).sum(dim=0) if changed else torch.zeros(0, device=group.device)
        each = [(c & (count > 1)).sum() for c in changed] + [(c & (count == 1)).sum() for c in changed]
        return torch.stack(each).double() if each else torch.zeros(0, dtype=torch.float64)

    found = group.total(block)
    return list(zip(found[: group.n], found[group.n :], strict=True))
