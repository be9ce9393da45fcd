"""The engine: a recipe in, weights out; into a live model, as a stream of tensors, or as a plain checkpoint."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from safetensors import safe_open
from torch import Tensor

from evomerge.errors import CandidateError, SourceError
from evomerge.merging.checkpoint import write_checkpoint
from evomerge.merging.draws import stream_key
from evomerge.merging.group import Group
from evomerge.merging.methods import function
from evomerge.merging.plan import Input, Plan, TensorPlan
from evomerge.merging.planner import Planner
from evomerge.merging.targets import targets_of
from evomerge.recipe import Recipe
from evomerge.sources import Source

if TYPE_CHECKING:
    from transformers import PreTrainedModel

TORCH_DTYPES = {"F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16, "F64": torch.float64}
CACHE_BYTES = 2 << 30
# What a kept group holds per element and source: the value, the task vector, its rank and its random draw.
KEPT_BYTES = 16


class Engine:
    """Builds recipes over a fixed set of open sources.

    Source files stay open and are memory-mapped. Where everything computed from the sources of a recipe (task vectors,
    ranks, random draws) fits into `cache_bytes`, it is kept for the next recipe; larger models are read tensor by
    tensor each time. The result is the same.

    Args:
        sources: By the reference that recipes use.
        device: Where tensors are merged.
        cache_bytes: Limit of what is kept.
    """

    def __init__(
        self,
        sources: Mapping[str, Source],
        *,
        device: str | torch.device = "cpu",
        cache_bytes: int = CACHE_BYTES,
    ) -> None:
        self.sources = dict(sources)
        self.device = torch.device(device)
        self.cache_bytes = cache_bytes
        self._planner = Planner(self.sources)
        self._files: dict[Path, Any] = {}
        self._groups: dict[tuple[object, ...], Group] = {}
        self._kept = 0

    def plan(self, recipe: Recipe) -> Plan:
        """Every output tensor with its inputs and parameters; nothing is read.

        Raises:
            RecipeError, SourceError: every problem, one line each.
        """
        return self._planner.plan(recipe)

    def tensors(self, recipe: Recipe) -> Iterator[tuple[str, Tensor]]:
        """Each merged tensor, by its name in the checkpoint, in the output type, on the engine's device.

        Raises:
            CandidateError: NaN or infinity in a tensor, or weights that cannot be normalised.
        """
        plan = self.plan(recipe)
        merge = self._merger(plan)
        for t in plan.tensors:
            yield t.name, self._finished(t, merge)

    @torch.no_grad()
    def build_into(self, recipe: Recipe, model: PreTrainedModel) -> None:
        """Overwrite the weights of a live model of the same shape, in place.

        Values are rounded to the output type first, so that the live model equals the exported checkpoint, loaded in
        the live model's type, bit for bit.

        Raises:
            CandidateError: NaN or infinity; the model then holds those weights until it is built again.
            RecipeError: the recipe has another number of layers, or tensors that the model has not.
        """
        plan = self.plan(recipe)
        targets = targets_of(plan, model)
        merge = self._merger(plan)
        for t, target in targets:
            merged = merge(t)
            dtype = TORCH_DTYPES.get(t.dtype)
            target.copy_((merged if dtype is None else merged.to(dtype)).reshape(target.shape))
        _check_finite([(t.name, target) for t, target in targets if target.is_floating_point()])

    def write(self, recipe: Recipe, out: Path, *, overwrite: bool = False) -> None:
        """Write a plain checkpoint: weights, configuration, tokenizer, and the recipe with its sources' hashes.

        Written beside and renamed into place: after an error nothing is left.

        Raises:
            RecipeError, SourceError: the recipe cannot be built, or its sources are not the ones it was found with.
            InputError: `out` exists and is not empty (unless `overwrite`).
            CandidateError: NaN or infinity in a tensor.
            EvoMergeError: the disk is full.
        """
        plan = self.plan(recipe)
        merge = self._merger(plan)
        write_checkpoint(plan, lambda t: self._finished(t, merge), self.hashes(recipe), Path(out), overwrite)

    def hashes(self, recipe: Recipe) -> dict[str, str]:
        """Content hash of every model of a recipe.

        Raises:
            SourceError: the recipe names a hash (`evomerge: sources:`) that a model found here does not have.
        """
        found = {r: self.sources[r].content_hash() for r in recipe.references()}
        problems = [
            f'model "{r}": its content is not what the recipe was made with (SHA-256 {have[:12]}..., expected '
            f"{recipe.evomerge.sources[r][:12]}...); use the same version of the model, or remove evomerge.sources"
            for r, have in found.items()
            if recipe.evomerge.sources.get(r, have) != have
        ]
        if problems:
            raise SourceError("\n".join(problems))
        return found

    def _merger(self, plan: Plan) -> Callable[[TensorPlan], Tensor]:
        """The function that computes one of the plan's tensors, in the type of computation."""
        method = function(plan.recipe.merge_method)
        double = plan.recipe.dtype == "float64"
        cost = sum(KEPT_BYTES * len(t.reads) * plan.info(t.reads[0]).elements for t in plan.tensors)
        keep = cost <= self.cache_bytes
        if keep and self._kept + cost > self.cache_bytes:
            wanted = {self._key(plan, t, double) for t in plan.tensors}
            if not wanted <= self._groups.keys():
                self._groups.clear()
                self._kept = 0

        def merge(t: TensorPlan) -> Tensor:
            if t.copied:
                return self._read(t.inputs[0])
            return method(self._group(plan, t, double, keep), **t.parameters)

        return merge

    def _key(self, plan: Plan, t: TensorPlan, double: bool) -> tuple[object, ...]:
        seed = plan.recipe.evomerge.seed if plan.recipe.method.random else None
        return (t.base, t.inputs, double, seed)

    def _group(self, plan: Plan, t: TensorPlan, double: bool, keep: bool) -> Group:
        key = self._key(plan, t, double)
        found = self._groups.get(key)
        if found is not None:
            return found
        read = (lambda item: self._read(item).double()) if double else self._read
        seed = plan.recipe.evomerge.seed

        def key_of(item: Input) -> Callable[[], int]:
            # Late, because a content hash reads the whole source and only random methods need it.
            return lambda: stream_key(seed, self.sources[item.model].content_hash(), item.tensor)

        group = Group(
            [read(item) for item in t.inputs],
            read(t.base) if t.base else None,
            keys=[key_of(item) for item in t.inputs],
            resident=keep,
        )
        if keep:
            self._groups[key] = group
            self._kept += KEPT_BYTES * len(t.reads) * group.elements
        return group

    def _read(self, item: Input) -> Tensor:
        info = self.sources[item.model].tensors[item.tensor]
        if info.file not in self._files:
            self._files[info.file] = safe_open(info.file, framework="pt", device="cpu")
        tensor: Tensor = self._files[info.file].get_tensor(item.tensor)
        return tensor.to(self.device)

    @staticmethod
    def _finished(t: TensorPlan, merge: Callable[[TensorPlan], Tensor]) -> Tensor:
        merged = merge(t)
        dtype = TORCH_DTYPES.get(t.dtype)
        if dtype is not None:
            merged = merged.to(dtype)
            _check_finite([(t.name, merged)])
        return merged


def _check_finite(tensors: list[tuple[str, Tensor]]) -> None:
    """One look at all tensors together; which one it was is asked only when something is wrong."""
    filled = [(name, x) for name, x in tensors if x.numel()]
    if not filled:
        return
    ends = torch.stack([torch.stack(torch.aminmax(x)).float() for _, x in filled])
    if bool(torch.isfinite(ends).all()):
        return
    name = next(n for (n, _), end in zip(filled, ends, strict=True) if not bool(torch.isfinite(end).all()))
    raise CandidateError(f'tensor "{name}" of the merge has NaN or infinite values')
