"""Numbers <-> the unit interval, where every parameter has the same width."""

from __future__ import annotations

import math
from collections.abc import Sequence

from evomerge.space.parameters import Float, Integer

# The first step of an evolution strategy: a quarter of a range, and no longer than this where a range is wider. The
# weight of a source has a unit of its own, 1 being the source as it is, however much room its range leaves beside that.
STEP, LONGEST = 0.25, 0.375


def bins(parameter: Float | Integer) -> int:
    """Number of values that the parameter can have; 0 where it is continuous."""
    return parameter.high - parameter.low + 1 if isinstance(parameter, Integer) else parameter.count or 0


def first_steps(parameters: Sequence[Float | Integer], sigma: float | None = None) -> list[float]:
    """The first standard deviation of each parameter, as a share of its range.

    Args:
        sigma: The same share for all; default: a quarter, of real numbers at most .375 in their own unit.
    """

    def share(p: Float | Integer) -> float:
        own = isinstance(p, Float) and not p.log
        return min(STEP, LONGEST / (p.high - p.low)) if own else STEP

    return [share(p) if sigma is None else sigma for p in parameters]


def to_unit(parameter: Float | Integer, value: float) -> float:
    """The place of a value in [0, 1]: of its logarithm where that is searched, of its bin for what has a grid."""
    if isinstance(parameter, Integer):
        return (value - parameter.low + 0.5) / bins(parameter)
    if parameter.step is not None:
        return (parameter.index(value) + 0.5) / bins(parameter)
    low, high = parameter.low, parameter.high
    if parameter.log:
        low, high, value = math.log(low), math.log(high), math.log(value)
    return min(max((value - low) / (high - low), 0.0), 1.0)


def from_unit(parameter: Float | Integer, u: float) -> float | int:
    """The value at a place in [0, 1], within the bounds whatever the rounding; what has a grid has equal bins."""
    u = min(max(float(u), 0.0), 1.0)
    if count := bins(parameter):
        k = min(int(u * count), count - 1)
        return parameter.low + k if isinstance(parameter, Integer) else parameter.at(k)
    assert isinstance(parameter, Float)
    low, high = parameter.low, parameter.high
    value = math.exp(math.log(low) + u * (math.log(high) - math.log(low))) if parameter.log else low + u * (high - low)
    return min(max(value, low), high)
