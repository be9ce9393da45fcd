"""Where each tensor of a checkpoint lies in a live model."""

from __future__ import annotations

import weakref
from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING

from torch import Tensor

from evomerge.errors import RecipeError
from evomerge.header import FLOATS
from evomerge.merging.plan import Plan, TensorPlan

if TYPE_CHECKING:
    from transformers import PreTrainedModel

# Masks and frequencies that old checkpoints hold and live models no longer have.
_OLD_BUFFERS = ("inv_freq", "masked_bias")
_NAMES: weakref.WeakKeyDictionary[PreTrainedModel, dict[str, str | None]] = weakref.WeakKeyDictionary()


def targets_of(plan: Plan, model: PreTrainedModel) -> list[tuple[TensorPlan, Tensor]]:
    """The live model's tensor for each planned one; a tied weight appears once.

    Raises:
        RecipeError: a tensor without a place in the model, or a weight of the model without a tensor.
    """
    live: dict[str, Tensor] = dict(model.named_parameters(remove_duplicate=False))
    live.update(model.named_buffers(remove_duplicate=False))
    known = _NAMES.setdefault(model, {})
    new = [t.name for t in plan.tensors if t.name not in known]
    if new:
        known.update(live_names(new, live, model))
    layers = getattr(model.config.get_text_config(), "num_hidden_layers", None)
    counts = f"the recipe has {len(plan.layers)} layers and the live model {layers}"
    remedy = "build a live model for this recipe (live_model_for)"
    if layers == len(plan.layers):
        remedy = f"live models of type {model.config.model_type} do not keep their weights as checkpoints do"
    found: list[tuple[TensorPlan, Tensor]] = []
    written: set[int] = set()
    for t in plan.tensors:
        name = known[t.name]
        if name is not None and tuple(live[name].shape) == t.shape:
            if id(live[name]) not in written:
                written.add(id(live[name]))
                found.append((t, live[name]))
        elif name is not None or (t.dtype in FLOATS and not t.name.endswith(_OLD_BUFFERS)):
            raise RecipeError(f'{counts}: no place for tensor "{t.name}" of shape {list(t.shape)}; {remedy}')
    missing = [n for n, p in model.named_parameters() if id(p) not in written]
    if missing:
        raise RecipeError(f'{counts}: no tensor for its "{missing[0]}" (nor for {len(missing) - 1} more); {remedy}')
    return found


def live_names(checkpoint: Iterable[str], live: Mapping[str, object], model: PreTrainedModel) -> dict[str, str | None]:
    """For each checkpoint name the live model's, or None.

    Mostly they are equal. Some checkpoints were saved without (or with) the model's base prefix, as old GPT-2 ones,
    and some families are renamed when transformers loads them (gpt_neox's `embed_out`).
    """
    prefix = model.base_model_prefix
    found: dict[str, str | None] = {}
    for name in checkpoint:
        choices = (name, f"{prefix}.{name}", name.removeprefix(f"{prefix}."))
        found[name] = next((c for c in choices if c in live), None)
    lacking = sorted(name for name, place in found.items() if place is None)
    if lacking:
        from transformers.conversion_mapping import get_model_conversion_mapping
        from transformers.core_model_loading import WeightRenaming, rename_source_key

        # Renames only: where tensors are fused on loading there is no place for one of them.
        renamings = [r for r in get_model_conversion_mapping(model) if isinstance(r, WeightRenaming)]
        for name in lacking:
            renamed, _ = rename_source_key(name, renamings, [])
            found[name] = renamed if renamed in live else None
    return found
