"""NearSwap: the other model where it is near the base (https://huggingface.co/alchemonaut/QuartetAnemoi-70B-t0.0001)."""

from __future__ import annotations

from torch import Tensor

from evomerge.merging.group import Group


def nearswap(group: Group, *, t: float) -> Tensor:
    """w B + (1 - w) A with w = clip(t / |B - A|, 0, 1), A the base: which is A + clip(B - A, -t, t).

    Args:
        t: How far an element may move.
    """

    def moved(deltas: list[Tensor], base: Tensor | None) -> Tensor:
        assert base is not None
        # The product is 0, or NaN where B is infinite, which the limit would hide.
        return deltas[0].clamp(-t, t).add_(deltas[0] * 0.0).add_(base)

    return group.elementwise(moved, deltas=True)
