"""Copies of modules that share every tensor with the original."""

from __future__ import annotations

import copy
from collections.abc import Iterable
from typing import TypeVar

import torch
from torch import nn

M = TypeVar("M", bound=nn.Module)


def sharing_copy(module: M, keep: Iterable[object] = (), without: nn.Module | None = None) -> M:
    """A module of the same structure over the same parameters and buffers: no tensor is copied.

    Args:
        keep: Further objects that both are to have (a configuration).
        without: A list of modules inside that the copy has empty.
    """
    memo: dict[int, object] = {id(kept): kept for kept in keep}
    if without is not None:
        memo[id(without)] = nn.ModuleList()
    for part in module.modules():
        for held in (part._parameters, part._buffers, vars(part)):
            memo.update((id(x), x) for x in held.values() if isinstance(x, torch.Tensor))
    return copy.deepcopy(module, memo)
