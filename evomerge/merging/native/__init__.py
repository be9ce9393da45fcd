"""Compiled kernels (kernels.cpp): built once on the machine, kept on disk, equal to torch's way bit for bit."""

from evomerge.merging.native.build import library
from evomerge.merging.native.cuts import Cuts
from evomerge.merging.native.masked import Job, masked
from evomerge.merging.native.structs import can_write, fits
from evomerge.merging.native.sums import exact_sum, gram, low_rank, weighted_sum

__all__ = ["Cuts", "Job", "can_write", "exact_sum", "fits", "gram", "library", "low_rank", "masked", "weighted_sum"]
