"""config.json of a merge: the donor's, with the number of layers, lists by layer and type of what was merged."""

from __future__ import annotations

import copy
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

from evomerge.merging.plan import Plan
from evomerge.merging.tokens import set_vocabulary
from evomerge.sources import LAYER_KEYS, Source, completed_config

# Settings that go with a rule by a layer's number.
_BY_POSITION = re.compile(r"sliding|window|pattern|interval|interleave|chunk|sparse_step")
_NAMES = {"F32": "float32", "F16": "float16", "BF16": "bfloat16", "F64": "float64"}


def merged_config(plan: Plan) -> dict[str, Any]:
    """What config.json of the merge says.

    A composite model's layers are counted in the language model's part of it.
    """
    donor = plan.sources[plan.donor]
    config: dict[str, Any] = copy.deepcopy(donor.config)
    if donor.diffusion is not None:  # says nothing of types and of layers of one kind
        return config
    text = next((v for k, v in config.items() if donor.config[k] is donor.text_config), config)
    if plan.layers != tuple((plan.donor, i) for i in range(donor.num_layers)):
        _set_layers(plan, text)
    if plan.vocabulary is not None:
        set_vocabulary(config, text, donor, plan.sources[plan.tokenizer], plan.vocabulary)
    if donor.says_tied and not donor.tied:
        # A head of its own is stored after all; what reads the merge need not compare them to know.
        config["tie_word_embeddings"] = False
        if "tie_word_embeddings" in text:
            text["tie_word_embeddings"] = False
    asked = plan.recipe.out_dtype or plan.recipe.dtype
    most = Counter(t.dtype for t in plan.tensors if t.dtype in _NAMES).most_common(1)
    dtype = asked or (_NAMES[most[0][0]] if most else None)
    for part in (config, text):
        for key in ("dtype", "torch_dtype"):
            if key in part or (part is config and key == "dtype" and "torch_dtype" not in config):
                part[key] = dtype
    return config


def _set_layers(plan: Plan, text: dict[str, Any]) -> None:
    """Number of layers, lists with one entry per layer (layer_types, ...), and lists of layers (mlp_only_layers)."""
    keys = [key for key in LAYER_KEYS if key in text] or [LAYER_KEYS[0]]
    text.update(dict.fromkeys(keys, len(plan.layers)))
    full = {reference: _completed(plan.sources[reference]) for reference in dict.fromkeys(m for m, _ in plan.layers)}
    full.setdefault(plan.donor, _completed(plan.sources[plan.donor]))
    text.update(lists_by_layer(plan.layers, plan.donor, plan.sources[plan.donor].num_layers, full))


def lists_by_layer(
    layers: Sequence[tuple[str, int]], donor: str, depth: int, complete: Mapping[str, Mapping[str, Any]]
) -> dict[str, Any]:
    """A configuration's lists with one entry per layer (layer_types, ...), and lists of layers (mlp_only_layers).

    Args:
        layers: Model and layer of each.
        donor: Reference of the model whose configuration it is.
        depth: Number of that model's own layers.
        complete: Each model's configuration; nothing that has an entry per layer is left to a rule.
    """
    found: dict[str, Any] = {}
    for key, value in complete[donor].items():
        if "layer" not in key or not isinstance(value, list):
            continue
        if _numbers_of_layers(value, depth):
            found[key] = [at for at, (model, layer) in enumerate(layers) if layer in complete[model].get(key, value)]
        elif len(value) == depth:
            found[key] = [_entry(complete[model].get(key), layer, value) for model, layer in layers]
    return found


def _entry(own: Any, layer: int, donor: list[Any]) -> Any:
    """A layer's entry in its own model's list, or in the donor's where it has no such list."""
    return own[layer] if isinstance(own, list) and layer < len(own) else donor[min(layer, len(donor) - 1)]


def _numbers_of_layers(value: list[Any], depth: int) -> bool:
    """Whether a list names some layers, or all of them in order; [0, 1] of two layers says no and yes."""
    if len(value) == depth <= 2:
        return False
    ascending = all(type(v) is int and 0 <= v < depth for v in value) and sorted(set(value)) == value
    return bool(value) and ascending


def _completed(source: Source) -> dict[str, Any]:
    """The language model's configuration with the lists that older files leave to their family's rule by position.

    gemma2, for one, takes sliding and full attention in turns: a layer that moves keeps its own kind of attention only
    where the merge says so. transformers knows the rules; it is asked only for layers that move, and where a setting
    speaks of such a rule, because importing it takes longer than a small merge.
    """
    own = source.text_config
    listed = any("layer" in k and isinstance(v, list) and len(v) == source.num_layers for k, v in own.items())
    if listed or not any(_BY_POSITION.search(k) and v for k, v in own.items()):
        return own
    return {**(completed_config(source) or {}), **own}
