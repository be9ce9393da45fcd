"""Trainings of other models than the tiny UNet with DDIM: other schedulers, dropout, DiTs."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import diffusers
import pytest
import torch
from diffusers import DDIMScheduler, UNet2DModel

from evomerge.fusion.workers import Silent
from evomerge.images.conditions import Conditions
from evomerge.images.config import PictureConfig, StudentTraining
from evomerge.images.noise import training_noise
from evomerge.images.pictures import Pictures, read_pictures
from evomerge.images.pipelines import load_denoiser, load_pipeline, open_model
from evomerge.images.sampling import seed_of
from evomerge.images.styles import StyledDenoiser, Styles, one_hot, time_width
from evomerge.images.training import VARIANCE, Lesson, train
from evomerge.sources.noise import SCHEDULERS
from tests.images import models

SETTINGS: Mapping[str, Any] = {
    "max_steps": 6, "per_device_train_batch_size": 4, "learning_rate": 1e-3, "save_steps": 3, "prompt_drop": 0.0,
}  # fmt: skip


def lesson(base: Path, teachers: tuple[Any, ...], pictures: Pictures) -> Lesson:
    """A new student of a base, and what it learns from."""
    model = open_model(base, "base")
    denoiser = load_denoiser(model.folder)
    styles = Styles(len(teachers), 8, time_width(denoiser), torch.Generator().manual_seed(0))
    pipeline = load_pipeline(model.folder, denoiser)
    return Lesson(
        StyledDenoiser(denoiser, styles), dict(enumerate(teachers)), None, (), pipeline,
        Conditions(model.config, pipeline), pictures,
    )  # fmt: skip


def shown(folder: Path, count: int = 8) -> Pictures:
    models.save_pictures(folder / "pictures", [i % 4 for i in range(count)])
    return read_pictures(PictureConfig(path="pictures"), folder, "class", (8, 8), 3, "pictures")


@pytest.mark.parametrize("name", sorted(set(SCHEDULERS) - {"DPMSolverSDEScheduler", "DDIMInverseScheduler"}))
def test_noise_is_that_of_the_betas_whatever_samples(name: str) -> None:
    """Var x_t is 1 - abar_t for a clean 0, at a time that counts from the picture to the noise."""
    scheduler = getattr(diffusers, name)(beta_schedule="scaled_linear", beta_start=0.00085, beta_end=0.012)
    betas = torch.linspace(0.00085**0.5, 0.012**0.5, 1000, dtype=torch.float64) ** 2
    kept = (1 - betas).cumprod(0)
    times = torch.tensor([10, 500, 990])
    clean, noise = torch.full((3, 3, 4, 4), 0.5), torch.randn(3, 3, 4, 4, generator=torch.Generator().manual_seed(0))
    made = training_noise(scheduler).add_noise(clean, noise, times).double()
    share = kept[times].view(-1, 1, 1, 1)
    torch.testing.assert_close(made, share.sqrt() * clean + (1 - share).sqrt() * noise, rtol=1e-4, atol=1e-5)
    own = DDIMScheduler.from_config(scheduler.config).add_noise(clean, noise, times)
    assert torch.equal(made.float(), own)


@pytest.mark.ci
def test_a_base_that_samples_by_euler_learns_what_one_by_ddim_does(tmp_path: Path) -> None:
    """What a student learns does not go by how pictures are made afterwards."""
    pictures = shown(tmp_path)
    made = {}
    for name in ("DDIMScheduler", "EulerDiscreteScheduler", "UniPCMultistepScheduler"):
        base = tmp_path / name
        # A pipeline that takes any scheduler as it is; DDIM's would make one of its own kind of it.
        scheduler = getattr(diffusers, name)(num_train_timesteps=1000, beta_schedule="squaredcos_cap_v2")
        diffusers.DDPMPipeline(models.unet(0), scheduler).save_pretrained(base)
        own = lesson(base, tuple(models.moved(models.unet(0), i).eval() for i in (1, 2)), pictures)
        assert type(own.pipeline.scheduler).__name__ == name
        train(own, StudentTraining(**SETTINGS), tmp_path / f"work-{name}", "key", 5, "cpu", Silent())
        made[name] = own.student.state_dict()
    first, *others = made.values()
    assert all(torch.equal(first[n], other[n]) for other in others for n in first)


def dropping(seed: int) -> Any:
    """A UNet that in training would drop half of what it says inside."""
    torch.manual_seed(seed)
    # Made anew: from_config would take the default for what was one.
    return UNet2DModel(**{**{k: v for k, v in models.unet(0).config.items() if k[0] != "_"}, "dropout": 0.5})


@pytest.mark.parametrize("kind", ["dit", "dropout"])
def test_a_student_drops_nothing_by_itself(tmp_path: Path, kind: str) -> None:
    """A new student that is its teacher has nothing to learn: its first loss is 0, but for what it drops itself."""
    base = tmp_path / "base"
    models.save_dit(base, 0) if kind == "dit" else models.save_unet(base, dropping(0))
    teacher = load_denoiser(open_model(base, "base").folder)
    own = lesson(base, (teacher, teacher), shown(tmp_path))
    learned = train(own, StudentTraining(**{**SETTINGS, "max_steps": 1}), tmp_path / "work", "key", 5, "cpu", Silent())
    assert learned.history[0]["score"] < 1e-10 and learned.history[0]["features"] < 1e-10
    assert not any(module.training for module in own.student.modules())


def test_the_noise_counts_and_the_variance_beside_it(tmp_path: Path) -> None:
    """Of a DiT that says both, one step of all pictures: the loss worked out apart."""
    base, pictures = models.save_dit(tmp_path / "base", 0), shown(tmp_path, 4)
    teachers = tuple(models.dit(i).eval() for i in (1, 2))
    own, again = lesson(base, teachers, pictures), lesson(base, teachers, pictures)
    config = StudentTraining(**{**SETTINGS, "max_steps": 1, "feature_weight": 0.0})
    told = train(own, config, tmp_path / "work", "key", 5, "cpu", Silent()).history[0]
    pixels = {i: pictures.tensor(i) for i in range(4)}

    def losses(order: list[int]) -> tuple[float, float]:
        generator = torch.Generator().manual_seed(seed_of(5, "step", 0))
        vae = again.pipeline.vae
        with torch.no_grad():
            clean = vae.encode(torch.stack([pixels[i] for i in order])).latent_dist.mode() * vae.config.scaling_factor
            noise = torch.randn(clean.shape, generator=generator)
            times = torch.randint(0, 1000, (4,), generator=generator)
            first = int(torch.randint(0, 2, (1,), generator=generator))
            share = again.pipeline.scheduler.alphas_cumprod[times].view(-1, 1, 1, 1)
            noisy = share.sqrt() * clean + (1 - share).sqrt() * noise
            labels = torch.tensor([pictures.prompts[i] for i in order])
            styles = [(first + i) % 2 for i in range(4)]
            said = again.student(noisy, times, one_hot(styles, 2), class_labels=labels)
            want = torch.stack([
                teachers[s](noisy[i : i + 1], times[i : i + 1], class_labels=labels[i : i + 1]).sample[0]
                for i, s in enumerate(styles)
            ])  # fmt: skip
        error = (said - want).square()
        return float(error[:, :4].mean()), float(error[:, 4:].mean())

    from itertools import permutations

    found = [losses(list(order)) for order in permutations(range(4))]
    score, variance = min(found, key=lambda pair: abs(pair[0] - told["score"]))
    assert told["score"] == pytest.approx(score, rel=1e-4) and told["variance"] == pytest.approx(variance, rel=1e-4)
    assert variance > 0 and told["loss"] == pytest.approx(score + VARIANCE * variance, rel=1e-4)
