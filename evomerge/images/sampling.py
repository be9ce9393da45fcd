"""Pictures from a denoiser, by the scheduler of its pipeline."""

from __future__ import annotations

import hashlib
import inspect
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from evomerge.images.conditions import Conditions, Prompt
from evomerge.images.config import ImageFusionError

# (noisy pictures or latents [n, c, h, w], times [n], condition) -> what the denoiser says, [n, c or 2c, h, w].
Denoise = Callable[[Tensor, Tensor, Mapping[str, Tensor]], Tensor]

# Kinds of variance that a denoiser says.
LEARNED = ("learned", "learned_range")
# Pictures made at a time, and pixels of them together, where nobody says.
_BATCH, _PIXELS = 256, 2**21


def seed_of(*parts: object) -> int:
    """A seed for torch's generators, one for each combination of facts."""
    text = "\x1f".join(map(str, parts))
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big") >> 1


def plain(denoiser: Any) -> Denoise:
    """A plain denoiser of diffusers', of whatever type, as a function over float32."""

    def said(sample: Tensor, times: Tensor, told: Mapping[str, Tensor]) -> Tensor:
        own = denoiser.dtype
        given = {k: v.to(own) if v.is_floating_point() else v for k, v in told.items()}
        found: Tensor = denoiser(sample.to(own), times, **given).sample.float()
        return found

    return said


@torch.no_grad()
def generate(
    denoise: Denoise,
    conditions: Conditions,
    pipeline: Any,
    prompts: Sequence[Prompt],
    config: Mapping[str, Any],
    *,
    steps: int,
    seed: int,
    guidance_scale: float = 1.0,
    batch_size: int = 256,
    device: str = "cpu",
) -> Tensor:
    """Pictures in [-1, 1], [prompts, channels, height, width], on the CPU.

    Args:
        pipeline: Of which scheduler and encoder are used.
        config: Of the denoiser.
        seed: Of all noise; the same gives the same pictures. Of schedulers that draw noise in every step (DDPM, Euler
            ancestral) only with the same batch size; else whatever that is, to rounding.
    """
    generator = torch.Generator().manual_seed(seed)
    height, width = latent_size(config)
    channels = int(config["in_channels"])
    noise = torch.randn(len(prompts), channels, height, width, generator=generator)
    found = []
    for start in range(0, len(prompts), batch_size):
        some = prompts[start : start + batch_size]
        told = conditions(some, device)
        absent = conditions([conditions.null] * len(some), device) if guidance_scale > 1 else None
        latents = _denoised(
            denoise, pipeline.scheduler, noise[start : start + batch_size].to(device), told, absent, steps,
            guidance_scale, channels, generator,
        )  # fmt: skip
        found.append(decoded(pipeline, latents).cpu())
    return torch.cat(found)


def _denoised(
    denoise: Denoise,
    scheduler: Any,
    noise: Tensor,
    told: Mapping[str, Tensor],
    absent: Mapping[str, Tensor] | None,
    steps: int,
    guidance_scale: float,
    channels: int,
    generator: torch.Generator,
) -> Tensor:
    scheduler = type(scheduler).from_config(scheduler.config)  # some keep what was said before
    scheduler.set_timesteps(steps)
    # Behind the noise a denoiser may say a variance, which DDPM alone takes, where it is told so.
    used = 2 * channels if takes_variance(scheduler) else channels
    options = {"generator": generator} if "generator" in inspect.signature(scheduler.step).parameters else {}
    x = noise * scheduler.init_noise_sigma
    for t in scheduler.timesteps:
        scaled = scheduler.scale_model_input(x, t)
        times = torch.full((len(x),), float(t), device=x.device).to(t.dtype)
        said = denoise(scaled, times, told)[:, :used]
        if absent is not None:
            without = denoise(scaled, times, absent)[:, :channels]
            guided = without + guidance_scale * (said[:, :channels] - without)
            said = torch.cat([guided, said[:, channels:]], dim=1) if used > channels else guided
        x = scheduler.step(said, t, x, **options).prev_sample
    found: Tensor = x
    return found


def takes_variance(scheduler: Any) -> bool:
    """Whether a scheduler takes the variance that a denoiser says behind the noise."""
    return type(scheduler).__name__.startswith("DDPM") and scheduler.config.get("variance_type") in LEARNED


def latent_size(config: Mapping[str, Any]) -> tuple[int, int]:
    """Height and width of what the denoiser works on.

    Raises:
        ImageFusionError: its configuration does not say.
    """
    size = config.get("sample_size")
    if size is None:
        raise ImageFusionError("the denoiser's config.json has no sample_size; give it there, in pixels of a latent")
    return (int(size[0]), int(size[1])) if isinstance(size, list | tuple) else (int(size), int(size))


def picture_size(config: Mapping[str, Any], latents: Mapping[str, Any]) -> tuple[int, int]:
    """Height and width of pictures: of latents, times what the encoder divides by."""
    height, width = latent_size(config)
    factor = 2 ** (len(latents["block_out_channels"]) - 1) if latents else 1
    return height * factor, width * factor


def fitting_batch(config: Mapping[str, Any], latents: Mapping[str, Any]) -> int:
    """How many pictures are made at a time where nobody says: an encoder's decoder takes gigabytes for large ones."""
    height, width = picture_size(config, latents)
    return max(1, min(_BATCH, _PIXELS // (height * width)))


def encoded(pipeline: Any, pictures: Tensor) -> Tensor:
    """What the denoiser works on: the pictures, or their latents (the encoder's means)."""
    vae = getattr(pipeline, "vae", None)
    if vae is None:
        return pictures
    found: Tensor = (vae.encode(pictures).latent_dist.mode() - _shift(vae)) * vae.config.scaling_factor
    return found


def decoded(pipeline: Any, latents: Tensor) -> Tensor:
    """The pictures of what a denoiser made, in [-1, 1]."""
    vae = getattr(pipeline, "vae", None)
    if vae is not None:
        latents = vae.decode((latents / vae.config.scaling_factor + _shift(vae)).to(vae.dtype)).sample.float()
    return latents.clamp(-1, 1)


def _shift(vae: Any) -> float:
    return float(getattr(vae.config, "shift_factor", None) or 0.0)
