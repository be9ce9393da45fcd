"""Numbers <-> the unit interval, where every parameter has the same width."""

from __future__ import annotations

import math

from evomerge.space.parameters import Float, Integer


def to_unit(parameter: Float | Integer, value: float) -> float:
    """The place of a value in [0, 1]: of its logarithm where that is searched, of its bin for an integer."""
    if isinstance(parameter, Integer):
        return (value - parameter.low + 0.5) / (parameter.high - parameter.low + 1)
    low, high = parameter.low, parameter.high
    if parameter.log:
        low, high, value = math.log(low), math.log(high), math.log(value)
    return min(max((value - low) / (high - low), 0.0), 1.0)


def from_unit(parameter: Float | Integer, u: float) -> float | int:
    """The value at a place in [0, 1], within the bounds whatever the rounding; integers have bins of equal width."""
    u = min(max(float(u), 0.0), 1.0)
    if isinstance(parameter, Integer):
        count = parameter.high - parameter.low + 1
        return parameter.low + min(int(u * count), count - 1)
    low, high = parameter.low, parameter.high
    value = math.exp(math.log(low) + u * (math.log(high) - math.log(low))) if parameter.log else low + u * (high - low)
    return min(max(value, low), high)
