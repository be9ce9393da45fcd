"""Live pipelines for evaluators: candidates are built into a denoiser, the rest of the pipeline stays."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from evomerge.errors import InputError, SourceError
from evomerge.images.conditions import Conditions, Prompt
from evomerge.images.extra import check_diffusers
from evomerge.images.pipelines import OTHER_ENCODERS, load_denoiser, load_pipeline
from evomerge.images.sampling import fitting_batch, generate, plain
from evomerge.merging.engine import TORCH_DTYPES
from evomerge.sources import Source
from evomerge.sources.diffusion import COMPONENTS, DiffusionFolder, diffusion_folder

_BATCH = 64


class LivePipelines:
    """Loads denoisers of one architecture, and puts each into a pipeline to be scored.

    Args:
        base: The model whose scheduler, encoders and tokenizer candidates have.
        device: torch's.
        dtype: torch's, of every part of the pipelines; None: that in which the base's denoiser is stored.

    Raises:
        InputError: diffusers is missing.
        SourceError: the base is no diffusion model.
    """

    def __init__(self, base: Source, device: str, dtype: Any = torch.float32) -> None:
        check_diffusers(f'model "{base.reference}"')
        if base.diffusion is None:
            raise SourceError(f"{base.reference}: no diffusion model")
        self._base, self._device = base.diffusion, device
        self._dtype = dtype or next(TORCH_DTYPES[t.dtype] for t in base.tensors.values() if t.is_float)
        self._around: Any = None

    def denoiser(self, model: Source | Path | None = None) -> Any:
        """A denoiser to be scored or built into; the base's where none is named.

        Raises:
            SourceError: diffusers cannot load it.
        """
        return load_denoiser(self._folder(model), self._device, self._dtype)

    def around(self, denoiser: Any) -> Any:
        """The pipeline of the base with a denoiser in it; where the base is a denoiser alone, the denoiser itself.

        One object for all candidates: it is theirs until the next one comes.
        """
        if self._base.component is None:
            return denoiser
        if self._around is None:
            self._around = load_pipeline(self._base, denoiser, self._device, self._dtype)
        self._around.register_modules(**{self._base.component: denoiser})
        return self._around

    def _folder(self, model: Source | Path | None) -> DiffusionFolder:
        if model is None:
            return self._base
        found = model.diffusion if isinstance(model, Source) else diffusion_folder(model)
        if found is None:
            raise SourceError(f"{model}: no diffusion model")
        return found


def pictures(
    pipeline: Any, prompts: Sequence[Prompt], *, seed: int = 0, inference_steps: int = 20, guidance_scale: float = 1.0,
    batch_size: int | None = None,
) -> Tensor:  # fmt: skip
    """Pictures of a pipeline, in [-1, 1], [prompts, channels, height, width]: for evaluators, which are given one.

    Args:
        prompts: Texts, or classes of a class-conditioned model, which diffusers' own pipelines of UNets cannot be told.
        seed: Of the noise: the same pictures for the same weights.
        batch_size: Pictures made at a time; None: 64, fewer of large ones.

    Raises:
        InputError: a prompt that the model cannot be told, or pictures are encoded in a way that is not known here.
    """
    encoder = next((n for n in OTHER_ENCODERS if getattr(pipeline, n, None) is not None), None)
    if encoder is not None:
        raise InputError(f"pictures: the pipeline has a {encoder}; expected a vae: call the pipeline itself instead")
    denoiser = next(d for n in COMPONENTS if (d := getattr(pipeline, n, None)) is not None)
    config = {**denoiser.config, "_class_name": type(denoiser).__name__}
    conditions = Conditions(config, pipeline)
    conditions.check(prompts, "prompts")
    vae = getattr(pipeline, "vae", None)
    latents = dict(vae.config) if vae is not None and "block_out_channels" in vae.config else {}
    batch_size = batch_size or min(_BATCH, fitting_batch(config, latents))
    return generate(
        plain(denoiser), conditions, pipeline, prompts, config, steps=inference_steps, seed=seed,
        guidance_scale=guidance_scale, batch_size=batch_size, device=str(denoiser.device),
    )  # fmt: skip
