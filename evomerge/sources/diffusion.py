"""The folder of a diffusion model, as diffusers saves it: a denoiser (UNet, DiT) alone, or a pipeline that holds one.

Read as JSON alone; diffusers is not needed for it.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from evomerge.errors import SourceError
from evomerge.sources.denoisers import SETTINGS
from evomerge.sources.files import DENOISER_INDEX, DENOISER_SINGLE, PICKLES, read_object, small_file
from evomerge.sources.noise import noise_of

PIPELINE = "model_index.json"
CONFIG = "config.json"
# What pipelines call their denoiser.
COMPONENTS = ("unet", "transformer")
DENOISERS = tuple(SETTINGS)
SCHEDULER, SCHEDULER_CONFIG, ENCODER = "scheduler", "scheduler_config.json", "vae"
# Where classes of components may come from; the others are modules of diffusers' pipelines that hold a few more. From
# anywhere else diffusers would import what a folder names, or run a file that lies in it.
_LIBRARIES = (
    "diffusers", "transformers", "stable_diffusion", "stable_diffusion_safe", "latent_diffusion", "alt_diffusion",
    "deepfloyd_if", "paint_by_example", "unclip",
)  # fmt: skip
# Beside the weights, what a pipeline's components consist of. Nothing else is copied: a pickle could run code.
_COPIED = (".json", ".txt", ".model", ".safetensors", ".jinja")
# Components that have a configuration of that name, and no weights.
_WEIGHTLESS = ("Tokenizer", "TokenizerFast", "Processor", "ProcessorFast", "Extractor", "Scheduler")
_LICENCES = ("license", "licence", "copying", "notice")


@dataclass(frozen=True)
class DiffusionFolder:
    """Where the parts of a diffusion model lie.

    Attributes:
        root: The folder that was named.
        component: What the pipeline calls its denoiser; None where the folder is a denoiser alone.
        index: model_index.json as it is; empty where there is none.
    """

    root: Path
    component: str | None
    index: Mapping[str, Any]

    @classmethod
    def at(cls, root: Path) -> DiffusionFolder | None:
        """The model that lies in a folder, or None where it is none of diffusers'.

        Raises:
            SourceError: a pipeline without a denoiser that is known here, or one that brings code of its own.
        """
        if (root / PIPELINE).is_file():
            index = read_object(root, PIPELINE)
            if isinstance(index.get("_class_name"), list):
                raise SourceError(f"{root / PIPELINE}: refused: a pipeline with code of its own, which would be run")
            found = [name for name in COMPONENTS if isinstance(index.get(name), list)]
            if not found:
                named = ", ".join(n for n in index if n[0] != "_")[:80]
                raise SourceError(
                    f"{root / PIPELINE}: names no denoiser ({' or '.join(COMPONENTS)}); it has {named or 'nothing'}"
                )
            for name, value in index.items():
                _check_component(root, name, value)
            return cls(root, found[0], index)
        if (root / DENOISER_SINGLE).is_file() or (root / DENOISER_INDEX).is_file():
            return cls(root, None, {})
        return None

    @property
    def denoiser(self) -> Path:
        """The folder of the denoiser."""
        return self.root if self.component is None else self.root / self.component

    def config(self, component: str, name: str = CONFIG) -> dict[str, Any]:
        """The configuration of a component; {} where it has none.

        Raises:
            SourceError: it cannot be read.
        """
        return read_object(self.root / component, name)

    @property
    def noise(self) -> dict[str, Any]:
        """What its scheduler says of noise (see `noise_of`); {} where it has none.

        Raises:
            SourceError: it cannot be read.
        """
        if not self.has(SCHEDULER):
            return {}
        named = {"_class_name": self.index[SCHEDULER][-1]}
        return noise_of(named | self.config(SCHEDULER, SCHEDULER_CONFIG))

    @property
    def latents(self) -> dict[str, Any]:
        """The configuration of what encodes pictures; {} where it works on pictures themselves.

        Raises:
            SourceError: it cannot be read.
        """
        return self.config(ENCODER) if self.has(ENCODER) else {}

    def has(self, component: str) -> bool:
        """Whether the pipeline has a component, and not a place for one alone."""
        found = self.index.get(component)
        return isinstance(found, list) and any(v is not None for v in found)

    def others(self) -> Iterator[tuple[str, Path]]:
        """Everything of a pipeline but its denoiser: each file's path within the pipeline, and where it lies.

        Raises:
            SourceError: a component that is missing, has a pickle alone, or is a link that leads out of the folder.
        """
        if self.component is None:
            return
        for file in sorted(self.root.iterdir()):
            wanted = file.name == PIPELINE or file.name.lower().split(".")[0] in _LICENCES
            if wanted and (found := small_file(self.root, file.name)) is not None:
                yield file.name, found
        for component in self.index:
            if component[0] == "_" or component == self.component or not self.has(component):
                continue
            folder = self.root / component
            if not folder.is_dir():
                raise SourceError(f"{self.root / PIPELINE}: names {component}, which is not there; download it again")
            names = sorted(f.name for f in folder.iterdir() if f.is_file() and f.suffix in _COPIED)
            if not names:
                raise SourceError(f"{folder}: holds no file that can be copied ({', '.join(_COPIED)})")
            self._check_weights(component, names)
            for name in names:
                if (found := small_file(folder, name)) is not None:
                    yield f"{component}/{name}", found

    def _check_weights(self, component: str, names: Collection[str]) -> None:
        """Refuse a component whose weights cannot be copied: a pipeline without them could not be loaded."""
        if any(name.endswith(".safetensors") for name in names):
            return
        folder = self.root / component
        pickle = next((f.name for f in sorted(folder.iterdir()) if f.suffix in PICKLES), None)
        if pickle is not None:
            raise SourceError(
                f"{folder}: has only {pickle}, a pickle, which can run code when it is read: refused; save the "
                "pipeline with safe_serialization, where you trust it"
            )
        if CONFIG in names and not str(self.index[component][-1]).endswith(_WEIGHTLESS):
            raise SourceError(f"{folder}: holds no weights (*.safetensors); download it again")


def _check_component(root: Path, name: str, value: Any) -> None:
    """Refuse a component that would run code which is neither diffusers' nor transformers'.

    Raises:
        SourceError: with the component's name.
    """
    if name[:1] == "_" or not isinstance(value, list):
        return
    if "/" in name or "\\" in name or name in ("", ".", ".."):
        raise SourceError(f'{root / PIPELINE}: refused: "{name}" is not the name of a folder in it')
    library = value[0] if value else None
    if library is None:
        return
    own = (root / name / f"{library}.py").is_file()
    if own or any(not isinstance(v, str) or "/" in v for v in value):
        raise SourceError(f'{root / PIPELINE}: refused: "{name}" has code of its own, which would be run')
    if library not in _LIBRARIES:
        raise SourceError(
            f'{root / PIPELINE}: refused: "{name}" is of "{library}", which would be imported; expected a class of '
            "diffusers or transformers"
        )


def is_diffusion(folder: Path) -> bool:
    """Whether a folder looks like a diffusion model's, of whatever kind."""
    return any((folder / name).is_file() for name in (PIPELINE, DENOISER_SINGLE, DENOISER_INDEX))


def holds_model(folder: Path) -> bool:
    """Whether a folder holds a whole checkpoint that evomerge wrote: what it is known by is written last."""
    if (folder / PIPELINE).is_file():
        return any(folder.glob("*/diffusion_pytorch_model*.safetensors"))
    return (folder / CONFIG).is_file() and any(folder.glob("*.safetensors"))


def diffusion_folder(root: Path) -> DiffusionFolder:
    """The diffusion model of a folder.

    Raises:
        SourceError: there is none.
    """
    if not root.is_dir():
        raise SourceError(f"{root}: no such folder; expected one that diffusers saved ({PIPELINE})")
    found = DiffusionFolder.at(root)
    if found is None:
        raise SourceError(f"{root}: has no {PIPELINE} and no {DENOISER_SINGLE}; expected a folder that diffusers saved")
    return found
