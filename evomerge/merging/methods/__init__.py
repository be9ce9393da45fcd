"""Merge methods: pure functions of a group of tensors. `evomerge.methods.METHODS` is the one table of them.

Each takes a `Group` and its parameters by keyword (those per source as sequences, `lambda` as `lambda_`), and returns
the merged tensor, of the group's shape and output type. A method says what is done in terms of the group's reductions
and results (`gram`, `combine`, `add`, `masked`, ...); how that runs (chunks, threads, compiled kernels, CUDA) is the
group's.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable
from functools import cache

from torch import Tensor

from evomerge.methods import METHODS


@cache
def function(method: str) -> Callable[..., Tensor]:
    """The function of a method, by its name in the table."""
    module, _, name = METHODS[method].function.partition(":")
    found: Callable[..., Tensor] = getattr(importlib.import_module(module), name)
    return found
