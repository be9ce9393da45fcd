"""What the configurations of two models say differently of their layers."""

from __future__ import annotations

import re
from collections.abc import Collection, Iterator, Mapping
from typing import Any

from evomerge.arguments import describe
from evomerge.sources.defaults import completed_config
from evomerge.sources.source import LAYER_KEYS, Source

# Settings of other things than what every layer does: vocabulary, names, types, training, lengths.
_OTHER = re.compile(
    r"^_|token|vocab|dtype|drop|initializer|label|version|architectures|auto_map|model_type|problem_type|^summary_"
    r"|use_cache|return_dict|^output_|pretraining_tp|tie_word|max_position|^n_positions$|^n_ctx$|max_seq_len"
)
# Numbers of layers, from which they do something else.
_NUMBERED = (*LAYER_KEYS, "max_window_layers")


def differing_settings(first: Source, other: Source, compared: Collection[str] = ()) -> Iterator[str]:
    """What the configurations say differently of all layers alike, in words: a config.json has room for one of them.

    The number of layers may differ, and what is listed layer by layer. What a file leaves out, or calls by a name of
    old, is taken as transformers does, which is asked only where the files differ.

    Args:
        compared: Keys that are passed over.
    """
    a, b = (_of_layers(s.text_config, compared) for s in (first, other))
    known = [completed_config(s) for s in (first, other)] if a != b else []
    if known and None not in known:
        a, b = (_of_layers(config or {}, compared) for config in known)
        # What one of them still lacks is no setting of the family.
        a, b = ({key: value for key, value in ours.items() if key in theirs} for ours, theirs in ((a, b), (b, a)))
    for key in dict.fromkeys((*a, *b)):
        if a.get(key) != b.get(key):
            yield f"{key} {_value(b, key)} against {_value(a, key)}"


def _of_layers(config: Mapping[str, Any], compared: Collection[str]) -> dict[str, Any]:
    """The settings that hold for all layers alike; those of a mapping (rope_parameters) each by itself."""
    found: dict[str, Any] = {}
    for key, value in config.items():
        by_layer = key in _NUMBERED or ("layer" in key and isinstance(value, list))
        if not (by_layer or key in compared or _OTHER.search(key)):
            found |= _flat(key, value)
    # transformers keeps the old name of rope_type beside the new one.
    return {k: v for k, v in found.items() if not (k.endswith(".type") and f"{k[:-5]}.rope_type" in found)}


def _flat(prefix: str, value: Any) -> dict[str, Any]:
    if not isinstance(value, Mapping):
        return {prefix: value}
    return {name: v for key, inner in value.items() for name, v in _flat(f"{prefix}.{key}", inner).items()}


def _value(settings: Mapping[str, Any], key: str) -> str:
    return describe(settings[key]) if key in settings else "none given"
