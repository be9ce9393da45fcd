"""Where each tensor of a checkpoint lies in a live model: a whole parameter, or a part of one."""

from __future__ import annotations

import re
import weakref
from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING

from torch import Tensor

from evomerge.errors import RecipeError
from evomerge.header import FLOATS
from evomerge.merging.conversion import Part, Shape, converted_parts, live_places
from evomerge.merging.plan import Plan, TensorPlan

if TYPE_CHECKING:
    from transformers import PreTrainedModel

Parts = dict[tuple[str, Shape], Part | None]
_PARTS: weakref.WeakKeyDictionary[PreTrainedModel, Parts] = weakref.WeakKeyDictionary()


def targets_of(plan: Plan, model: PreTrainedModel) -> list[tuple[TensorPlan, Tensor]]:
    """The live model's tensor for each planned one: a view of a parameter or buffer, to be written in place.

    Every element of every parameter belongs to exactly one planned tensor.

    Raises:
        RecipeError: a tensor without a place of its own in the model, or a weight of the model without a tensor.
    """
    live: dict[str, Tensor] = model.state_dict(keep_vars=True)
    parts = _parts(plan, model)
    remedy = _remedy(plan, model)
    ignored = [re.compile(pattern) for pattern in getattr(model, "_keys_to_ignore_on_load_unexpected", ()) or ()]
    found: list[tuple[TensorPlan, Tensor]] = []
    written: dict[int, int] = {}
    claimed: dict[tuple[str, tuple[object, ...]], str] = {}
    tied: dict[int, str] = {}
    for t in plan.tensors:
        part = parts[t.name, t.shape]
        if part is None:
            if t.dtype in FLOATS and not any(pattern.search(t.name) for pattern in ignored):
                raise RecipeError(f'{remedy[0]}: no place for tensor "{t.name}" of shape {list(t.shape)}; {remedy[1]}')
            continue
        other = claimed.setdefault((part.name, part.steps), t.name)
        if other != t.name:
            raise RecipeError(f'"{other}" and "{t.name}" have the same place in the live model ("{part.name}")')
        tensor = live[part.name]
        first = tied.setdefault(id(tensor), part.name)
        if first != part.name:
            raise RecipeError(
                f'the live model ties "{part.name}" to "{first}", the recipe has a tensor for each of them; '
                "build a live model for this recipe (live_model_for)"
            )
        view = part.view(tensor.detach())
        if tuple(view.shape) != t.shape:
            raise RecipeError(
                f'{remedy[0]}: tensor "{t.name}" has shape {list(t.shape)}, its place {list(view.shape)}; {remedy[1]}'
            )
        written[id(tensor)] = written.get(id(tensor), 0) + view.numel()
        found.append((t, view))
    missing = [n for n, p in model.named_parameters() if written.get(id(p), 0) != p.numel()]
    if missing:
        raise RecipeError(
            f'{remedy[0]}: no tensor for its "{missing[0]}" (nor for {len(missing) - 1} more); {remedy[1]}'
        )
    return found


def live_names(checkpoint: Iterable[str], live: Mapping[str, object], model: PreTrainedModel) -> dict[str, str | None]:
    """For each checkpoint name that of the live model's tensor which holds it, whole or as a part; or None."""
    places = live_places(checkpoint, model)
    return {name: place[0] if place and place[0] in live else None for name, place in places.items()}


def _parts(plan: Plan, model: PreTrainedModel) -> Parts:
    """The part of each planned tensor, found once for each model."""
    known = _PARTS.setdefault(model, {})
    if any((t.name, t.shape) not in known for t in plan.tensors):
        found = converted_parts({t.name: t.shape for t in plan.tensors}, model)
        known.clear()
        known.update({(t.name, t.shape): found[t.name] for t in plan.tensors})
    return known


def _remedy(plan: Plan, model: PreTrainedModel) -> tuple[str, str]:
    """How messages begin and end."""
    if not hasattr(model, "base_model_prefix"):
        return "the recipe does not fit the live model", "live models are of the base's architecture"
    layers = getattr(model.config.get_text_config(), "num_hidden_layers", None)
    counts = f"the recipe has {len(plan.layers)} layers and the live model {layers}"
    if layers == len(plan.layers):
        return counts, f"live models of type {model.config.model_type} do not keep their weights as checkpoints do"
    return counts, "build a live model for this recipe (live_model_for)"
