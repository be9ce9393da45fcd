"""What may vary: typed, bounded parameters <-> Recipe. Nothing here loads torch."""

from evomerge.space.config import SpaceConfig
from evomerge.space.load import default_space, load_space, parse_space
from evomerge.space.parameters import Categorical, Float, Integer, Parameter
from evomerge.space.space import Space

__all__ = [
    "Categorical",
    "Float",
    "Integer",
    "Parameter",
    "Space",
    "SpaceConfig",
    "default_space",
    "load_space",
    "parse_space",
]
