"""What merge methods are made of: reductions over the inputs of one output tensor, and ways to write a result.

Everything is computed in float32 (float64 where an input is), chunk by chunk: never in the checkpoint's type, and
without temporaries of the tensor's size. Products and sums are rounded one by one (no fused multiply-add), so that a
result depends neither on threads nor on chunks.
"""

from __future__ import annotations

import ctypes
from collections.abc import Callable, Hashable, MutableMapping, Sequence
from copy import copy

import torch
from torch import Tensor

from evomerge.merging.chunks import Chunks
from evomerge.merging.draws import draws
from evomerge.merging.masks import Drawn, DrawnByRank, Part, Ranked, below, elect, keep_probability
from evomerge.merging.native import Job, can_write, masked, weighted_sum
from evomerge.merging.operand import Operand
from evomerge.merging.reductions import Reductions
from evomerge.merging.selection import Cut, magnitude_bits, row_ranks

Weight = float | Tensor


class Group(Reductions):
    """Tensors of equal shape that become one.

    Attributes:
        out_dtype: Type of results.
        statistics: For each source what was collected about it, for the methods that need it.
        by_token: Whether it has a row for each token (embeddings, heads): a table, no map from one space to another.
        energy: For each source the mean square of its task vector over the unit (layer, model) that this tensor belongs
            to, for the methods that weigh whole units; empty where there is no unit but the tensor itself.
    """

    def __init__(
        self,
        sources: Sequence[Operand | Tensor],
        base: Operand | Tensor | None = None,
        *,
        keys: Sequence[int | Callable[[], int]] = (),
        statistics: Sequence[Tensor] = (),
        by_token: bool = False,
        energy: Sequence[float] = (),
        facts: MutableMapping[Hashable, object] | None = None,
        out: Tensor | None = None,
        out_dtype: torch.dtype | None = None,
        dtype: torch.dtype | None = None,
        chunks: Chunks | None = None,
        native: bool = True,
    ) -> None:
        """Args:
        keys: For each source, the key of its stream of random numbers.
        facts: Where what does not change between candidates is remembered.
        out: Where results are written (contiguous, of as many elements); None makes a new tensor each time. Values are
            rounded to `out_dtype` first where its type is a wider one.
        dtype: Type of computation; None takes float64 where an input has it, else float32.
        chunks: How the work is cut.
        native: Use the compiled kernels where they can be used; the result is the same.
        """
        super().__init__(sources, base, keys=keys, facts=facts, dtype=dtype, chunks=chunks, native=native)
        self.statistics = tuple(statistics)
        self.by_token = by_token
        self.energy = tuple(energy)
        self.out = out
        self.out_dtype = out_dtype or (self.dtype if out is None else out.dtype)
        if self.lib is not None and not can_write(self.out_dtype, out):
            self.lib = None
        self._bad: list[Tensor] = []

    def combine(self, weights: Sequence[Weight], base_weight: Weight = 0.0) -> Tensor:
        """base_weight * W_0 + sum w_i W_i; a weight is a number or one for each row (Tensor [rows])."""
        if self.lib is not None and not any(isinstance(w, Tensor) for w in (*weights, base_weight)):
            return self._native(lambda lib, out: weighted_sum(lib, self, weights, base_weight, out))  # type: ignore[arg-type]

        def some(start: int, stop: int) -> Tensor:
            parts = [] if _is_zero(base_weight) else [(lambda: self.base_values(start, stop), base_weight)]
            parts += [(lambda i=i: self.values(i, start, stop), w) for i, w in enumerate(weights) if not _is_zero(w)]  # type: ignore[misc]
            return self._sum(parts, start, stop)

        return self._write(some, by_row=any(isinstance(w, Tensor) for w in (*weights, base_weight)))

    def add(self, weights: Sequence[Weight]) -> Tensor:
        """W_0 + sum w_i (W_i - W_0)."""
        if self.lib is not None and not any(isinstance(w, Tensor) for w in weights):
            return self._native(lambda lib, out: weighted_sum(lib, self, weights, None, out))  # type: ignore[arg-type]

        def some(start: int, stop: int) -> Tensor:
            parts = [(lambda i=i: self.delta(i, start, stop), w) for i, w in enumerate(weights) if not _is_zero(w)]
            return self._sum(parts, start, stop).add_(self.base_values(start, stop))

        return self._write(some, by_row=any(isinstance(w, Tensor) for w in weights))

    def masked(
        self,
        parts: Sequence[Part | None],
        *,
        elect_sign: bool,
        normalize: bool = False,
        lambda_: float = 1.0,
        selection: Cut | None = None,
    ) -> Tensor:
        """W_0 + the sum of masked, weighted task vectors, or of those that agree with the elected sign.

        Args:
            parts: For each source; None leaves it out.
            elect_sign: Keep of each task vector only what has the sign of the sum of votes (TIES, section 3).
            normalize: Divide by the shares of those that agree (with `elect_sign`).
            lambda_: Factor of the merged task vector (with `elect_sign`; else it belongs into the weights).
            selection: Keep only positions whose `variance` lies before this cut.
        """
        present = [(i, p) for i, p in enumerate(parts) if p is not None and p.weight != 0.0]
        ranks_selected = selection is not None and any(isinstance(p.mask, Ranked | DrawnByRank) for _, p in present)
        if self.lib is not None and not ranks_selected:
            return self._native(
                lambda lib, out: masked(Job(lib, self, present, elect_sign, normalize, lambda_, selection, out))
            )
        cuts = {i: self._cuts(i, p.mask) for i, p in present if isinstance(p.mask, Ranked)}

        def some(start: int, stop: int) -> Tensor:
            base = self.base_values(start, stop)
            if not present:
                return base
            deltas = [self.delta(i, start, stop) for i, _ in present]
            if selection is not None:
                chosen = self.selected(selection, start, stop).to(self.dtype)
                deltas = [d * chosen for d in deltas]
            done = [d * p.weight for d, (_, p) in zip(deltas, present, strict=True)]
            for part, (i, p) in zip(done, present, strict=True):
                if isinstance(p.mask, Ranked):
                    bits = magnitude_bits(self.delta(i, start, stop))
                    stays = cuts[i][1].before(bits, start) & ~cuts[i][0].before(bits, start)
                    part *= stays.to(self.dtype)
                elif isinstance(p.mask, Drawn):
                    part *= (draws(self.key(i), stop - start, self.device, start) < p.mask.below).to(self.dtype)
                elif isinstance(p.mask, DrawnByRank):
                    self._drop_by_rank(part, i, p.mask, start, stop)
            if not elect_sign:
                total = done[0]
                for part in done[1:]:
                    total += part
                return total.add_(base)
            votes = [
                part.clone() if p.vote is None else d * p.vote
                for part, d, (_, p) in zip(done, deltas, present, strict=True)
            ]
            return elect(done, [p.share for _, p in present], votes, normalize, lambda_).add_(base)

        return self._write(some, by_row=any(isinstance(p.mask, DrawnByRank) for _, p in present))

    def elementwise(self, fn: Callable[[list[Tensor], Tensor | None], Tensor], *, deltas: bool = False) -> Tensor:
        """fn on the values (or task vectors) of the sources and on the base's values, flat chunks in the type of
        computation."""
        return self._write(lambda a, b: self._call(fn, a, b, by_row=False, deltas=deltas), by_row=False)

    def by_rows(self, fn: Callable[[list[Tensor], Tensor | None], Tensor], *, deltas: bool = False) -> Tensor:
        """fn on whole rows: chunks of shape [some rows, columns]."""
        return self._write(lambda a, b: self._call(fn, a, b, by_row=True, deltas=deltas).reshape(-1), by_row=True)

    def by_range(self, fn: Callable[[int, int], Tensor]) -> Tensor:
        """fn on ranges of positions, for what depends on the place: flat chunks in the type of computation."""
        return self._write(fn, by_row=False)

    def with_statistics(self, fn: Callable[[list[Tensor], list[Tensor]], Tensor]) -> Tensor:
        """fn on the values of the sources and on statistics of their shape, flat chunks."""

        def some(start: int, stop: int) -> Tensor:
            values = [self.values(i, start, stop) for i in range(self.n)]
            return fn(values, [s.reshape(-1)[start:stop] for s in self.statistics])

        return self._write(some, by_row=False)

    def put(self, merged: Tensor, *, on_base: bool = False) -> Tensor:
        """Values worked out elsewhere, in the group's shape (or flat); with `on_base` W_0 plus them."""
        flat = merged.reshape(-1)

        def some(start: int, stop: int) -> Tensor:
            part = flat[start:stop].to(self.dtype)
            return part + self.base_values(start, stop) if on_base else part

        return self._write(some, by_row=False)

    def by_last(self) -> Group:
        """The same group with the last dimension as its columns: another matrix where there are more than two."""
        found = copy(self)
        found.columns = self.shape[-1] if len(self.shape) > 1 else self.elements
        found.rows = self.elements // found.columns if found.columns else self.rows
        return found

    def note_not_finite(self) -> None:
        """For the kernels, which look while they write."""
        self._bad.append(torch.tensor(False))

    def finite(self) -> bool:
        """Whether everything written so far is."""
        found = not self._bad or bool(torch.stack(self._bad).all())
        self._bad.clear()
        return found

    def _cuts(self, source: int, mask: Ranked) -> tuple[Cut, Cut]:
        return self.cut(source, mask.first), self.cut(source, mask.stop)

    def _drop_by_rank(self, part: Tensor, source: int, mask: DrawnByRank, start: int, stop: int) -> None:
        ranks = row_ranks(self.delta(source, start, stop).reshape(-1, max(self.columns, 1)))
        probability = keep_probability(ranks, mask.low, mask.high).reshape(-1)
        part *= (draws(self.key(source), stop - start, self.device, start).double() < below(probability)).to(self.dtype)
        if mask.rescale:
            part *= (1.0 / probability).to(self.dtype)

    def _sum(self, parts: Sequence[tuple[Callable[[], Tensor], Weight]], start: int, stop: int) -> Tensor:
        out: Tensor | None = None
        for values, weight in parts:
            if isinstance(weight, Tensor):
                columns = max(self.columns, 1)
                own = weight[start // columns : -(-stop // columns)].to(self.dtype).unsqueeze(1)
                product = (values().reshape(-1, columns) * own).reshape(-1)
            else:
                product = values() * weight
            out = product if out is None else out.add_(product)
        return torch.zeros(stop - start, dtype=self.dtype, device=self.device) if out is None else out

    def _call(
        self, fn: Callable[[list[Tensor], Tensor | None], Tensor], start: int, stop: int, by_row: bool, deltas: bool
    ) -> Tensor:
        values = [(self.delta if deltas else self.values)(i, start, stop) for i in range(self.n)]
        base = None if self.base is None else self.base_values(start, stop)
        if by_row:
            values = [v.reshape(-1, self.columns) for v in values]
            base = None if base is None else base.reshape(-1, self.columns)
        return fn(values, base)

    def _target(self) -> Tensor:
        return torch.empty(self.elements, dtype=self.out_dtype, device=self.device) if self.out is None else self.out

    def _native(self, write: Callable[[ctypes.CDLL, Tensor], None]) -> Tensor:
        assert self.lib is not None
        out = self._target()
        write(self.lib, out)
        return out.reshape(self.shape)

    def _write(self, some: Callable[[int, int], Tensor], *, by_row: bool) -> Tensor:
        out = self._target()
        flat = out.reshape(-1)
        unit = max(self.columns, 1) if by_row else 1

        def work(start: int, stop: int) -> None:
            target = flat[start:stop]
            merged = some(start, stop)
            target.copy_(merged if target.dtype == self.out_dtype else merged.to(self.out_dtype))
            if target.is_floating_point():
                self._bad.append(torch.isfinite(target).all())

        self.chunks.run(work, self.chunks.ranges(self.elements, unit))
        return out.reshape(self.shape)


def _is_zero(weight: Weight) -> bool:
    return not isinstance(weight, Tensor) and weight == 0.0
