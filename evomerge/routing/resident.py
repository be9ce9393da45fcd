"""A source that stays loaded, and where its live model keeps what a path takes apart."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from evomerge.errors import SourceError
from evomerge.merging.conversion import live_places
from evomerge.merging.live import live_model
from evomerge.sources import TEXT, Place, Source, Writers, writers

if TYPE_CHECKING:
    from transformers import PreTrainedModel

# Settings under which a layer computes something else at another place of a path, or reads what an earlier one kept.
_BOUND_TO_PLACES = {
    "scale_attn_by_inverse_layer_idx": "divides attention by the number of the layer",
    "num_kv_shared_layers": "lets layers read the keys and values of others",
}


@dataclass(frozen=True)
class Resident:
    """A loaded source.

    Attributes:
        live: Its model, as transformers loads it; never run, never changed.
        layers: Name of the live module that lists its layers ("model.layers").
        after: The live tensors that stand after the layers (final norm, and an output head of its own): their names, by
            what they are.
        writers: For each layer the modules inside it whose outputs are what it writes to the residual stream.
        unscalable: Why a path may only use scale 1 here; None: any.
        uneven: Whether its layers are of several kinds (some dense, some a mixture of experts).
        settings: The live language model's whole configuration as plain data.
    """

    source: Source
    live: PreTrainedModel
    layers: str
    after: Mapping[Place, str]
    writers: tuple[tuple[str, ...], ...]
    unscalable: str | None
    uneven: bool
    settings: Mapping[str, Any]

    @classmethod
    def load(
        cls, source: Source, dtype: torch.dtype | None, device: torch.device | str, *, trust_remote_code: bool = False
    ) -> Resident:
        """Load a source for routing.

        Raises:
            SourceError: it cannot be loaded, or its layers cannot be put in another order.
        """
        live = live_model(source, dtype, device, trust_remote_code=trust_remote_code)
        settings = live.config.get_text_config().to_dict()
        for key, what in _BOUND_TO_PLACES.items():
            if settings.get(key):
                raise _unroutable(source, f"{key} = {settings[key]} {what}")
        places = {n: p for n, p in source.layout.places.items() if n in source.merged_tensors and p.module == TEXT}
        # Where transformers fuses stored tensors (experts) there is one live tensor for several of them.
        held = {name: place[0] for name, place in live_places(places, live).items() if place is not None}
        layers = _layers(source, live, held)
        known = writers(source)
        owners = _owners(source, live, layers, held, known)
        unscalable = known.reason
        if unscalable is None and not all(owners):
            unscalable = f"no module of layer {owners.index(())} was found that writes to the residual stream"
        after = {p: held[n] for n, p in places.items() if p.stage == "after" and n in held}
        kinds: dict[int, set[tuple[str, tuple[int, ...]]]] = {}
        for name, place in places.items():
            if place.layer is not None:
                kinds.setdefault(place.layer, set()).add((place.bare, source.tensors[name].shape))
        uneven = any(kind != kinds[0] for kind in kinds.values())
        return cls(source, live, layers, after, owners, unscalable, uneven, settings)

    def layer(self, number: int) -> nn.Module:
        """One of its layers."""
        listed: nn.Module = self.live.get_submodule(self.layers)
        return listed.get_submodule(str(number))


def _layers(source: Source, live: PreTrainedModel, held: Mapping[str, str]) -> str:
    """Name of the module list whose members hold the tensors of the checkpoint's layers."""
    lists: list[str] = [
        n for n, m in live.named_modules() if isinstance(m, nn.ModuleList) and len(m) == source.num_layers
    ]
    of_layers = [(held[n], p.layer) for n, p in source.layout.places.items() if n in held and p.layer is not None]
    for name in lists:
        if all(tensor.startswith(f"{name}.{layer}.") for tensor, layer in of_layers):
            return name
    raise _unroutable(source, f"a {type(live).__name__} does not keep its {source.num_layers} layers in one list")


def _owners(
    source: Source, live: PreTrainedModel, layers: str, held: Mapping[str, str], known: Writers
) -> tuple[tuple[str, ...], ...]:
    """For each layer the modules that own the tensors that write to the stream, by their names inside the layer."""
    found: list[dict[str, set[str]]] = [{} for _ in range(source.num_layers)]
    for name, place in source.layout.places.items():
        if name in held and place.layer is not None and any(part in name for part in known.filters):
            module, _, parameter = held[name].removeprefix(f"{layers}.{place.layer}.").rpartition(".")
            found[place.layer].setdefault(module, set()).add(parameter)
    for number, modules in enumerate(found):
        for module, named in modules.items():
            owner = live.get_submodule(f"{layers}.{number}.{module}")
            own = {n for n, _ in owner.named_parameters(recurse=False)}
            # What a projection gives is the writer's when all of it is; fused experts end with theirs (down_proj).
            if "weight" in own and own != named:
                raise _unroutable(source, f'"{layers}.{number}.{module}" is only in part what writes to the stream')
    return tuple(tuple(modules) for modules in found)


def _unroutable(source: Source, why: str) -> SourceError:
    return SourceError(f'"{source.reference}" cannot be run as a path of layers: {why}')
