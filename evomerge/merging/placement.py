"""A live model over several devices: whole layers on each, by accelerate's device map; nothing is offloaded.

Candidates are built in place all the same: each tensor is merged on the device where it lies (`Engine.build_into`).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from evomerge.errors import InputError

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedModel

# One device, or several over which a model is spread.
Devices = Sequence[str]
# Share of what is free on a GPU that weights may take: the rest is for hidden states, keys and values, and merging.
WEIGHTS_SHARE = 0.7
_CUDA = "cuda:"


def device_map(model: PreTrainedModel, devices: Devices, memory: Mapping[str, int] | None = None) -> dict[str, str]:
    """Which device each module goes to, in the order in which they run; layers stay whole.

    Args:
        memory: Bytes that weights may take on each device; None: a share of what is free there.

    Raises:
        InputError: the model does not fit on all of them together.
    """
    from accelerate import infer_auto_device_map
    from accelerate.utils import get_balanced_memory

    # accelerate calls GPUs by their number, everything else by its name.
    keys = {device: int(device.removeprefix(_CUDA)) if device.startswith(_CUDA) else device for device in devices}
    room = {keys[device]: memory[device] if memory is not None else _free(device) for device in devices}
    whole = list(model._no_split_modules or ())
    limits = get_balanced_memory(model, dict(room), no_split_module_classes=whole)
    found: dict[str, Any] = infer_auto_device_map(model, limits, no_split_module_classes=whole)
    if not set(found.values()) <= set(room):
        # Balanced, each has a little more than its part; by what there is, it may fit yet.
        found = infer_auto_device_map(model, dict(room), no_split_module_classes=whole)
    if not set(found.values()) <= set(room):
        size = sum(p.nbytes for p in model.parameters())
        raise InputError(
            f"the model has {size / 1e9:.3g} GB of weights, and the {len(devices)} GPUs of a worker have room for "
            f"{sum(room.values()) / 1e9:.3g} GB of them; expected --gpus-per-worker {len(devices) + 1} or more"
        )
    names = {key: device for device, key in keys.items()}
    return {name: names[key] for name, key in found.items()}


def spread(model: PreTrainedModel, devices: Devices, memory: Mapping[str, int] | None = None) -> PreTrainedModel:
    """Put a model's modules on several devices and let it run over them. Returns the model.

    Raises:
        InputError: it does not fit there.
    """
    from accelerate import dispatch_model

    tied = _tied(model)
    placed = device_map(model, devices, memory)
    dispatch_model(model, placed, force_hooks=True)
    if _tied(model) != tied:
        raise InputError(
            f"a {type(model).__name__} ties weights that the device map puts on different GPUs; use --gpus-per-worker 1"
        )
    return model


def park(model: PreTrainedModel) -> None:
    """Move all weights to main memory, in place; `unpark` brings them back. Not to be run meanwhile."""
    import torch

    torch.nn.Module.to(model, "cpu")


def unpark(model: PreTrainedModel, device: torch.device | str) -> None:
    """Move weights back to where they were: of a model that was spread to each its device."""
    import torch

    places: Mapping[str, Any] | None = getattr(model, "hf_device_map", None)
    if places is None:
        torch.nn.Module.to(model, device)
        return
    for name, place in places.items():
        torch.nn.Module.to(model.get_submodule(name), place)


def _tied(model: PreTrainedModel) -> list[list[str]]:
    """Names of parameters that are one."""
    names: dict[int, list[str]] = {}
    for name, parameter in model.named_parameters(remove_duplicate=False):
        names.setdefault(id(parameter), []).append(name)
    return sorted(found for found in names.values() if len(found) > 1)


def _free(device: str) -> int:
    import torch

    return int(WEIGHTS_SHARE * torch.cuda.mem_get_info(device)[0])
