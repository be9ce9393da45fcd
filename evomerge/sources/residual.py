"""Which tensors of a family write to the residual stream, so that the scales of a path fold into them.

Scaling the stream by w_t where hop t begins equals dividing what hop t adds to it by C_t = w_1 * ... * w_t where three
things hold: attention and MLP read the stream through a norm, which does not see its scale; what they write is linear
in their output projections, with no norm after them; and a norm stands before the head.
tests/test_sources_residual.py makes a model of every family listed here and compares the two.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from evomerge.sources.source import Source


@dataclass(frozen=True, slots=True)
class Writers:
    """The tensors of a model that write to its residual stream.

    Attributes:
        filters: Substrings of the names that they have in the checkpoint, biases included, and no other tensor has;
            empty where they are not known.
        reason: Why paths through the model may only use scale 1, as a clause that follows a colon; None: any scale.
    """

    filters: tuple[str, ...]
    reason: str | None = None


_LLAMA = ("self_attn.o_proj.", "mlp.down_proj.")
# Dense layers, experts and shared experts alike: each says down_proj.
_EXPERTS = ("self_attn.o_proj.", ".down_proj")
_DENSE = ("attention.dense.", "mlp.dense_4h_to_h.")
_GPT2 = ("attn.c_proj.", "mlp.c_proj.")
_GPTJ = ("attn.out_proj.", "mlp.fc_out.")

# By the language model's model_type.
FILTERS: Mapping[str, tuple[str, ...]] = {
    "apertus": _LLAMA,
    "arcee": _LLAMA,
    "bloom": _DENSE,
    "codegen": _GPTJ,
    "cohere": _LLAMA,
    "cohere2": _LLAMA,
    "deepseek_v2": _EXPERTS,
    "ernie4_5": _LLAMA,
    "exaone4": _LLAMA,
    "falcon": _DENSE,
    "gemma": _LLAMA,
    "gemma2": _LLAMA,
    "gemma3_text": _LLAMA,
    "glm": _LLAMA,
    "glm4": _LLAMA,
    "gpt2": _GPT2,
    "gpt_bigcode": _GPT2,
    "gpt_neo": ("attn.attention.out_proj.", "mlp.c_proj."),
    "gpt_neox": _DENSE,
    "gpt_oss": _EXPERTS,
    "gptj": _GPTJ,
    "granite": _LLAMA,
    "granitemoe": ("self_attn.o_proj.", "block_sparse_moe.output_linear."),
    "helium": _LLAMA,
    "hunyuan_v1_dense": _LLAMA,
    "llama": _LLAMA,
    "ministral": _LLAMA,
    "mistral": _LLAMA,
    "mixtral": ("self_attn.o_proj.", ".w2."),
    "mpt": ("attn.out_proj.", "ffn.down_proj."),
    "nemotron": _LLAMA,
    "olmo": _LLAMA,
    "olmo2": _LLAMA,
    "olmo3": _LLAMA,
    "olmoe": _EXPERTS,
    "opt": ("self_attn.out_proj.", ".fc2."),
    "phi": ("self_attn.dense.", "mlp.fc2."),
    "phi3": _LLAMA,
    "qwen2": _LLAMA,
    "qwen2_moe": _EXPERTS,
    "qwen3": _LLAMA,
    "qwen3_moe": _EXPERTS,
    "seed_oss": _LLAMA,
    "smollm3": _LLAMA,
    "stablelm": _LLAMA,
    "starcoder2": ("self_attn.o_proj.", "mlp.c_proj."),
}

_POST = "its attention and MLP read the residual stream without a norm before them (post-normalisation)"
_SANDWICH = "what its attention and MLP write is normalised before it is added (sandwich normalisation)"
_ON_NORMED = "its layers add to the normalised stream instead of the stream itself"
# Families whose layers do not fold.
REFUSED: Mapping[str, str] = {
    "exaone4": _POST,
    "gemma2": _SANDWICH,
    "gemma3_text": _SANDWICH,
    "glm4": _SANDWICH,
    "olmo2": _POST,
    "olmo3": _POST,
}
# Settings that say so: family, key, the value with which it does not fold, the default, and the reason.
_SETTINGS = (
    ("bloom", "apply_residual_connection_post_layernorm", True, False, _ON_NORMED),
    ("opt", "do_layer_norm_before", False, True, _POST),
    ("opt", "_remove_final_layer_norm", True, False, "it has no norm before its head"),
)


def writers(source: Source) -> Writers:
    """The tensors of a model that write to the residual stream, and whether a path may scale it."""
    config = source.text_config
    family = str(config.get("model_type") or source.config.get("model_type") or "")
    filters = FILTERS.get(family)
    if filters is None:
        return Writers((), f'which tensors of a model of type "{family}" write to the residual stream is not known')
    return Writers(filters, REFUSED.get(family) or _setting(family, config))


def _setting(family: str, config: Mapping[str, Any]) -> str | None:
    for name, key, refused, default, reason in _SETTINGS:
        value = default if config.get(key) is None else config[key]
        if name == family and bool(value) is refused:
            return f"{reason}: {key} = {str(value).lower()}"
    return None
