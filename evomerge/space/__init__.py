"""What may vary: typed, bounded parameters <-> Recipe. Nothing here loads torch."""

from evomerge.space.compact import CompactSpace
from evomerge.space.config import SpaceConfig
from evomerge.space.dataflow import DataflowConfig
from evomerge.space.hybrid import MERGED, HybridConfig
from evomerge.space.load import AnyConfig, default_space, load_space, parse_space, stored_space
from evomerge.space.mergekit_evolve import Migrated
from evomerge.space.parameters import Categorical, Float, Integer, Parameter
from evomerge.space.protocol import Bindable, Config, SearchSpace
from evomerge.space.shape import Shape
from evomerge.space.slots import SlotSpace
from evomerge.space.source import Source
from evomerge.space.space import Space

__all__ = [
    "MERGED",
    "AnyConfig",
    "Bindable",
    "Categorical",
    "CompactSpace",
    "Config",
    "DataflowConfig",
    "Float",
    "HybridConfig",
    "Integer",
    "Migrated",
    "Parameter",
    "SearchSpace",
    "Shape",
    "SlotSpace",
    "Source",
    "Space",
    "SpaceConfig",
    "default_space",
    "load_space",
    "parse_space",
    "stored_space",
]
