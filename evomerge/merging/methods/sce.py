"""SCE: select, calculate, erase (FuseChat, Wan et al., arXiv 2408.07990, section 3.3)."""

from __future__ import annotations

import math

from torch import Tensor

from evomerge.merging.group import Group
from evomerge.merging.masks import Part
from evomerge.merging.sums import energies


def sce(group: Group, *, select_topk: float) -> Tensor:
    """W_0 + sum eta_i m_i d_i / sum eta_i m_i over the selected positions, eta_i = sum d_i^2 / sum_j sum d_j^2.

    Selected are the positions of largest variance over the task vectors d_i; m_i = [sign(d_i) = sign(sum d_j)].

    Args:
        select_topk: Share of the positions where the task vectors differ at all that is selected: int(share * their
            number). (The paper counts the share over all positions; mergekit and its own code over these.)
    """
    selection = None
    if select_topk < 1.0:
        selection = group.variance_cut(int(group.differing() * select_topk))
    own = energies(group, selection)
    total = math.fsum(own) if all(map(math.isfinite, own)) else math.nan
    if total == 0.0:
        return group.add([0.0] * group.n)
    shares = [e / total for e in own]
    parts = [Part(share, share=share, vote=1.0) for share in shares]
    return group.masked(parts, elect_sign=True, normalize=True, selection=selection)
