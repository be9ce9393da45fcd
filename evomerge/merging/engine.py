"""The engine: a recipe in, weights out; into a live model, as a stream of tensors, or as a plain checkpoint."""

from __future__ import annotations

import math
import threading
from collections.abc import Callable, Hashable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING
from weakref import WeakValueDictionary

import torch
from torch import Tensor

from evomerge.errors import CandidateError, RecipeError, SourceError
from evomerge.header import TensorInfo
from evomerge.merging import adapters
from evomerge.merging.checkpoint import RECIPE, write_checkpoint
from evomerge.merging.chunks import CUDA_CHUNK, Chunks, one_torch_thread, side_by_side
from evomerge.merging.draws import stream_key
from evomerge.merging.group import Group
from evomerge.merging.mapped import MappedFiles
from evomerge.merging.memory import SHARED_ELEMENTS
from evomerge.merging.methods import function
from evomerge.merging.operand import Operand, Stored
from evomerge.merging.outline import SHARD_BYTES
from evomerge.merging.plan import Input, Plan, TensorPlan
from evomerge.merging.planner import Planner
from evomerge.merging.statistics import tensors_of
from evomerge.merging.sums import energies
from evomerge.merging.targets import targets_of
from evomerge.merging.tokens.rows import Means, gathered
from evomerge.merging.units import mean_squares
from evomerge.recipe import Recipe
from evomerge.sources import Source, differing, start_hashing

if TYPE_CHECKING:
    from transformers import PreTrainedModel

TORCH_DTYPES = {"F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16, "F64": torch.float64}
# Share of a GPU's free memory that holds sources between candidates, where no limit is given.
CUDA_SHARE = 0.5

Target = tuple[TensorPlan, Tensor]
Energy = Mapping[str, tuple[float, ...]]
NO_ENERGY: Energy = {}


class Engine:
    """Builds recipes over a fixed set of open sources.

    Source files stay mapped; nothing of a tensor's size is kept in memory. What does not change between candidates and
    is small (dot products, histograms of magnitudes) is computed once. The result is the same for any number of threads
    and any chunk size.

    Args:
        sources: By the reference that recipes use.
        device: Where tensors are merged.
        threads: How many work at once on a CPU; None takes torch's number.
        chunk: Elements that a thread works on at a time; None: as is best here.
        cache_bytes: On a GPU, how much of the sources is kept there between candidates; None takes half of what is
            free.
        planner: One over the same sources that has planned already; its caches are used.
    """

    def __init__(
        self,
        sources: Mapping[str, Source],
        *,
        device: str | torch.device = "cpu",
        threads: int | None = None,
        chunk: int | None = None,
        cache_bytes: int | None = None,
        planner: Planner | None = None,
    ) -> None:
        self.sources = dict(sources)
        self.device = torch.device(device)
        on_gpu = self.device.type == "cuda"
        self.threads = 1 if on_gpu else max(1, threads or torch.get_num_threads())
        self._chunk = chunk or (CUDA_CHUNK if on_gpu else None)
        self._pool = ThreadPoolExecutor(self.threads, "merge") if self.threads > 1 else None
        self._planner = planner or Planner(self.sources)
        self._files = MappedFiles()
        self._plain: dict[Input, Stored] = {}
        self._facts: dict[tuple[object, ...], dict[Hashable, object]] = {}
        self._means: Means = {}
        self._cache_bytes = cache_bytes
        self._copies: WeakValueDictionary[TensorInfo, Tensor] = WeakValueDictionary()
        self._cached: dict[TensorInfo, Tensor] = {}
        self._others: dict[torch.device, Engine] = {}

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
        chunks = Chunks(self._chunk, self._pool)
        energy = self._energy(plan, chunks)
        for t in plan.tensors:
            with one_torch_thread(self._pool):
                merged = self._merged(plan, t, chunks, energy=energy)
            yield t.name, merged

    @torch.no_grad()
    def build_into(self, recipe: Recipe, model: PreTrainedModel) -> None:
        """Overwrite the weights of a live model of the same shape, in place.

        Values are rounded to the output type first, so that the live model equals the exported checkpoint, loaded in
        the live model's type, bit for bit.

        Raises:
            CandidateError: NaN or infinity; the model then holds those weights until it is built again.
            RecipeError: the recipe has another number of layers, or tensors that the model has not; or weights of the
                model are not in memory.
        """
        plan = self.plan(recipe)
        for engine, targets in self._where(targets_of(plan, model)):
            engine._fill(plan, targets)

    def _where(self, targets: Sequence[Target]) -> Iterator[tuple[Engine, list[Target]]]:
        """Targets by the engine that fills them: on GPUs, over which a model may be spread, each by one on its own.

        So each GPU merges, and holds sources for, what lies on it, and no tensor goes from one to the other.
        """
        by_device: dict[torch.device, list[Target]] = {}
        for target in targets:
            by_device.setdefault(target[1].device, []).append(target)
        if torch.device("meta") in by_device:
            name = by_device[torch.device("meta")][0][0].name
            raise RecipeError(
                f'"{name}" of the live model is not in memory (offloaded, or not loaded): nothing can be built into it'
            )
        if self.device.type != "cuda":
            yield self, list(targets)
            return
        for device, found in by_device.items():
            elsewhere = device.type == "cuda" and device != torch.empty(0, device=self.device).device
            if elsewhere and device not in self._others:
                self._others[device] = Engine(self.sources, device=device, chunk=self._chunk, planner=self._planner)
            yield self._others[device] if elsewhere else self, found

    def write(
        self,
        recipe: Recipe,
        out: Path,
        *,
        overwrite: bool = False,
        shard_bytes: int = SHARD_BYTES,
        progress: Callable[[int], None] | None = None,
        recipe_text: Callable[[Mapping[str, str]], str] | None = None,
        beside: Callable[[Mapping[str, str]], Mapping[str, Path | str]] | None = None,
    ) -> None:
        """Write a plain checkpoint: weights, configuration, tokenizer, and the recipe with its sources' hashes.

        Written beside and renamed into place: after an error or a kill there is nothing under its name.

        Args:
            shard_bytes: Largest size of one weights file.
            progress: Called with the bytes of each tensor that is done.
            recipe_text: Gives what recipe.yaml is to say, from the content hashes of the recipe's models; None writes
                the recipe with them.
            beside: Gives more small files (a card) from the same hashes, by name: a file to copy, or a text to write.

        Raises:
            RecipeError, SourceError: the recipe cannot be built, or its sources are not the ones it was found with.
            InputError: `out` exists and is not empty (unless `overwrite`).
            CandidateError: NaN or infinity in a tensor.
            DiskFullError: there is no room for it.
            SourceChangedError: a source has changed since its content hash was computed.
        """
        plan = self.plan(recipe)
        with start_hashing(self._named(recipe)) as hashing:
            checked = threading.Event()

            def fill(targets: Sequence[Target], flush: Callable[[TensorPlan], None]) -> None:
                def done(t: TensorPlan) -> None:
                    if hashing.done() and not checked.is_set():
                        # As early as it can be known that the sources are others than the recipe's.
                        self._as_named(recipe, hashing.result())
                        checked.set()
                    flush(t)
                    if progress is not None:
                        progress(t.bytes)

                self._fill(plan, targets, done)

            def last() -> dict[str, Path | str]:
                found = self._as_named(recipe, hashing.result())
                for source in self._named(recipe).values():
                    source.check_unchanged()
                found |= {s.named: s.content_hash() for s in plan.statistics.values()}
                text = recipe_text(found) if recipe_text else recipe.with_extras(sources=dict(found)).to_yaml()
                return {**(beside(found) if beside else {}), RECIPE: text}

            write_checkpoint(plan, fill, last, Path(out), overwrite, shard_bytes)

    def forget(self) -> None:
        """Give back what is kept on a GPU between candidates, and keep half as much from now on."""
        self._cache_bytes = sum(x.nbytes for x in self._cached.values()) // 2 if self._cached else self._cache_bytes
        self._cached.clear()

    def hashes(self, recipe: Recipe) -> dict[str, str]:
        """Content hash of every model of a recipe.

        Raises:
            SourceError: the recipe names a hash (`evomerge: sources:`) that a model found here does not have.
        """
        with start_hashing(self._named(recipe)) as hashing:
            return self._as_named(recipe, hashing.result())

    def _named(self, recipe: Recipe) -> dict[str, Source]:
        return {r: self.sources[r] for r in recipe.references()}

    @staticmethod
    def _as_named(recipe: Recipe, found: dict[str, str]) -> dict[str, str]:
        """The hashes, when they are those that the recipe names."""
        problems = differing(found, recipe.evomerge.sources)
        if problems:
            raise SourceError("\n".join(problems))
        return found

    def _fill(self, plan: Plan, targets: Sequence[Target], done: Callable[[TensorPlan], None] | None = None) -> None:
        """Merge into given tensors: those of many elements one after the other, by all threads; then the others.

        The largest come first, and what is needed next is read ahead.
        """
        ordered = sorted(targets, key=lambda target: -target[1].numel())
        shared = Chunks(self._chunk, self._pool)
        alone = Chunks(self._chunk, None)
        energy = self._energy(plan, shared)

        def work(number: int, chunks: Chunks) -> None:
            t, target = ordered[number]
            self._read_ahead(plan, ordered, number)
            self._merged(plan, t, chunks, target, energy)
            if done is not None:
                done(t)

        first_small = next((i for i, (_, x) in enumerate(ordered) if x.numel() < SHARED_ELEMENTS), len(ordered))
        with one_torch_thread(self._pool):
            for number in range(first_small):
                work(number, shared)
            rest = range(first_small, len(ordered))
            if self._pool is None:
                for number in rest:
                    work(number, alone)
            else:
                side_by_side(self._pool, lambda number: work(number, alone), rest)

    @torch.no_grad()
    def _energy(self, plan: Plan, chunks: Chunks) -> Energy:
        """What a method must know of whole layers and of the whole model, before anything is merged."""
        if not plan.recipe.method.units:
            return {}

        def of(t: TensorPlan) -> list[float]:
            with one_torch_thread(self._pool):
                found = energies(self._group(plan, t, torch.float32, None, chunks))
            if not all(map(math.isfinite, found)):
                raise self._not_finite(plan, t)
            return found

        return mean_squares(plan.tensors, of)

    @torch.no_grad()
    def _merged(
        self, plan: Plan, t: TensorPlan, chunks: Chunks, out: Tensor | None = None, energy: Energy = NO_ENERGY
    ) -> Tensor:
        """One of the plan's tensors, in the output type; written into `out` where it is given."""
        dtype = TORCH_DTYPES.get(t.dtype)
        if dtype is None:
            raw = self._operand(plan, t.inputs[0])
            merged = raw.chunk(0, t.elements).reshape(t.shape)
            return merged if out is None else out.copy_(merged.reshape(out.shape))
        direct = out is not None and out.is_contiguous() and out.device == self.device
        group = self._group(plan, t, dtype, out if direct else None, chunks, energy.get(t.name, ()))
        method = function(plan.recipe.merge_method)
        merged = group.combine([1.0]) if t.copied else method(group, **t.parameters)
        if not group.finite():
            raise self._not_finite(plan, t)
        if out is not None and not direct:
            out.copy_(merged.reshape(out.shape))
        return merged

    def _group(
        self,
        plan: Plan,
        t: TensorPlan,
        dtype: torch.dtype,
        out: Tensor | None,
        chunks: Chunks,
        energy: Sequence[float] = (),
    ) -> Group:
        seed = plan.recipe.evomerge.seed
        double = plan.recipe.dtype == "float64"
        # What is remembered belongs to these values in this type of computation, and to no others.
        known = (double, t.base, t.inputs, *(plan.gathers.get(item) for item in t.reads))

        def key_of(item: Input) -> Callable[[], int]:
            # Late, because a content hash reads the whole source and only random methods need it.
            return lambda: stream_key(seed, self.sources[item.model].content_hash(), item.tensor)

        return Group(
            [self._operand(plan, item) for item in t.inputs],
            self._operand(plan, t.base) if t.base else None,
            keys=[key_of(item) for item in t.inputs],
            statistics=tensors_of(plan, t, self._read),
            by_token=plan.by_token(t),
            energy=energy,
            facts=self._facts.setdefault(known, {}),
            out=out,
            out_dtype=dtype,
            dtype=torch.float64 if double else None,
            chunks=chunks,
        )

    def _operand(self, plan: Plan, item: Input) -> Operand:
        def plain(of: Input) -> Operand:
            if of in self._plain:
                return self._plain[of]
            found = adapters.operand(self.sources[of.model], of.tensor, self._read)
            mapped = self.device.type == "cpu" and self._files.is_mapped(self.sources[of.model].tensors[of.tensor])
            if mapped and isinstance(found, Stored):
                self._plain[of] = found
            return found

        gather = plan.gathers.get(item)
        return plain(item) if gather is None else gathered(gather, item, plain, self._means)

    def _read(self, info: TensorInfo) -> Tensor:
        """A stored tensor: mapped on a CPU, kept on a GPU while there is room."""
        if self.device.type == "cpu":
            return self._files.tensor(info)
        found = self._cached.get(info)
        if found is None:
            # One copy at a time of each: an adapter is told to lie on the base by the same memory.
            found = self._copies.get(info)
        if found is None:
            found = self._copies[info] = self._files.tensor(info).to(self.device)
            held = sum(x.nbytes for x in self._cached.values())
            if self._cache_bytes is None:
                self._cache_bytes = int(CUDA_SHARE * torch.cuda.mem_get_info(self.device)[0])
            if held + found.nbytes <= self._cache_bytes:
                self._cached[info] = found
        return found

    def _read_ahead(self, plan: Plan, ordered: Sequence[Target], number: int) -> None:
        for t, _ in ordered[number + 1 : number + 1 + self.threads]:
            for item in t.reads:
                self._files.read_ahead(self.sources[item.model].tensors[item.tensor])

    def _not_finite(self, plan: Plan, t: TensorPlan) -> CandidateError:
        return CandidateError(f'tensor "{t.name}" of the merge has NaN or infinite values{self._culprit(plan, t)}')

    def _culprit(self, plan: Plan, t: TensorPlan) -> str:
        """Which source has such values already, for the message."""
        for item in t.reads:
            operand = self._operand(plan, item)
            if not bool(torch.isfinite(operand.chunk(0, t.elements)).all()):
                return f': "{item.tensor}" of "{item.model}" has them already'
        return " (its sources have not: weights too large for the type?)"
