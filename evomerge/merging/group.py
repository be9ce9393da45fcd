"""The inputs of one output tensor, and what can be computed from them once and used by every candidate."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from functools import cached_property

import torch
from torch import Tensor

from evomerge.merging.draws import draws
from evomerge.merging.magnitude import largest, ranks


class Group:
    """Tensors of equal shape that become one.

    Everything is computed in float32 (float64 where an input is): never in the checkpoint's type, and the numbers of
    a recipe are never rounded to it. A group that is kept (`resident`) keeps what it has computed; between the
    candidates of one search the sources do not change, so ranks and random draws are worth having once.

    Attributes:
        tensors: The sources, without the base; each of `shape`.
        base: The base model's tensor, or None.
        keys: For each source, the key of its stream of random numbers.
        resident: Whether the group will be used again: then a full ranking pays.
    """

    def __init__(
        self,
        tensors: Sequence[Tensor],
        base: Tensor | None = None,
        *,
        keys: Sequence[int | Callable[[], int]] = (),
        resident: bool = False,
    ) -> None:
        self.tensors = tuple(tensors)
        self.base = base
        self.keys = tuple(keys)
        self.resident = resident
        every = [*self.tensors, *([] if base is None else [base])]
        self.shape = every[0].shape
        self.dtype = torch.float64 if any(t.dtype == torch.float64 for t in every) else torch.float32
        self.device = every[0].device

    @property
    def elements(self) -> int:
        """Number of elements of the output."""
        return math.prod(self.shape)

    @cached_property
    def values(self) -> list[Tensor]:
        """The sources, flat, in the type of computation."""
        return [self._flat(t) for t in self.tensors]

    @cached_property
    def base_values(self) -> Tensor:
        """The base, flat, in the type of computation."""
        if self.base is None:
            raise ValueError("the group has no base")
        return self._flat(self.base)

    @cached_property
    def deltas(self) -> list[Tensor]:
        """Task vectors W_i - W_0, flat, one for each source."""
        return [self._flat(t) - self.base_values for t in self.tensors]

    @cached_property
    def _ranks(self) -> list[Tensor]:
        return [ranks(delta) for delta in self.deltas]

    @cached_property
    def _draws(self) -> list[Tensor]:
        keys = [key() if callable(key) else key for key in self.keys]
        return [draws(key, self.elements, self.device) for key in keys]

    def largest(self, source: int, keep: int) -> Tensor:
        """Mask (1 or 0 in the type of computation, flat) of a task vector's `keep` largest elements by magnitude."""
        if self.resident:
            return self._below(self._ranks[source], keep)
        return largest(self.deltas[source], keep).to(self.dtype)

    def drawn(self, source: int, below: int) -> Tensor:
        """Mask (1 or 0 in the type of computation, flat) of the elements whose random number is less than `below`."""
        return self._below(self._draws[source], below)

    def _below(self, numbers: Tensor, limit: int) -> Tensor:
        # Written as a float at once: filling by a mask of bools takes ten times as long.
        return torch.lt(numbers, limit, out=torch.empty(self.elements, dtype=self.dtype, device=self.device))

    @cached_property
    def angle(self) -> tuple[float, float]:
        """Cosine and angle between base and first source, both normalised; in float64, so that devices agree."""
        a, b = self.base_values.double(), self._flat(self.tensors[0]).double()
        norms = [float(torch.linalg.vector_norm(v)) for v in (a, b)]
        scale = math.prod(n if n > 1e-8 else 1.0 for n in norms)
        cosine = max(-1.0, min(1.0, float((a * b).sum()) / scale))
        return cosine, math.acos(cosine)

    def _flat(self, tensor: Tensor) -> Tensor:
        return tensor.reshape(-1).to(self.dtype)
