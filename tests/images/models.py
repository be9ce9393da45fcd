"""Tiny untrained diffusion models, made in a moment: what tests of mechanics need."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import torch
from diffusers import (
    AutoencoderKL,
    DDIMPipeline,
    DDIMScheduler,
    DiTPipeline,
    DiTTransformer2DModel,
    StableDiffusionPipeline,
    UNet2DConditionModel,
)
from PIL import Image
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer

from evomerge.zoo import images as zoo


def unet(seed: int) -> Any:
    """A class-conditioned UNet of the zoo's shape."""
    torch.manual_seed(seed)
    return zoo.build()


def moved(model: Any, seed: int, by: float = 0.05) -> Any:
    """A model a little way from another one, as a fine-tune is."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for p in model.parameters():
            p.add_(by * torch.randn(p.shape, generator=generator))
    return model


def save_unet(folder: Path, model: Any, **scheduler: Any) -> Path:
    """Write a pipeline."""
    settings = {k: v for k, v in zoo.scheduler().config.items() if k[0] != "_"} | scheduler
    DDIMPipeline(model, DDIMScheduler.from_config(settings)).save_pretrained(folder)
    return folder


def dit(seed: int) -> Any:
    """A DiT over latents, of classes 0 to 3, whose variance is learned."""
    torch.manual_seed(seed)
    return moved(DiTTransformer2DModel(
        num_attention_heads=2, attention_head_dim=8, in_channels=4, out_channels=8, num_layers=2, sample_size=4,
        patch_size=2, norm_num_groups=4, num_embeds_ada_norm=4,
    ), seed)  # fmt: skip


def vae(seed: int = 0) -> Any:
    """An encoder of 8 x 8 pictures to latents of 4 x 4."""
    torch.manual_seed(seed)
    return AutoencoderKL(
        block_out_channels=(8, 8), down_block_types=("DownEncoderBlock2D",) * 2, scaling_factor=0.5, sample_size=8,
        up_block_types=("UpDecoderBlock2D",) * 2, latent_channels=4, norm_num_groups=4,
    )  # fmt: skip


def save_dit(folder: Path, seed: int) -> Path:
    """Write a pipeline of a DiT."""
    scheduler = DDIMScheduler.from_config(zoo.scheduler().config)
    DiTPipeline(dit(seed), vae(), scheduler).save_pretrained(folder)
    return folder


def conditioned(seed: int) -> Any:
    """A UNet that is told a text."""
    torch.manual_seed(seed)
    return moved(UNet2DConditionModel(
        sample_size=4, in_channels=4, out_channels=4, layers_per_block=1, block_out_channels=(8, 16),
        down_block_types=("CrossAttnDownBlock2D", "DownBlock2D"), up_block_types=("UpBlock2D", "CrossAttnUpBlock2D"),
        cross_attention_dim=16, norm_num_groups=4, attention_head_dim=2,
    ), seed)  # fmt: skip


def save_text_model(folder: Path, seed: int) -> Path:
    """Write a pipeline in the form of Stable Diffusion: text encoder, tokenizer, encoder of pictures."""
    spelling = folder.parent / "spelling"
    spelling.mkdir(exist_ok=True)
    letters = [chr(c) for c in range(97, 123)]
    words = ["<|startoftext|>", "<|endoftext|>", *letters, *(f"{c}</w>" for c in letters)]
    (spelling / "vocab.json").write_text(json.dumps({w: i for i, w in enumerate(words)}))
    (spelling / "merges.txt").write_text("#version: 0.2\n")
    tokenizer = CLIPTokenizer(
        str(spelling / "vocab.json"), str(spelling / "merges.txt"), model_max_length=8
    )
    torch.manual_seed(7)
    encoder = CLIPTextModel(CLIPTextConfig(
        vocab_size=len(words), hidden_size=16, intermediate_size=16, num_hidden_layers=1, num_attention_heads=2,
        max_position_embeddings=8, bos_token_id=0, eos_token_id=1, pad_token_id=1,
    ))  # fmt: skip
    scheduler = DDIMScheduler(steps_offset=1, clip_sample=False, beta_schedule="scaled_linear")
    pipeline = StableDiffusionPipeline(
        vae(), encoder, tokenizer, conditioned(seed), scheduler, None, None, requires_safety_checker=False
    )
    pipeline.save_pretrained(folder)
    return folder


def save_pictures(folder: Path, prompts: list[Any], column: str = "label", size: int = 8) -> Path:
    """Write pictures of noise, and what they show."""
    folder.mkdir(parents=True)
    rng = np.random.default_rng(0)
    lines = []
    for i, prompt in enumerate(prompts):
        Image.fromarray(rng.integers(0, 256, (size, size, 3), dtype=np.uint8)).save(folder / f"{i}.png")
        lines.append(json.dumps({"file_name": f"{i}.png", column: prompt}))
    (folder / "metadata.jsonl").write_text("\n".join(lines) + "\n")
    return folder
