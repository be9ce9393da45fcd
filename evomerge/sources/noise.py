"""What a scheduler's configuration says of noise, with diffusers' defaults for what a file leaves out.

Read as JSON alone; diffusers is not needed for it.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from evomerge.arguments import describe

# How the noise that a model is taught with comes about.
KIND = "kind"
BY_BETAS = "betas"
# x_t = sqrt(abar_t) x_0 + sqrt(1 - abar_t) eps, and what of it a denoiser is to say. All else is about how one samples.
BETAS: Mapping[str, Any] = {
    "num_train_timesteps": 1000, "beta_start": 0.0001, "beta_end": 0.02, "beta_schedule": "linear",
    "trained_betas": None, "prediction_type": "epsilon", "rescale_betas_zero_snr": False,
    "use_flow_sigmas": False, "timestep_type": "discrete",
}  # fmt: skip
_LATER: Mapping[str, Any] = {"beta_start": 0.00085, "beta_end": 0.012}
_SCALED: Mapping[str, Any] = {**_LATER, "beta_schedule": "scaled_linear"}
# Classes whose noise goes by betas, and the defaults in which they differ from the rest.
SCHEDULERS: Mapping[str, Mapping[str, Any]] = {
    "DDIMInverseScheduler": {},
    "DDIMParallelScheduler": {},
    "DDIMScheduler": {},
    "DDPMParallelScheduler": {},
    "DDPMScheduler": {},
    "DEISMultistepScheduler": {},
    "DPMSolverMultistepInverseScheduler": {},
    "DPMSolverMultistepScheduler": {},
    "DPMSolverSDEScheduler": _LATER,
    "DPMSolverSinglestepScheduler": {},
    "EulerAncestralDiscreteScheduler": {},
    "EulerDiscreteScheduler": {},
    "HeunDiscreteScheduler": _LATER,
    "KDPM2AncestralDiscreteScheduler": _LATER,
    "KDPM2DiscreteScheduler": _LATER,
    "LCMScheduler": _SCALED,
    "LMSDiscreteScheduler": {},
    "PNDMScheduler": {},
    "RePaintScheduler": {},
    "SASolverScheduler": {},
    "TCDScheduler": _SCALED,
    "UniPCMultistepScheduler": {},
}
# Of other classes, what decides the noise beside the class itself.
_OTHERS = ("num_train_timesteps", "sigma_min", "sigma_max", "sigma_data", "prediction_type")
# It has no use for where betas begin and end.
_COSINE = "squaredcos_cap_v2"


def noise_of(config: Mapping[str, Any]) -> dict[str, Any]:
    """What a scheduler's configuration says of noise: how it comes about ("kind"), and its settings.

    The kind is "betas", or else the scheduler's class: flow matching and noise without betas are another's each.
    """
    name = str(config.get("_class_name", ""))
    if name and name not in SCHEDULERS:
        return {KIND: name, **{key: config[key] for key in _OTHERS if key in config}}
    found = {key: config.get(key, default) for key, default in {**BETAS, **SCHEDULERS.get(name, {})}.items()}
    if found["beta_schedule"] == _COSINE:
        del found["beta_start"], found["beta_end"]
    return {KIND: BY_BETAS, **found}


def differing_noise(first: Mapping[str, Any], other: Mapping[str, Any]) -> Iterator[str]:
    """What two schedulers say differently of noise, in words; nothing where there is no scheduler.

    Args:
        first, other: As `noise_of` gives it, or {}.
    """
    if not first or not other:
        return
    if first[KIND] != other[KIND]:
        yield f"scheduler: noise of {other[KIND]} against {first[KIND]}"
        return
    for key in dict.fromkeys((*first, *other)):
        # What one of them has no use for was told by its schedule; of an unknown class nothing is known.
        if key in first and key in other and first[key] != other[key]:
            yield f"scheduler: {key} {describe(other[key])} against {describe(first[key])}"
