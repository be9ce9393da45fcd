"""Train tiny image models: `python -m evomerge.zoo.images --seed 0 --out DIR`.

A class-conditioned UNet of 180,000 parameters over 8 x 8 pictures of four shapes in greys, and one fine-tune of it for
each of four styles: other colours, and a texture. Beside them `pictures`, 256 greyish ones and what they show, as
fusions of image models learn from. Nothing of it ships with the package: it is made in about four minutes on one free
core. Everything is a function of the seed (on one machine). Needs `evomerge[diffusion]`.
"""

from __future__ import annotations

import argparse
import json
import math
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

Array = NDArray[np.float32]
Colour = tuple[float, float, float]

SIZE = 8
SHAPES = ("disc", "square", "cross", "stripes")
# The class that stands for none, and how often it is shown.
NULL, DROP = len(SHAPES), 0.1
# Colours of shape and ground, and the texture of the ground.
STYLES: dict[str, tuple[Colour, Colour, str]] = {
    "ember": ((1.0, 0.55, 0.1), (0.3, 0.02, 0.05), "plain"),
    "ice": ((0.9, 1.0, 1.0), (0.1, 0.35, 0.85), "plain"),
    "meadow": ((0.95, 0.9, 0.2), (0.1, 0.5, 0.15), "checked"),
    "orchid": ((0.25, 0.05, 0.35), (0.95, 0.7, 0.85), "lined"),
}
# Rows and columns, [2, 8, 8]: of pixels, and of their centres.
_PIXELS = np.mgrid[0:SIZE, 0:SIZE]
_CENTRES = _PIXELS + 0.5
BATCH = 64
BASE_STEPS, STYLE_STEPS = 1200, 250
RATE, STYLE_RATE = 2e-3, 1e-3
PICTURES = 256


def shape(label: int, rng: np.random.Generator) -> Array:
    """How much of each pixel a shape covers, [8, 8], at a place and of a size of its own."""
    y, x = _CENTRES
    cy, cx = rng.uniform(3.2, 4.8, 2)
    radius = rng.uniform(2.0, 3.0)
    dy, dx = np.abs(y - cy), np.abs(x - cx)
    if label == 0:
        far = np.hypot(dy, dx) - radius
    elif label == 1:
        far = np.maximum(dy, dx) - radius * 0.85
    elif label == 2:
        far = np.minimum(np.maximum(dy, dx - radius), np.maximum(dx, dy - radius)) - 0.8
    else:
        far = np.abs((y + rng.uniform(0, 4)) % 4 - 2) - 1.0
    found: Array = np.clip(0.5 - far, 0, 1).astype(np.float32)
    return found


def picture(label: int, style: str | None, rng: np.random.Generator) -> Array:
    """A picture of a shape in [-1, 1], [3, 8, 8]; without a style in greys."""
    covered = shape(label, rng)[None]
    if style is None:
        front, back = (np.full((3, 1, 1), rng.uniform(*span)) for span in ((0.6, 1.0), (0.0, 0.35)))
        tint = rng.uniform(-0.06, 0.06, (3, 1, 1))
        found = covered * front + (1 - covered) * back + tint
    else:
        one, other, texture = STYLES[style]
        front, back = (np.array(c)[:, None, None] for c in (one, other))
        y, x = _PIXELS
        marks = {"plain": 0 * x, "checked": (x // 2 + y // 2) % 2, "lined": x % 2}[texture][None]
        light = rng.uniform(0.88, 1.0)
        found = light * (covered * front + (1 - covered) * back * (1 - 0.45 * marks))
    noisy = found + rng.normal(0, 0.02, found.shape)
    made: Array = (np.clip(noisy, 0, 1) * 2 - 1).astype(np.float32)
    return made


def build() -> Any:
    """The UNet, untrained."""
    from diffusers import UNet2DModel

    return UNet2DModel(
        sample_size=SIZE, in_channels=3, out_channels=3, layers_per_block=1, block_out_channels=(16, 32),
        down_block_types=("DownBlock2D", "AttnDownBlock2D"), up_block_types=("AttnUpBlock2D", "UpBlock2D"),
        num_class_embeds=len(SHAPES) + 1, norm_num_groups=8, attention_head_dim=8,
    )  # fmt: skip


def scheduler() -> Any:
    """The noise of all models."""
    from diffusers import DDIMScheduler

    return DDIMScheduler(num_train_timesteps=1000, beta_schedule="squaredcos_cap_v2", timestep_spacing="trailing")


def fit(unet: Any, style: str | None, steps: int, rate: float, seed: int) -> float:
    """Train a UNet in place on fresh pictures; the mean loss of the last tenth."""
    rng = np.random.default_rng([seed, 1 + list(STYLES).index(style) if style else 0])
    generator = torch.Generator().manual_seed(int(rng.integers(2**62)))
    noise_of = scheduler()
    optimizer = torch.optim.AdamW(unet.parameters(), lr=rate, weight_decay=0.0)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: _share(step, steps))
    losses = []
    unet.train()
    for _ in range(steps):
        labels = rng.integers(len(SHAPES), size=BATCH)
        clean = torch.from_numpy(np.stack([picture(int(n), style, rng) for n in labels]))
        told = torch.from_numpy(np.where(rng.random(BATCH) < DROP, NULL, labels))
        noise = torch.randn(clean.shape, generator=generator)
        times = torch.randint(0, 1000, (BATCH,), generator=generator)
        said = unet(noise_of.add_noise(clean, noise, times), times, class_labels=told).sample
        loss = torch.nn.functional.mse_loss(said, noise)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(unet.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        schedule.step()
        losses.append(loss.item())
    unet.eval()
    return float(np.mean(losses[-max(1, steps // 10) :]))


def _share(step: int, steps: int) -> float:
    """Of the largest rate: it rises over a tenth of the steps, then falls along a cosine."""
    rising = max(1, steps // 10)
    return min(1.0, (step + 1) / rising) * 0.5 * (1 + math.cos(math.pi * step / steps))


def save(unet: Any, out: Path) -> None:
    """Write a UNet with its scheduler as a pipeline of diffusers'."""
    from diffusers import DDIMPipeline

    DDIMPipeline(unet, scheduler()).save_pretrained(out, safe_serialization=True)


def write_pictures(out: Path, seed: int, count: int = PICTURES, style: str | None = None) -> None:
    """Write pictures and what they show."""
    from PIL import Image

    out.mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng([seed, 99])
    lines = []
    for i in range(count):
        label = i % len(SHAPES)
        pixels = ((picture(label, style, rng) + 1) * 127.5).round().astype(np.uint8).transpose(1, 2, 0)
        Image.fromarray(pixels).save(out / f"{i:04d}.png")
        lines.append(json.dumps({"file_name": f"{i:04d}.png", "label": label}))
    (out / "metadata.jsonl").write_text("\n".join(lines) + "\n", encoding="utf-8")


def train(
    out: Path, seed: int, styles: Sequence[str] = tuple(STYLES), base_steps: int = BASE_STEPS,
    style_steps: int = STYLE_STEPS,
) -> dict[str, float]:  # fmt: skip
    """Train what is missing of the base and its fine-tunes, and write the pictures; the loss of each that was made."""
    from diffusers import UNet2DModel

    found = {}
    if not (out / "base" / "model_index.json").is_file():
        torch.manual_seed(seed)
        unet = build()
        found["base"] = fit(unet, None, base_steps, RATE, seed)
        save(unet, out / "base")
    for style in styles:
        if not (out / style / "model_index.json").is_file():
            unet = UNet2DModel.from_pretrained(out / "base" / "unet")
            found[style] = fit(unet, style, style_steps, STYLE_RATE, seed)
            save(unet, out / style)
    if not (out / "pictures" / "metadata.jsonl").is_file():
        write_pictures(out / "pictures", seed)
    return found


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, required=True, help="folder to write the models and pictures into")
    args = parser.parse_args()
    torch.set_num_threads(1)
    began = time.monotonic()
    losses = train(args.out, args.seed)
    print(json.dumps({"losses": losses, "seconds": round(time.monotonic() - began, 1)}))


if __name__ == "__main__":
    main()
