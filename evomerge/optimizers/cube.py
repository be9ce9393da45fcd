"""Typed parameters <-> points of the unit cube, for searches whose points are vectors of reals."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import numpy.typing as npt

from evomerge.optimizers.coordinates import from_unit, to_unit
from evomerge.score import Value
from evomerge.space.parameters import Categorical, Parameter

Point = npt.NDArray[np.float64]
# Keys of a choice that is given and of the others: near enough that a small step can change it.
CHOSEN, OTHERS = 0.6, 0.4


class Cube:
    """Numbers have one coordinate each (see `coordinates`); a category has a key for each choice, the highest wins.

    Keys make a choice a matter of reals (random keys, Bean 1994): steps and lines between points move it like numbers.

    Attributes:
        size: Number of coordinates.
    """

    def __init__(self, parameters: Sequence[Parameter]) -> None:
        self.parameters = tuple(parameters)
        self.size = sum(len(p.choices) if isinstance(p, Categorical) else 1 for p in self.parameters)

    def point(self, params: Mapping[str, Value]) -> Point:
        """The point of some parameters, shape (size,)."""
        found: list[float] = []
        for p in self.parameters:
            value = params[p.name]
            if isinstance(p, Categorical):
                found += [CHOSEN if choice == value else OTHERS for choice in p.choices]
            else:
                found.append(to_unit(p, float(value)))
        return np.array(found)

    def params(self, point: Point) -> dict[str, Value]:
        """The parameters of a point, in their order."""
        found: dict[str, Value] = {}
        at = 0
        for p in self.parameters:
            if isinstance(p, Categorical):
                found[p.name] = p.choices[int(np.argmax(point[at : at + len(p.choices)]))]
                at += len(p.choices)
            else:
                found[p.name] = from_unit(p, float(point[at]))
                at += 1
        return found


def folded(point: Point) -> Point:
    """What left the cube is thrown back by as much as it left it."""
    within = np.mod(point, 2.0)
    return np.minimum(within, 2.0 - within)
