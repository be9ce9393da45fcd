"""The inputs of one output tensor by pieces, and what can be said about them as a whole.

Reductions are taken in float64 over blocks of fixed size, so that they depend neither on threads nor on chunks.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Hashable, MutableMapping, Sequence
from typing import TypeVar

import torch
from torch import Tensor

from evomerge.merging.chunks import BLOCK, CUDA_CHUNK, Chunks
from evomerge.merging.native import Cuts, exact_sum, fits, gram, library
from evomerge.merging.operand import Operand, Stored, task_vector
from evomerge.merging.selection import EVERYTHING, Cut, find_cut, magnitude_bits, nothing

Fact = TypeVar("Fact")
# Cuts of several densities are remembered, but not those of a whole search.
_FACTS = 512
_UNKNOWN = object()


class Reductions:
    """Tensors of equal shape, and sums over them.

    Attributes:
        sources: Without the base.
        base: The base model's tensor, or None.
        n: Number of sources.
        rows, columns: The shape as a matrix: the first dimension by the rest; what has fewer than two is one row.
        dtype: Type of computation.
        chunks, pieces: How the work is cut, for torch and for the kernels.
    """

    def __init__(
        self,
        sources: Sequence[Operand | Tensor],
        base: Operand | Tensor | None,
        *,
        keys: Sequence[int | Callable[[], int]],
        facts: MutableMapping[Hashable, object] | None,
        dtype: torch.dtype | None,
        chunks: Chunks | None,
        native: bool,
    ) -> None:
        self.sources = tuple(Stored(s) if isinstance(s, Tensor) else s for s in sources)
        self.base = Stored(base) if isinstance(base, Tensor) else base
        self._exact = tuple(None if self.base is None else task_vector(s, self.base) for s in self.sources)
        self.keys = tuple(keys)
        self.facts = {} if facts is None else facts
        every = [*self.sources, *([] if self.base is None else [self.base])]
        self.n = len(self.sources)
        self.shape = every[0].shape
        self.elements = math.prod(self.shape)
        self.rows = self.shape[0] if len(self.shape) > 1 else 1
        self.columns = math.prod(self.shape[1:]) if len(self.shape) > 1 else self.elements
        double = dtype == torch.float64 or any(s.dtype == torch.float64 for s in every)
        self.dtype = torch.float64 if double else torch.float32
        self.device = every[0].device
        self.chunks = chunks or Chunks(CUDA_CHUNK if self.device.type == "cuda" else None)
        self.pieces = self.chunks.for_kernels(self.elements, stored=all(x.address is not None for x in every))
        self.lib = library() if native and fits(self) else None

    # ---- inputs by chunk

    def values(self, source: int, start: int, stop: int) -> Tensor:
        """W_i, flat, in the type of computation. Not to be written to."""
        return self.sources[source].chunk(start, stop).to(self.dtype)

    def base_values(self, start: int, stop: int) -> Tensor:
        """W_0, flat, in the type of computation. Not to be written to."""
        if self.base is None:
            raise ValueError("the group has no base")
        return self.base.chunk(start, stop).to(self.dtype)

    def delta(self, source: int, start: int, stop: int) -> Tensor:
        """Task vector W_i - W_0, flat. Between adapters on the same tensor it is their product, exactly."""
        exact = self._exact[source]
        if exact is not None:
            return exact.chunk(start, stop).to(self.dtype)
        return self.values(source, start, stop) - self.base_values(start, stop)

    def is_adapter(self, source: int) -> bool:
        """Whether a source and the base are the same tensor but for adapters: nothing is subtracted."""
        return self._exact[source] is not None

    def key(self, source: int) -> int:
        """Key of a source's stream of random numbers."""
        key = self.keys[source]
        return key() if callable(key) else key

    # ---- reductions

    def fact(self, name: Hashable, compute: Callable[[], Fact]) -> Fact:
        """Something small about the inputs, computed once and remembered for the next candidates."""
        found = self.facts.get(name, _UNKNOWN)
        if found is _UNKNOWN:
            if len(self.facts) >= _FACTS:
                # Cuts of old densities go first: they are the many.
                old = list(self.facts.items())
                self.facts.pop(next((k for k, v in old if isinstance(v, Cut)), old[0][0]), None)
            found = self.facts[name] = compute()
        return found  # type: ignore[return-value]

    def total(self, fn: Callable[[int, int], Tensor]) -> list[float]:
        """Sum of a function of ranges of elements over blocks of fixed size, each component summed exactly.

        Args:
            fn: From a range to a float64 vector.
        """
        size = CUDA_CHUNK if self.device.type == "cuda" else BLOCK
        ranges = [(a, min(a + size, self.elements)) for a in range(0, self.elements, size)]

        def block(start: int, stop: int) -> list[float]:
            found: list[float] = fn(start, stop).tolist()
            return found

        found = self.chunks.run(block, ranges) or [block(0, 0)]
        return [exact_sum(parts) for parts in zip(*found, strict=True)]

    def gram(self) -> list[list[float]]:
        """Dot products of the sources' values, the base last where there is one."""
        return self.fact("gram", lambda: self._gram(self.n + (self.base is not None), deltas=False))

    def delta_gram(self, selection: Cut | None = None) -> list[list[float]]:
        """Dot products of the task vectors.

        Args:
            selection: Only at positions whose variance lies before this cut.
        """
        return self.fact(("delta_gram", selection), lambda: self._gram(self.n, deltas=True, selection=selection))

    def _gram(self, size: int, *, deltas: bool, selection: Cut | None = None) -> list[list[float]]:
        if self.lib is not None:
            return gram(self.lib, self, deltas=deltas, selection=selection)
        pairs = [(i, j) for i in range(size) for j in range(i, size)]

        def products(start: int, stop: int) -> Tensor:
            every = [(self.delta if deltas else self.values)(i, start, stop).double() for i in range(self.n)]
            if size > self.n:
                every.append(self.base_values(start, stop).double())
            if selection is not None:
                chosen = self.selected(selection, start, stop).double()
                every = [x * chosen for x in every]
            return torch.stack([in_lanes(every[i] * every[j]) for i, j in pairs])

        found = dict(zip(pairs, self.total(products) if pairs else [], strict=True))
        return [[found[min(i, j), max(i, j)] for j in range(size)] for i in range(size)]

    def row_gram(self) -> Tensor:
        """Dot products row by row: float64 [rows, m, m], the base last where there is one."""
        return self._row_gram(deltas=False)

    def row_delta_gram(self) -> Tensor:
        """Dot products of the task vectors' rows: float64 [rows, n, n]."""
        return self._row_gram(deltas=True)

    def _row_gram(self, *, deltas: bool) -> Tensor:
        def some(start: int, stop: int) -> Tensor:
            own = [(self.delta if deltas else self.values)(i, start, stop) for i in range(self.n)]
            if self.base is not None and not deltas:
                own.append(self.base_values(start, stop))
            rows = [v.reshape(-1, self.columns).double() for v in own]
            return torch.stack([torch.stack([row_sums(a * b) for b in rows], dim=1) for a in rows], dim=1)

        found = self.chunks.run(some, self.chunks.ranges(self.elements, max(self.columns, 1)))
        size = self.n + (self.base is not None and not deltas)
        return (
            torch.cat(found) if found else torch.zeros(self.rows, size, size, dtype=torch.float64, device=self.device)
        )

    def cut(self, source: int, keep: int) -> Cut:
        """The cut before which the `keep` largest elements of a task vector lie."""
        return self._cut(source, lambda a, b: self.delta(source, a, b), keep)

    def _cut(self, source: int | None, values: Callable[[int, int], Tensor], keep: int) -> Cut:
        lib = self.lib
        # (The kernels take one operand's score for its magnitude: of one task vector alone there is no variance.)
        if lib is None or not 0 < keep < self.elements or (source is None and self.n == 1):
            return self.find(("cut", source), values, keep)
        return self.fact((("cut", source), keep), lambda: Cuts(lib, self, source).find(keep))

    def find(self, name: Hashable, values: Callable[[int, int], Tensor], keep: int) -> Cut:
        """The cut of what a function gives by range; remembered by name."""
        if keep >= self.elements:
            return EVERYTHING
        if keep <= 0:
            return nothing(self.dtype)
        return self.fact((name, keep), lambda: find_cut(values, self.elements, keep, self.dtype, self.chunks))

    def variance_cut(self, keep: int) -> Cut:
        """The cut before which the `keep` positions of largest variance over the task vectors lie."""
        return self._cut(None, self._variance, keep)

    def differing(self) -> int:
        """Number of positions where the task vectors are not all equal."""

        def some(start: int, stop: int) -> int:
            first = self.delta(0, start, stop)
            found = torch.zeros_like(first, dtype=torch.bool)
            for i in range(1, self.n):
                found |= self.delta(i, start, stop) != first
            return int(found.sum())

        ranges = self.chunks.ranges(self.elements)
        return self.fact("differing", lambda: sum(self.chunks.run(some, ranges))) if self.n else 0

    def selected(self, selection: Cut, start: int, stop: int) -> Tensor:
        """Mask (bool, flat) of the positions whose variance over the task vectors lies before a cut."""
        return selection.before(magnitude_bits(self._variance(start, stop)), start)

    def _variance(self, start: int, stop: int) -> Tensor:
        return variance([self.delta(i, start, stop) for i in range(self.n)])


def variance(deltas: Sequence[Tensor]) -> Tensor:
    """Of each position over the task vectors (divided by their number), flat."""
    mean = deltas[0].clone()
    for d in deltas[1:]:
        mean += d
    mean /= len(deltas)
    total = torch.zeros_like(mean)
    for d in deltas:
        total += (d - mean).square()
    return total.div_(len(deltas))


def in_lanes(products: Tensor) -> Tensor:
    """Sum of a block of flat float64 in the order of the kernels: each 16th number in turn, then those sums."""
    if products.device.type != "cpu" or not products.numel():
        return products.sum()
    padded = torch.nn.functional.pad(products, (0, -products.numel() % 16))
    return padded.reshape(-1, 16).cumsum(0)[-1].cumsum(0)[-1]


def row_sums(values: Tensor) -> Tensor:
    """Sum of each row of float64 [rows, n], in an order that depends neither on rows nor on threads."""
    total = torch.zeros(values.shape[0], dtype=values.dtype, device=values.device)
    for start in range(0, values.shape[1], BLOCK):
        total += values[:, start : start + BLOCK].sum(dim=1)
    return total
