"""Settings of diffusers' denoisers that no shape of a tensor tells, with diffusers' defaults.

Models that differ in them have weights of equal shapes that mean different things. Read as JSON alone.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from evomerge.arguments import describe

# What both kinds of UNet know.
_UNET: Mapping[str, Any] = {
    "act_fn": "silu", "attention_head_dim": 8, "center_input_sample": False, "class_embed_type": None,
    "downsample_padding": 1, "flip_sin_to_cos": True, "freq_shift": 0, "mid_block_scale_factor": 1, "norm_eps": 1e-5,
    "norm_num_groups": 32, "resnet_time_scale_shift": "default", "time_embedding_type": "positional",
}  # fmt: skip
# Classes whose parameters are known by diffusers' names of attention and blocks, and that are run here.
SETTINGS: Mapping[str, Mapping[str, Any]] = {
    "UNet2DModel": {
        **_UNET, "attn_norm_num_groups": None, "downsample_type": "conv", "upsample_type": "conv",
        "mid_block_type": "UNetMidBlock2D",
    },
    "UNet2DConditionModel": {
        **_UNET, "addition_embed_type": None, "addition_embed_type_num_heads": 64, "attention_type": "default",
        "class_embeddings_concat": False, "cross_attention_norm": None, "dual_cross_attention": False,
        "encoder_hid_dim_type": None, "mid_block_only_cross_attention": None,
        "mid_block_type": "UNetMidBlock2DCrossAttn", "num_attention_heads": None, "only_cross_attention": False,
        "resnet_out_scale_factor": 1.0, "resnet_skip_time_act": False, "time_embedding_act_fn": None,
        "timestep_post_act": None, "use_linear_projection": False,
    },
    "DiTTransformer2DModel": {
        "activation_fn": "gelu-approximate", "attention_head_dim": 72, "norm_elementwise_affine": False,
        "norm_eps": 1e-5, "norm_type": "ada_norm_zero", "num_attention_heads": 16, "patch_size": 2, "sample_size": 32,
    },
}  # fmt: skip
# Without a default that all models share: told where both files have them.
_BLOCKS = ("down_block_types", "up_block_types")
# Of the encoder between pictures and latents: what decides how large a latent is.
LATENTS: Mapping[str, Any] = {
    "scaling_factor": 0.18215, "shift_factor": None, "latents_mean": None, "latents_std": None,
}  # fmt: skip


def differing_denoisers(first: Mapping[str, Any], other: Mapping[str, Any]) -> Iterator[str]:
    """What two denoisers of one class are set to differently, in words, beside what their tensors' shapes tell.

    Args:
        first, other: Their configurations.
    """
    for key, default in SETTINGS.get(str(first.get("_class_name")), {}).items():
        yield from _differing(key, first.get(key, default), other.get(key, default))
    for key in _BLOCKS:
        if key in first and key in other:
            yield from _differing(key, first[key], other[key])


def differing_latents(first: Mapping[str, Any], other: Mapping[str, Any]) -> Iterator[str]:
    """What two encoders say differently of latents, in words; nothing where one model has none.

    Args:
        first, other: Their configurations, or {}.
    """
    if first and other:
        for key, default in LATENTS.items():
            yield from (f"vae: {t}" for t in _differing(key, first.get(key, default), other.get(key, default)))


def _differing(key: str, first: Any, other: Any) -> Iterator[str]:
    if first != other:
        yield f"{key} {describe(other)} against {describe(first)}"
