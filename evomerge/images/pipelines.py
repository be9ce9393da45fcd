"""Diffusion models on disk: what must be alike of a base and its teachers, and how they are loaded."""

from __future__ import annotations

import hashlib
import inspect
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from evomerge.arguments import describe
from evomerge.errors import SourceError, first_line
from evomerge.images.config import ImageFusionError
from evomerge.images.noise import why_not
from evomerge.sources import file_hash
from evomerge.sources.diffusion import DENOISERS, ENCODER, SCHEDULER, DiffusionFolder, diffusion_folder
from evomerge.sources.noise import differing_noise

# Of the encoder between pictures and latents.
_LATENT = ("latent_channels", "scaling_factor", "shift_factor", "block_out_channels", "in_channels")
_ENCODER_CLASS = "AutoencoderKL"
# What other pipelines call an encoder of theirs.
OTHER_ENCODERS = ("vqvae", "movq", "vqgan")
# Of these a base's own is used, whatever the teachers have.
SHARED = ("text_encoder", ENCODER)
# Settings of training and of arithmetic: denoisers that differ in them say the same.
_NO_MATTER = ("dropout", "upcast_attention")
# What a denoiser is told beside noise, time and prompt: sizes (SDXL), pictures, classes in other forms.
_TOLD_MORE = ("addition_embed_type", "encoder_hid_dim_type", "class_embed_type", "time_cond_proj_dim")
# Where a student's styles lie in its folder.
STYLES_FOLDER = "styles"
# How messages call what decides the size of latents.
_SIZES = ("sample_size", "in_channels", "out_channels", "patch_size")
_SHOWN = 6


@dataclass(frozen=True)
class ImageModel:
    """A pipeline on disk, known by its configurations.

    Attributes:
        what: How messages call it ("teachers.0 (models/warm)").
        config: The denoiser's configuration, with diffusers' defaults for what its file leaves out.
        noise: What its scheduler says of noise.
        latents: What its encoder says of latents; empty where it works on pictures.
    """

    what: str
    folder: DiffusionFolder
    config: Mapping[str, Any]
    noise: Mapping[str, Any]
    latents: Mapping[str, Any]

    @property
    def architecture(self) -> str:
        """Class of the denoiser."""
        return str(self.config.get("_class_name"))

    def content_hash(self) -> str:
        """SHA-256 (hex) of the denoiser's weights and configuration, and of everything beside them, styles included."""
        files = {f"denoiser/{f.name}": f for f in sorted(self.folder.denoiser.iterdir()) if _decides(f)}
        files |= {name: f for name, f in self.folder.others() if _decides(f)}
        styles = self.folder.root / STYLES_FOLDER
        if styles.is_dir():  # no component of the pipeline
            files |= {f"{STYLES_FOLDER}/{f.name}": f for f in sorted(styles.iterdir()) if _decides(f)}
        lines = [f"{name} {file_hash(file)}" for name, file in files.items()]
        return hashlib.sha256("\n".join(lines).encode()).hexdigest()

    def unlike(self, other: ImageModel) -> tuple[str, ...]:
        """Components that a student takes from one model alone, and whose weights the other has others of.

        Raises:
            SourceError: a file cannot be read.
        """
        found = []
        for component in SHARED:
            if self.folder.has(component) and other.folder.has(component):
                a, b = (_weights(m.folder, component) for m in (self, other))
                if not (a <= b or b <= a):  # one of them may have a copy in another type besides
                    found.append(component)
        return tuple(found)


def _weights(folder: DiffusionFolder, component: str) -> set[str]:
    """Hashes of a component's weights, whatever their files are called."""
    return {file_hash(f) for f in (folder.root / component).iterdir() if f.suffix == ".safetensors"}


def _decides(file: Path) -> bool:
    return file.is_file() and file.suffix in (".json", ".safetensors", ".txt", ".model")


def open_model(path: Path, what: str) -> ImageModel:
    """Read the configurations of a pipeline.

    Args:
        what: How messages call it.

    Raises:
        ImageFusionError: it is no pipeline, or its denoiser is of a class that is not known here.
    """
    try:
        folder = diffusion_folder(path)
        if folder.component is None:
            raise SourceError(f"{path}: a denoiser alone; expected a pipeline, which has the scheduler too")
        if not folder.has(SCHEDULER):
            raise SourceError(f"{path}: its pipeline has no scheduler")
        config = _completed(folder.config(folder.component))
        noise = folder.noise
        latents = _completed(folder.latents)
        for _ in folder.others():  # what a student's pipeline is copied from
            pass
    except SourceError as e:
        raise ImageFusionError(f"{what}: {e}") from None
    if config.get("_class_name") not in DENOISERS:
        raise ImageFusionError(
            f"{what}: its denoiser is a {config.get('_class_name')}; expected one of {', '.join(DENOISERS)}"
        )
    untaught = why_not(noise)
    if untaught is not None:
        raise ImageFusionError(
            f"{what}: its scheduler has {untaught}, by which a student cannot be taught yet; merges can have it"
        )
    if config.get("sample_size") is None:
        raise ImageFusionError(
            f"{what}: its denoiser's config.json has no sample_size; give it there, in pixels of a latent"
        )
    other = next((name for name in OTHER_ENCODERS if folder.has(name)), None)
    if other is not None or (latents and latents.get("_class_name") != _ENCODER_CLASS):
        found = other or f"{ENCODER} is a {latents.get('_class_name')}"
        raise ImageFusionError(
            f"{what}: its pictures are encoded in another way ({found}; expected {ENCODER}, an {_ENCODER_CLASS}), "
            "which a student cannot have yet; merges can"
        )
    more = next((k for k in _TOLD_MORE if config.get(k) is not None), None)
    if more is None and config["_class_name"] == "UNet2DConditionModel" and config.get("num_class_embeds") is not None:
        more = "num_class_embeds"
    if more is not None:
        raise ImageFusionError(
            f"{what}: its denoiser is told more than a prompt ({more} = {describe(config[more])}), which a student "
            "cannot be yet; merges can have it"
        )
    if latents and config.get("in_channels") != latents.get("latent_channels"):
        raise ImageFusionError(
            f"{what}: its denoiser takes {config.get('in_channels')} channels, and latents have "
            f"{latents.get('latent_channels')}: it is told a picture too (inpainting), which a student cannot be yet"
        )
    if config.get("timestep_post_act") is not None:
        raise ImageFusionError(
            f"{what}: its time embedding ends in an activation (timestep_post_act), which leaves no place for a style"
        )
    return ImageModel(what, folder, config, noise, {k: latents[k] for k in _LATENT if k in latents})


def _completed(config: Mapping[str, Any]) -> dict[str, Any]:
    """A configuration with diffusers' defaults for what its file, of an older diffusers perhaps, leaves out."""
    import diffusers

    if not config.get("_class_name"):
        return dict(config)
    made_by = getattr(diffusers, str(config["_class_name"]), None)
    known = inspect.signature(made_by.__init__).parameters.values() if made_by is not None else ()
    defaults = {p.name: p.default for p in known if p.default is not p.empty}
    return {k: list(v) if isinstance(v, tuple) else v for k, v in defaults.items()} | dict(config)


def check_alike(first: ImageModel, others: Sequence[ImageModel]) -> None:
    """Check that teachers can teach one student: the same scheduler's noise, latent size and architecture.

    Raises:
        ImageFusionError: everything that differs, a line for each teacher.
    """
    problems = []
    for other in others:
        different = list(_differences(first, other))
        if different:
            shown = "; ".join(different[:_SHOWN])
            more = f"; and {len(different) - _SHOWN} more" if len(different) > _SHOWN else ""
            problems.append(f"{other.what}: does not fit {first.what}: {shown}{more}")
    if problems:
        raise ImageFusionError("\n".join(problems))


def _differences(first: ImageModel, other: ImageModel) -> Iterator[str]:
    """What differs, in words: the scheduler, latents, then the architecture."""
    yield from differing_noise(first.noise, other.noise)
    for key in _LATENT:
        if first.latents.get(key) != other.latents.get(key):
            yield f"vae: {key} {describe(other.latents.get(key))} against {describe(first.latents.get(key))}"
    if first.architecture != other.architecture:
        yield f"architecture {other.architecture} against {first.architecture}"
        return
    keys = [k for k in {**first.config, **other.config} if k[0] != "_" and k not in _NO_MATTER]
    for key in sorted(keys, key=lambda k: (k not in _SIZES, k)):
        a, b = first.config.get(key), other.config.get(key)
        if a != b:
            yield f"{'latent size: ' if key in _SIZES else ''}{key} {describe(b)} against {describe(a)}"


def load_denoiser(folder: DiffusionFolder, device: str = "cpu", dtype: Any = None) -> Any:
    """A pipeline's denoiser (or one that lies alone) in evaluation mode, on a device.

    Args:
        dtype: torch's; None: float32.

    Raises:
        SourceError: diffusers cannot load it, or weights are missing.
    """
    import diffusers

    quiet()
    name = folder.config(folder.component or "").get("_class_name")
    if name not in DENOISERS:
        raise SourceError(f"{folder.denoiser}: a {name}; expected one of {', '.join(DENOISERS)}")
    try:
        found, loaded = getattr(diffusers, name).from_pretrained(
            folder.denoiser, use_safetensors=True, local_files_only=True, output_loading_info=True
        )
    except (OSError, ValueError, RuntimeError, TypeError) as e:
        raise SourceError(f"{folder.denoiser}: diffusers cannot load it: {first_line(e)}") from None
    missing = sorted(loaded["missing_keys"])
    if missing:
        # diffusers would go on with random values.
        raise SourceError(f'{folder.denoiser}: lacks "{missing[0]}" (and {len(missing) - 1} more) of a {name}')
    return found.to(dtype=dtype or torch.float32).to(device).eval().requires_grad_(False)


def load_pipeline(folder: DiffusionFolder, denoiser: Any = None, device: str = "cpu", dtype: Any = None) -> Any:
    """A whole pipeline of diffusers', all of it of one type.

    Args:
        denoiser: Instead of its own.
        dtype: torch's; None: float32.

    Raises:
        SourceError: diffusers cannot load it.
    """
    from diffusers import DiffusionPipeline

    quiet()
    own = {} if denoiser is None or folder.component is None else {folder.component: denoiser}
    try:
        found: Any = DiffusionPipeline.from_pretrained(
            folder.root, use_safetensors=True, local_files_only=True, **own
        )
    except (OSError, ValueError, RuntimeError, TypeError, AttributeError, ImportError) as e:
        raise SourceError(f"{folder.root}: diffusers cannot load it: {first_line(e)}") from None
    found.set_progress_bar_config(disable=True)
    for part in found.components.values():
        if hasattr(part, "requires_grad_"):
            part.to(dtype=dtype or torch.float32).requires_grad_(False)
    return found.to(device)


def quiet() -> None:
    """Leave the terminal to evomerge: no bars and no hints of the libraries."""
    import diffusers
    import transformers

    for library in (diffusers, transformers):
        library.utils.logging.set_verbosity_error()
        library.utils.logging.disable_progress_bar()
