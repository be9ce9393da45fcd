"""What a fusion of image models makes: one pipeline that generates in the style of any of its teachers.

    pipeline = StyledPipeline.from_pretrained("out/model")
    pipeline.styles                                            # ("warm", "cold", "mono")
    pipeline.generate([0, 1, 2], "warm", seed=1)               # PIL pictures
    pipeline.generate([0, 1, 2], {"warm": 0.5, "cold": 0.5})   # between two styles
    pipeline.plain("warm")                                     # a pipeline of diffusers', which needs no code of ours
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from evomerge.errors import InputError, SourceError, choose
from evomerge.images.conditions import Conditions, Prompt
from evomerge.images.extra import check_diffusers
from evomerge.images.pipelines import STYLES_FOLDER, ImageModel, load_denoiser, load_pipeline, open_model
from evomerge.images.sampling import Denoise, fitting_batch, generate
from evomerge.images.styles import StyledDenoiser, Styles, one_hot, time_width
from evomerge.sources import read_object

STYLES = "styles.json"
WEIGHTS = "styles.safetensors"
VERSION = 1

Style = str | Mapping[str, float]


class StyledPipeline:
    """A student with its styles, ready to generate.

    Attributes:
        model: What its files say of it.
        styles: Their names, in the order in which they were learned.
        denoiser: Takes a style for each picture.
        pipeline: diffusers' own, with the plain denoiser: scheduler, encoders, tokenizer.
    """

    def __init__(
        self,
        model: ImageModel,
        styles: Sequence[str],
        denoiser: StyledDenoiser,
        device: str = "cpu",
        null_label: int | None = None,
    ) -> None:
        self.model = model
        self.styles = tuple(styles)
        self.denoiser = denoiser.to(device)
        self.device = device
        self.null_label = null_label
        self.pipeline = load_pipeline(model.folder, denoiser.denoiser, device)
        self.conditions = Conditions(model.config, self.pipeline, null_label)

    @classmethod
    def from_pretrained(cls, folder: Path | str, device: str | None = None) -> StyledPipeline:
        """Load the `model` folder of a fusion.

        Args:
            device: torch's; None: CUDA where there is one.

        Raises:
            InputError: diffusers is missing, or the folder holds no student.
        """
        check_diffusers("a student")
        device = device or ("cuda" if torch.cuda.is_available() else "cpu")
        model = open_model(Path(folder), str(folder))
        names, null_label = read_styles(Path(folder))
        denoiser = load_denoiser(model.folder)
        return cls(model, names, StyledDenoiser(denoiser, load_styles(Path(folder), denoiser)), device, null_label)

    def weights(self, style: Style) -> Tensor:
        """Weights of the style vectors, [styles], that a style or a mixture of styles means.

        Raises:
            InputError: an unknown style, or weights of a mixture that do not sum to 1.
        """
        given = {style: 1.0} if isinstance(style, str) else dict(style)
        unknown = next((name for name in given if name not in self.styles), None)
        if unknown is not None:
            raise InputError(f'style "{unknown}": {choose(str(unknown), self.styles)}')
        if abs(sum(given.values()) - 1.0) > 1e-3:
            raise InputError(f"styles: weights sum to {sum(given.values()):g}; expected 1")
        return torch.tensor([float(given.get(name, 0.0)) for name in self.styles], device=self.device)

    def denoise(self, style: Style) -> Denoise:
        """The denoiser in one style; see `sampling.generate`."""
        weights = self.weights(style)

        def said(sample: Tensor, times: Tensor, told: Mapping[str, Tensor]) -> Tensor:
            found: Tensor = self.denoiser(sample, times, weights.expand(len(sample), -1), **told)
            return found

        return said

    def tensors(
        self, prompts: Sequence[Prompt], style: Style, *, seed: int = 0, inference_steps: int = 50,
        guidance_scale: float = 1.0, batch_size: int | None = None,
    ) -> Tensor:  # fmt: skip
        """Pictures in [-1, 1], [prompts, channels, height, width].

        Args:
            batch_size: Pictures made at a time; None: as many as suit their size.

        Raises:
            InputError: a prompt that the model cannot be told, or an unknown style.
        """
        self.conditions.check(prompts, "prompts")
        return generate(
            self.denoise(style), self.conditions, self.pipeline, prompts, self.model.config, steps=inference_steps,
            seed=seed, guidance_scale=guidance_scale, device=self.device,
            batch_size=batch_size or fitting_batch(self.model.config, self.model.latents),
        )  # fmt: skip

    def generate(
        self, prompts: Sequence[Prompt], style: Style, *, seed: int = 0, inference_steps: int = 50,
        guidance_scale: float = 1.0, batch_size: int | None = None,
    ) -> list[Any]:  # fmt: skip
        """PIL pictures, one for each prompt.

        Args:
            prompts: Texts, or classes of a class-conditioned model.
            style: One of `styles`, or a mixture: weights by name that sum to 1.
            seed: Of the noise.
            batch_size: Pictures made at a time; None: as many as suit their size.

        Raises:
            InputError: a prompt that the model cannot be told, or an unknown style.
        """
        found = self.tensors(
            prompts, style, seed=seed, inference_steps=inference_steps, guidance_scale=guidance_scale,
            batch_size=batch_size,
        )  # fmt: skip
        return [to_image(x) for x in found]

    def plain(self, style: Style) -> Any:
        """A pipeline of diffusers' in one style or mixture, which `save_pretrained` writes for any program to load."""
        return load_pipeline(self.model.folder, self.denoiser.folded(self.weights(style)), self.device)

    def save(self, folder: Path) -> None:
        """Write everything into an empty folder: a plain pipeline, and the styles beside it."""
        write_student(folder, self.model, self.denoiser, self.styles, self.null_label)


def write_student(
    folder: Path, model: ImageModel, denoiser: StyledDenoiser, styles: Sequence[str], null_label: int | None
) -> None:
    """Write a student into a folder: the base's pipeline with another denoiser, and its styles."""
    from safetensors.torch import save_file

    own = model.folder
    assert own.component is not None
    for name, file in own.others():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(file, folder / name)
    denoiser.denoiser.save_pretrained(folder / own.component, safe_serialization=True)
    place = folder / STYLES_FOLDER
    place.mkdir()
    save_file({n: t.detach().cpu().contiguous() for n, t in denoiser.styles.state_dict().items()}, place / WEIGHTS)
    said = {"version": VERSION, "styles": list(styles), "null_label": null_label}
    (place / STYLES).write_text(json.dumps(said, indent=1) + "\n", encoding="utf-8")


def read_styles(folder: Path) -> tuple[tuple[str, ...], int | None]:
    """Names of a student's styles, and the class that stands for none.

    Raises:
        SourceError: the folder is no student's.
    """
    said = read_object(folder / STYLES_FOLDER, STYLES)
    names = said.get("styles")
    if not isinstance(names, list) or not names or not all(isinstance(n, str) for n in names):
        raise SourceError(
            f"{folder}: has no {STYLES_FOLDER}/{STYLES}; expected the model folder of a fusion of image models"
        )
    if said.get("version") != VERSION:
        raise SourceError(f"{folder / STYLES_FOLDER / STYLES}: version {said.get('version')}; expected {VERSION}")
    null = said.get("null_label")
    return tuple(names), null if isinstance(null, int) else None


def load_styles(folder: Path, denoiser: Any) -> Styles:
    """A student's styles.

    Raises:
        SourceError: they cannot be read, or do not fit its denoiser.
    """
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    file = folder / STYLES_FOLDER / WEIGHTS
    names, _ = read_styles(folder)
    try:
        tensors = load_file(file)
        found = Styles(len(names), tensors["vectors"].shape[1], time_width(denoiser))
        found.load_state_dict(tensors)
    except (OSError, SafetensorError, KeyError, IndexError, RuntimeError) as e:
        raise SourceError(f"{file}: cannot be used: {' '.join(str(e).split())[:200]}") from None
    return found


def to_image(tensor: Tensor) -> Any:
    """A PIL picture of a tensor in [-1, 1], [channels, height, width]."""
    from PIL import Image

    pixels = ((tensor.clamp(-1, 1) + 1) * 127.5).round().to(torch.uint8).permute(1, 2, 0).numpy()
    return Image.fromarray(pixels.squeeze(-1) if pixels.shape[-1] == 1 else pixels)


def weights_of(number: int, count: int) -> Tensor:
    """Weights that mean one style, [count]."""
    return one_hot([number], count)[0]
