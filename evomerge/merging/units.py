"""Sums over more than one tensor: over a transformer block, or over the whole model.

For methods that weigh a source by what it is in a whole unit (`Method.units`), and so must look at every tensor before
they merge the first. The engine does that ahead; the sums of single tensors are remembered between candidates.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence

from evomerge.merging.plan import TensorPlan

MODEL, LAYER = "model", "layer"


def mean_squares(
    tensors: Sequence[TensorPlan], energies: Callable[[TensorPlan], Sequence[float]]
) -> Mapping[str, tuple[float, ...]]:
    """For each tensor that is merged by a larger unit, by name: its sources' mean squared task vectors over that unit.

    A source counts in a unit where it is merged in it. Sums are exact, so that their order does not matter.

    Args:
        energies: Sum of squares of each of a tensor's task vectors; finite.
    """
    units = {t.name: unit for t in tensors if (unit := _unit(t))}
    wanted = set(units.values())
    parts: dict[tuple[str, str], list[float]] = {}
    counts: dict[tuple[str, str], int] = {}
    for t in tensors:
        mine = [unit for unit in (MODEL, t.layer) if unit in wanted]
        if t.copied or t.base is None or not mine:
            continue
        for item, energy in zip(t.inputs, energies(t), strict=True):
            for unit in mine:
                parts.setdefault((unit, item.model), []).append(energy)
                counts[unit, item.model] = counts.get((unit, item.model), 0) + t.elements

    def mean(unit: str, model: str) -> float:
        return math.fsum(parts[unit, model]) / max(counts[unit, model], 1)

    means = {key: mean(*key) for key in parts}
    return {t.name: tuple(means[units[t.name], item.model] for item in t.inputs) for t in tensors if t.name in units}


def _unit(t: TensorPlan) -> str:
    """What a tensor is weighed by; empty where that is the tensor itself."""
    if t.copied or t.base is None:
        return ""
    asked = t.parameters.get("unit")
    return MODEL if asked == MODEL else t.layer if asked == LAYER else ""
