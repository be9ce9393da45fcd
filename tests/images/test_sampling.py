"""Pictures from denoisers: variances, types, batches, and what has no size."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import DDPMScheduler, DiTPipeline

from evomerge.errors import InputError
from evomerge.images.config import MeasureConfig
from evomerge.images.frechet import own_features
from evomerge.images.live import LivePipelines, pictures
from evomerge.images.measure import Gallery
from evomerge.images.sampling import fitting_batch, plain
from evomerge.images.student import StyledPipeline
from evomerge.sources import open_source
from tests.images import models
from tests.images.test_student import written


@pytest.mark.parametrize("guidance", [1.0, 3.0])
def test_ddpm_takes_the_variance_that_a_dit_says(tmp_path: Path, guidance: float) -> None:
    """Held against diffusers' own steps of the same noise, which take both halves."""
    settings = {"variance_type": "learned_range", "beta_schedule": "linear", "clip_sample": False}
    pipeline = DiTPipeline(models.dit(0).eval(), models.vae(), DDPMScheduler(**settings))
    asked: dict[str, Any] = {"seed": 3, "inference_steps": 4, "guidance_scale": guidance}
    with torch.no_grad():
        made = pictures(pipeline, [1, 2], **asked)
        generator = torch.Generator().manual_seed(3)
        x = torch.randn(2, 4, 4, 4, generator=generator)
        scheduler = DDPMScheduler(**settings)
        scheduler.set_timesteps(4)
        for t in scheduler.timesteps:
            said, without = (
                pipeline.transformer(x, t.expand(2), class_labels=torch.tensor(labels)).sample
                for labels in ([1, 2], [4, 4])
            )
            noise = without[:, :4] + guidance * (said[:, :4] - without[:, :4])
            x = scheduler.step(torch.cat([noise, said[:, 4:]], dim=1), t, x, generator=generator).prev_sample
        want = pipeline.vae.decode(x / 0.5).sample.clamp(-1, 1)
    torch.testing.assert_close(made, want, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, None])
def test_pipelines_of_a_type(tmp_path: Path, dtype: Any) -> None:
    """One candidate after the other, of models that are told texts and of latents, all of it in one type."""
    half = models.save_text_model(tmp_path / "half", 0)
    from diffusers import StableDiffusionPipeline

    StableDiffusionPipeline.from_pretrained(half).to(torch.bfloat16).save_pretrained(tmp_path / "stored")
    other = models.save_text_model(tmp_path / "other", 1)
    live = LivePipelines(open_source(str(tmp_path / "stored")), "cpu", dtype)
    wanted = dtype or torch.bfloat16  # that in which the base is stored
    for model in (None, open_source(str(other)), other):
        denoiser = live.denoiser(model)
        around = live.around(denoiser)
        parts = {n: next(p.parameters()).dtype for n, p in around.components.items() if hasattr(p, "parameters")}
        assert set(parts.values()) == {wanted} and len(parts) == 3
        made = pictures(around, ["abc", "b"], inference_steps=2)
        assert made.dtype == torch.float32 and made.shape == (2, 3, 8, 8) and torch.isfinite(made).all()
        # diffusers' own way of asking.
        called = around(["abc"], num_inference_steps=1, output_type="pt", height=8, width=8, guidance_scale=1.0)
        assert called.images.shape == (1, 3, 8, 8)


def test_float32_is_what_it_was(tmp_path: Path) -> None:
    base = models.save_unet(tmp_path / "base", models.unet(0))
    denoiser = LivePipelines(open_source(str(base)), "cpu").denoiser()
    x, t, told = torch.randn(2, 3, 8, 8), torch.tensor([1, 2]), {"class_labels": torch.tensor([0, 1])}
    with torch.no_grad():
        assert torch.equal(plain(denoiser)(x, t, told), denoiser(x, t, **told).sample)


def test_large_pictures_are_made_few_at_a_time() -> None:
    sd = {"block_out_channels": [128, 256, 512, 512]}
    assert [fitting_batch({"sample_size": n}, sd) for n in (8, 64, 128, 4096)] == [256, 8, 2, 1]
    assert fitting_batch({"sample_size": 8}, {}) == 256


def test_a_gallery_compares_by_a_function_of_ones_own(tiny: Path, tmp_path: Path) -> None:
    student = StyledPipeline.from_pretrained(written(tmp_path / "model", tiny / "base"), "cpu")
    asked: list[tuple[int, ...]] = []

    def reds(some: torch.Tensor) -> torch.Tensor:
        asked.append(tuple(some.shape))
        return some[:, :1].mean((2, 3))

    config = MeasureConfig(images=6, inference_steps=2, batch_size=4)
    gallery = Gallery(student, [0, 1], config, 0, own_features(reds, "measure.features"))
    found = gallery.gaussian(student.denoise("warm"), "here")
    assert asked == [(4, 3, 8, 8), (2, 3, 8, 8)] and found.covariance.shape == (1, 1)
    made = gallery.pictures(student.denoise("warm"), gallery.prompts, "here")
    assert found.mean[0] == pytest.approx(float(made[:, 0].mean()), abs=1e-6)
    for wrong in (lambda x: np.zeros(len(x)), lambda x: np.zeros((1, 2)), lambda x: np.full((len(x), 2), np.nan)):
        with pytest.raises(InputError, match=r"features: gave .* for 4 pictures; expected finite numbers of shape"):
            own_features(wrong, "measure.features")(torch.zeros(4, 3, 8, 8))


def test_what_cannot_be_made(tmp_path: Path) -> None:
    unet = models.unet(0)
    unet.register_to_config(sample_size=None)
    base = models.save_unet(tmp_path / "base", unet)
    live = LivePipelines(open_source(str(base)), "cpu")
    around = live.around(live.denoiser())
    with pytest.raises(InputError, match=r"config\.json has no sample_size; give it there"):
        pictures(around, [0])
    around.vqvae = models.vae()
    with pytest.raises(InputError, match="pictures: the pipeline has a vqvae; expected a vae"):
        pictures(around, [0])
