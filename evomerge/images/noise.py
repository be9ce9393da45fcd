"""Noise that a student is taught with: by the betas of its scheduler, whatever way that one samples."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from evomerge.arguments import describe
from evomerge.sources.noise import BY_BETAS, KIND

# What DDPM's scheduler has, whose noise all of them mean.
_SCHEDULES = ("linear", "scaled_linear", "squaredcos_cap_v2", "sigmoid")
_SAID = ("epsilon", "sample", "v_prediction")
_OWN = ("num_train_timesteps", "beta_start", "beta_end", "beta_schedule", "trained_betas")


def why_not(noise: Mapping[str, Any]) -> str | None:
    """What of a scheduler's noise (see `noise_of`) no student can be taught by yet, in words; None where it can."""
    if noise[KIND] != BY_BETAS:
        return f"noise of {noise[KIND]}"
    for key, known in (
        ("prediction_type", _SAID), ("beta_schedule", _SCHEDULES), ("use_flow_sigmas", (False,)),
        ("timestep_type", ("discrete",)),
    ):  # fmt: skip
        if noise[key] not in known:
            return f"{key} = {describe(noise[key])}"
    return None


def training_noise(scheduler: Any) -> Any:
    """A scheduler whose `add_noise` gives sqrt(abar_t) x_0 + sqrt(1 - abar_t) eps for the betas of another one.

    Schedulers' own do not all: for Euler's x_t is not scaled, and DPM-Solver's counts times in its order of sampling.

    Args:
        scheduler: One of diffusers', of betas; see `why_not`.
    """
    from diffusers import DDPMScheduler

    said = scheduler.config
    return DDPMScheduler(
        **{key: said[key] for key in _OWN}, rescale_betas_zero_snr=bool(said.get("rescale_betas_zero_snr", False))
    )
