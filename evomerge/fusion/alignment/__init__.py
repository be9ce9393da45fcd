"""Which position of one model's tokens stands for which of another's, and which token of its vocabulary for which."""

from evomerge.fusion.alignment.aligner import NONE, Aligner, Alignment
from evomerge.fusion.alignment.byte_offsets import ByteAligner
from evomerge.fusion.alignment.dynamic import DynamicAligner, warp
from evomerge.fusion.alignment.maps import (
    Pairs,
    edit_distance_map,
    exact_map,
    kept_edit_distance_map,
    kept_map,
    read_map,
    statistics_map,
)

__all__ = [
    "NONE",
    "Aligner",
    "Alignment",
    "ByteAligner",
    "DynamicAligner",
    "Pairs",
    "edit_distance_map",
    "exact_map",
    "kept_edit_distance_map",
    "kept_map",
    "read_map",
    "statistics_map",
    "warp",
]
