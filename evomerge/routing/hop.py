"""One stop of a live path: a layer of a resident model with a place, a cache slot and a factor of its own."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn

from evomerge.routing.passes import Passes
from evomerge.routing.resident import Resident
from evomerge.routing.structure import sharing_copy

# What transformers calls a layer's slot in the cache.
_SLOTS = ("layer_idx", "layer_id")


class LiveHop:
    """A structural copy of a layer over the layer's own weights.

    A layer that a path visits twice needs a copy for each visit: a number in it says which slot of the key/value cache
    is its own.

    Attributes:
        layer: The module that stands in the live model's list.
    """

    def __init__(self, resident: Resident, number: int, passes: Passes) -> None:
        original = resident.layer(number)
        # Its modules go on reading the configuration of their own model, which nobody changes.
        configs = [c for m in original.modules() if (c := getattr(m, "config", None)) is not None]
        self.layer = sharing_copy(original, keep=configs)
        self._passes = passes
        self._place = 0
        self._factor = 1.0
        self._slots = [(m, name) for m in self.layer.modules() for name in _SLOTS if hasattr(m, name)]
        self._run = self.layer.forward
        # On the instance: the module keeps its class, attributes and hooks, which models and transformers look at.
        self.layer.forward = self._forward
        for name in resident.writers[number]:
            self.layer.get_submodule(name).register_forward_hook(self._scaled)

    def put(self, place: int, factor: float) -> nn.Module:
        """Give the layer its place on a path, and the factor of what it writes."""
        self._place, self._factor = place, factor
        for module, name in self._slots:
            setattr(module, name, place)
        return self.layer

    def _forward(self, *args: Any, **kwargs: Any) -> Any:
        return self._passes.at(self._place, self._run, args, kwargs)

    def _scaled(self, _module: nn.Module, _args: Any, output: Tensor) -> Tensor | None:
        """The output of a module that writes to the stream, scaled; untouched where the factor is 1."""
        return None if self._factor == 1.0 else output * self._factor
