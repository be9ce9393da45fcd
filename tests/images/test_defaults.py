"""The defaults that merges take for what a file leaves out are those of the diffusers that is installed."""

from __future__ import annotations

import inspect
from typing import Any

import diffusers
import pytest

from evomerge.sources.denoisers import LATENTS, SETTINGS, differing_denoisers, differing_latents
from evomerge.sources.noise import BETAS, BY_BETAS, KIND, SCHEDULERS, differing_noise, noise_of


def defaults(name: str) -> dict[str, Any]:
    found = inspect.signature(getattr(diffusers, name).__init__).parameters
    return {p.name: p.default for p in found.values() if p.default is not p.empty}


@pytest.mark.parametrize("name", sorted(SCHEDULERS))
def test_schedulers(name: str) -> None:
    known = defaults(name)
    if "beta_schedule" not in known:
        pytest.skip(f"{name} needs a library that is not installed")
    want = {key: known.get(key, default) for key, default in BETAS.items()}
    assert noise_of({"_class_name": name}) == {KIND: BY_BETAS, **want}


def test_denoisers_and_encoders() -> None:
    for name, settings in SETTINGS.items():
        known = defaults(name)
        assert {key: known[key] for key in settings} == settings, name
    known = defaults("AutoencoderKL")
    assert {key: known[key] for key in LATENTS} == LATENTS


def test_what_one_file_leaves_out_is_the_default() -> None:
    older, newer = {"_class_name": "DDIMScheduler"}, {"_class_name": "PNDMScheduler", "prediction_type": "epsilon"}
    assert list(differing_noise(noise_of(older), noise_of(newer))) == []
    velocity = noise_of({"_class_name": "EulerDiscreteScheduler", "prediction_type": "v_prediction"})
    assert list(differing_noise(noise_of(older), velocity)) == [
        "scheduler: prediction_type 'v_prediction' against 'epsilon'"
    ]
    flow = noise_of({"_class_name": "FlowMatchEulerDiscreteScheduler", "shift": 3.0})
    assert list(differing_noise(noise_of(older), flow)) == [
        "scheduler: noise of FlowMatchEulerDiscreteScheduler against betas"
    ]
    large, small = (noise_of({"_class_name": "EDMEulerScheduler", "sigma_max": s}) for s in (80.0, 40.0))
    assert list(differing_noise(large, small)) == ["scheduler: sigma_max 40.0 against 80.0"]
    assert list(differing_noise({}, flow)) == []  # a denoiser alone
    # Where betas begin is nothing to a cosine's schedule, of which LCM has other defaults.
    names = ("DDIMScheduler", "LCMScheduler")
    cosine = [noise_of({"_class_name": n, "beta_schedule": "squaredcos_cap_v2"}) for n in names]
    assert list(differing_noise(*cosine)) == []
    unet: dict[str, Any] = {"_class_name": "UNet2DModel"}
    assert list(differing_denoisers(unet, {**unet, "act_fn": "silu", "dropout": 0.1})) == []
    assert list(differing_denoisers(unet, {**unet, "act_fn": "mish"})) == ["act_fn 'mish' against 'silu'"]
    assert list(differing_latents({"scaling_factor": 0.13}, {"latent_channels": 4})) == [
        "vae: scaling_factor 0.18215 against 0.13"
    ]
    assert list(differing_latents({"scaling_factor": 0.13}, {})) == []
