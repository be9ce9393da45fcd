"""TIES: trim, elect sign, merge what agrees (Yadav et al., arXiv 2306.01708)."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from evomerge.merging.group import Group
from evomerge.merging.masks import Part, Ranked
from evomerge.merging.sums import kept_magnitude


def ties(
    group: Group,
    *,
    weight: Sequence[float],
    density: Sequence[float],
    lambda_: float,
    normalize: bool,
    rescale: bool,
) -> Tensor:
    """W_0 + lambda sum m_i w_i topk(d_i) / sum m_i w_i, with m_i = [sign(w_i d_i) = sign(sum w_j d_j)].

    Args:
        density: Share of each task vector that is kept, the largest by magnitude: int(density * n) elements, but at
            least one; at density 0 none.
        normalize: Divide by the weights that agree, element by element.
        rescale: Scale what is kept of a task vector to the sum of magnitudes that all of it had.
    """
    parts = [
        ranked(group, i, w, Ranked(0, kept(d, group.elements)), rescale)
        for i, (w, d) in enumerate(zip(weight, density, strict=True))
    ]
    return group.masked(parts, elect_sign=True, normalize=normalize, lambda_=lambda_)


def kept(density: float, elements: int) -> int:
    """How many elements a density keeps."""
    if density >= 1.0:
        return elements
    return max(1, int(density * elements)) if density > 0.0 and elements else 0


def ranked(group: Group, source: int, weight: float, mask: Ranked, rescale: bool, scale: float = 1.0) -> Part | None:
    """The part of a source of which some places in the order of magnitudes are kept; None where nothing is left of it.

    Args:
        scale: A factor that does not count in normalising.
        rescale: Keep the sum of magnitudes, as in `ties`.
    """
    if mask.stop <= mask.first or weight == 0.0:
        return None
    if mask.stop - mask.first >= group.elements:
        return Part(weight * scale, share=weight)
    if rescale:
        own = kept_magnitude(group, source, mask)
        scale *= kept_magnitude(group, source, Ranked(0, group.elements)) / own if own else 1.0
    return Part(weight * scale, mask, share=weight)
