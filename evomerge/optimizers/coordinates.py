"""Numbers <-> the unit interval, where every parameter has the same width."""

from __future__ import annotations

import math

from evomerge.space.parameters import Float, Integer


def bins(parameter: Float | Integer) -> int:
    """Number of values that the parameter can have; 0 where it is continuous."""
    return parameter.high - parameter.low + 1 if isinstance(parameter, Integer) else parameter.count or 0


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
