"""One live model that is set to any path over the layers of its sources."""

from __future__ import annotations

import gc
from collections import Counter
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING

import torch

from evomerge.errors import RecipeError, SourceError, choose
from evomerge.merging.engine import TORCH_DTYPES
from evomerge.merging.modules import is_composite
from evomerge.recipe import Path
from evomerge.routing.hop import LiveHop
from evomerge.routing.passes import LayerCounts, Passes
from evomerge.routing.resident import Resident
from evomerge.routing.shell import Shell
from evomerge.sources import Source, check_path_fit

if TYPE_CHECKING:
    from transformers import PreTrainedModel


class Router:
    """Runs paths over resident sources; no weight is copied, a layer that a path visits twice is one tensor.

    The live path computes what the folded checkpoint does: what a hop's layer adds to the residual stream is multiplied
    by the hop's factor.

    Args:
        sources: By the reference that paths use. Those that a path needs are loaded when it comes, and stay.
        dtype: Type to compute in; None takes the first source's, for all of them.
        prefix_bytes: Memory for hidden states of forward passes without a key/value cache: a later path that begins
            alike starts from them, with the same results to the bit. 0: none are kept.
    """

    def __init__(
        self,
        sources: Mapping[str, Source],
        *,
        dtype: torch.dtype | None = None,
        device: torch.device | str = "cpu",
        trust_remote_code: bool = False,
        prefix_bytes: int = 0,
    ) -> None:
        self._sources = dict(sources)
        self._dtype = dtype or _stored_type(next(iter(self._sources.values())))
        self._device = device
        self._trust = trust_remote_code
        self._residents: dict[str, Resident] = {}
        self._shells: dict[str, Shell] = {}
        self._hops: dict[tuple[str, int], list[LiveHop]] = {}
        self._fitting: set[tuple[frozenset[str], str, str]] = set()
        self._passes = Passes(prefix_bytes)
        self._model: PreTrainedModel | None = None

    @property
    def counts(self) -> LayerCounts:
        """Layer evaluations since the last `route`."""
        return self._passes.counts

    def route(self, path: Path) -> PreTrainedModel:
        """The live model, set to a path; the same object for every path.

        Its embeddings, and everything else before the layers, are those of the path's `embeddings`, and so is its
        configuration; its final norm and its output head are those of the path's `head`, unless the head is tied.

        Raises:
            RecipeError: a model that is not among the sources, or a layer that it does not have; one line each.
            SourceError: the models do not fit each other, cannot be loaded or run as a path of layers, or do not take
                a scale.
            CandidateError: the path's configuration would describe other layers than the path has.
        """
        self._check(path)
        residents = {model: self._resident(model) for model in path.models}
        self._check_scales(path, residents)
        shell = self._shell(path.embeddings)
        hops = self._live_hops(path)
        layers = [hop.put(place, at.factor) for place, (hop, at) in enumerate(zip(hops, path.hops, strict=True))]
        settings = {model: resident.settings for model, resident in residents.items()}
        shell.put_layers(layers, [(hop.model, hop.layer) for hop in path.hops], settings)
        shell.put_head(residents[path.head])
        if any(resident.uneven for resident in residents.values()):
            shell.check_kinds()
        self._passes.follow(path)
        return self._shown(shell)

    def unload(self) -> None:
        """Give back the memory of models and hidden states, whoever holds the live model; a path makes another."""
        self._passes = Passes(self._passes.kept.limit)
        for held in (self._residents, self._shells, self._hops):
            held.clear()
        if self._model is not None:
            object.__setattr__(self._model, "__dict__", {})
            self._model = None
        gc.collect()  # a layer on a path and what it calls hold each other

    def _shown(self, shell: Shell) -> PreTrainedModel:
        """The one model that callers know, in the state of a shell.

        Evaluators keep what they make of a model for as long as it is the same object. Each shell has a configuration
        and modules of its own, so that the object takes on all of its attributes instead of being changed part by part.
        """
        if self._model is None:
            self._model = object.__new__(type(shell.model))
        object.__setattr__(self._model, "__dict__", shell.model.__dict__)
        return self._model

    def _check(self, path: Path) -> None:
        problems = list(dict.fromkeys(self._problems(path)))
        if problems:
            raise RecipeError("\n".join(problems))
        key = (frozenset(path.models), path.embeddings, path.head)
        if key not in self._fitting:
            ends = {self._sources[path.embeddings], self._sources[path.head]}
            check_path_fit({model: self._sources[model] for model in path.models}, ends=ends)
            self._fitting.add(key)

    def _problems(self, path: Path) -> Iterator[str]:
        for model in path.models:
            if model not in self._sources:
                yield f'path: model "{model}" is not open; {choose(model, list(self._sources))}'
        seeing = [m for m in path.models if m in self._sources and is_composite(self._sources[m])]
        if seeing and path.embeddings not in seeing:
            yield (
                f'path: it begins with the embeddings of "{path.embeddings}", a text model, and passes layers of '
                f'"{seeing[0]}"; expected the embeddings of "{seeing[0]}", whose image encoder and configuration it has'
            )
        for place, hop in enumerate(path.hops):
            have = self._sources[hop.model].num_layers if hop.model in self._sources else None
            if have is not None and hop.layer >= have:
                yield (
                    f'path: hop {place}: layer {hop.layer} of "{hop.model}": the model has {have} layers; '
                    f"expected 0 to {have - 1}"
                )

    @staticmethod
    def _check_scales(path: Path, residents: Mapping[str, Resident]) -> None:
        for place, hop in enumerate(path.hops):
            reason = residents[hop.model].unscalable
            if hop.factor != 1.0 and reason:
                raise SourceError(
                    f'path: hop {place}: layer {hop.layer} of "{hop.model}" has scale {path.scales[place]:g} (what it '
                    f"writes is multiplied by {hop.factor:g}); only scale 1 can be used here: {reason}"
                )

    def _resident(self, model: str) -> Resident:
        if model not in self._residents:
            self._residents[model] = Resident.load(
                self._sources[model], self._dtype, self._device, trust_remote_code=self._trust
            )
        return self._residents[model]

    def _shell(self, model: str) -> Shell:
        if any(shell.captures for shell in self._shells.values()):
            # Someone asked for hidden states or attentions: what was hooked for it is given up.
            self._shells.clear()
            self._hops.clear()
        if model not in self._shells:
            shell = self._shells[model] = Shell(self._residents[model])
            self._passes.watch(shell.model)
        return self._shells[model]

    def _live_hops(self, path: Path) -> list[LiveHop]:
        """A structural copy of a layer for each hop; those of earlier paths serve again."""
        used: Counter[tuple[str, int]] = Counter()
        found = []
        for hop in path.hops:
            key = (hop.model, hop.layer)
            copies = self._hops.setdefault(key, [])
            if used[key] == len(copies):
                copies.append(LiveHop(self._residents[hop.model], hop.layer, self._passes))
            found.append(copies[used[key]])
            used[key] += 1
        return found


def _stored_type(source: Source) -> torch.dtype | None:
    """The type of most of a checkpoint's weights."""
    types = Counter(info.dtype for info in source.merged_tensors.values() if info.dtype in TORCH_DTYPES)
    return next((TORCH_DTYPES[name] for name, _ in types.most_common(1)), None)
