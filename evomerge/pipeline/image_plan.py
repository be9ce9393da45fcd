"""What a fusion of image models, `kind: fuse_images`, was given, checked as far as it can be before time is spent."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from evomerge.config import load_yaml
from evomerge.errors import InputError, SourceError
from evomerge.functions import load_function
from evomerge.fusion.files import key_of
from evomerge.images.config import KIND, ImageFusionConfig, ImageFusionError, load_image_fusion
from evomerge.images.extra import check_diffusers
from evomerge.images.fused import replaced_lines
from evomerge.sources import file_hash

VERSION = 2
# What changes nothing of the student or of what is measured of it, or is looked at by content.
_LOOSE: dict[str, Any] = {
    "name": True, "base": True, "student": True, "teachers": {"__all__": {"model"}}, "pictures": {"path": True},
    "training": {"save_steps"},
}  # fmt: skip


def is_image_fusion(file: Path) -> bool:
    """Whether a fusion's file is of image models."""
    try:
        data = load_yaml(file).data
    except InputError:
        return False  # whoever reads it says what is wrong
    return isinstance(data, dict) and data.get("kind") == KIND


@dataclass(frozen=True)
class ImageFusionPlan:
    """A fusion of image models, checked as far as it can be before time is spent. See `plan_images`."""

    file: Path
    config: ImageFusionConfig
    begins: Any
    teachers: Mapping[str, Any]
    old: tuple[str, ...]
    pictures: Any
    conditions: Any

    @property
    def styles(self) -> tuple[str, ...]:
        """All styles that the student will have."""
        return (*self.old, *self.config.styles)

    @cached_property
    def facts(self) -> dict[str, Any]:
        """What decides the student."""
        return {
            "version": VERSION,
            "begins": self.begins.content_hash(),
            "teachers": {name: model.content_hash() for name, model in self.teachers.items()},
            "old": list(self.old),
            "pictures": self.pictures.content_hash(),
            "config": self.config.model_dump(mode="json", exclude={**_LOOSE, "measure": True}),
        }

    @property
    def key(self) -> str:
        """Short name of that."""
        return key_of(self.facts)

    @property
    def measured_key(self) -> str:
        """Short name of what decides what is measured."""
        said = self.config.measure.model_dump(mode="json", exclude={"grid"})
        own = self.feature_file
        return key_of({"student": self.key, "measure": said, "features": file_hash(own[0]) if own else None})

    @property
    def feature_file(self) -> tuple[Path, str] | None:
        """File and name of the function by which pictures are compared; None where it is none of the user's."""
        if self.config.measure.features is None:
            return None
        file, _, name = self.config.measure.features.rpartition(":")
        return self.file.parent / Path(file).expanduser(), name

    @cached_property
    def replaced(self) -> dict[str, tuple[str, ...]]:
        """Of teachers by their styles, components of their own that the base's stand for; those with any.

        Raises:
            SourceError: a file cannot be read.
        """
        found = {name: model.unlike(self.begins) for name, model in self.teachers.items()}
        return {name: components for name, components in found.items() if components}

    def features(self) -> Any:
        """What pictures are compared by, tried on two of noise; None for what is usual.

        Raises:
            InputError: the user's file or function fails, or gives no features.
        """
        import torch

        from evomerge.images.frechet import own_features

        if self.feature_file is None:
            return None
        where = f"{self.file}: measure.features = {self.config.measure.features}"
        found = own_features(load_function(*self.feature_file, where, ImageFusionError), where)
        found(torch.randn(2, self.pictures.channels, *self.pictures.size, generator=torch.Generator()).clamp(-1, 1))
        return found

    def lines(self) -> list[str]:
        """What it will do, in words."""
        config, training = self.config, self.config.training
        kept = f", keeping {', '.join(self.old)}" if self.old else ""
        size = " x ".join(map(str, self.pictures.size))
        return [
            f"one {self.begins.architecture} learns {', '.join(config.styles)}{kept}; told: {self.conditions.kind}",
            f"{training.max_steps:,} steps of {training.per_device_train_batch_size} of {len(self.pictures):,} "
            f"pictures ({size}); then {config.measure.images:,} pictures of each style and teacher",
            *replaced_lines(self.replaced),
        ]


def plan_images(file: Path) -> ImageFusionPlan:
    """Check a fusion of image models.

    Raises:
        InputError: everything that is wrong with it; no weights were read.
    """
    check_diffusers(f"{file}: kind: {KIND}")
    config = load_image_fusion(file)
    from evomerge.images.conditions import READERS, Told
    from evomerge.images.pictures import read_pictures
    from evomerge.images.pipelines import check_alike, open_model
    from evomerge.images.sampling import picture_size
    from evomerge.images.student import read_styles

    root = file.parent
    problems: list[str] = []
    found: dict[str, Any] = {}
    key = "student" if config.student is not None else "base"
    named = {key: config.student or config.base or ""}
    named |= {f"teachers.{i}": t.model for i, t in enumerate(config.teachers)}
    for where, model in named.items():
        try:
            found[where] = open_model(root / Path(model).expanduser(), f"{file}: {where} ({model})")
        except ImageFusionError as e:
            problems.append(str(e))
    if problems:
        raise ImageFusionError("\n".join(problems))
    begins = found.pop(key)
    check_alike(begins, list(found.values()))
    old: tuple[str, ...] = ()
    null_label = config.pictures.null_label
    if config.student is not None:
        try:
            old, kept_null = read_styles(begins.folder.root)
        except SourceError as e:
            raise ImageFusionError(f"{file}: student: {e}") from None
        null_label = kept_null if null_label is None else null_label
        twice = next((s for s in config.styles if s in old), None)
        if twice is not None:
            raise ImageFusionError(
                f'{file}: teachers: the student has a style "{twice}" already; name another: {{model: ..., style: ...}}'
            )
    channels = int(begins.latents.get("in_channels", 3) if begins.latents else begins.config["in_channels"])
    if channels not in (1, 3):
        raise ImageFusionError(
            f"{file}: {key}: works on {channels} channels, and has no vae that makes them of pictures"
        )
    size = picture_size(begins.config, begins.latents)
    conditions = Told(begins.config, null_label)
    missing = [name for name in READERS if not begins.folder.has(name)]
    if conditions.kind == "text" and missing:
        raise ImageFusionError(f"{begins.what}: its pipeline has no {' and no '.join(missing)}, which a prompt needs")
    pictures = read_pictures(config.pictures, root, conditions.kind, size, channels, f"{file}: pictures")
    conditions.check(pictures.prompts, f"{file}: pictures: {config.pictures.path}")
    conditions.check(config.measure.prompts, f"{file}: measure.prompts")
    dropped = config.training.prompt_drop > 0 or config.measure.guidance_scale > 1
    if conditions.kind == "class" and dropped and conditions.null in pictures.prompts:
        raise ImageFusionError(
            f"{file}: pictures.null_label: {conditions.null} is the class of a picture; expected one that none has. "
            "Models without a class to spare: training.prompt_drop: 0, and no measure.guidance_scale"
        )
    teachers = dict(zip(config.styles, found.values(), strict=True))
    plan = ImageFusionPlan(file, config, begins, teachers, old, pictures, conditions)
    if plan.feature_file is not None and not plan.feature_file[0].is_file():
        raise ImageFusionError(
            f"{file}: measure.features: {plan.feature_file[0]}: no such file; expected FILE.py:FUNCTION"
        )
    return plan


def check_here(workers: int | None, address: str | None, gpus: float | None = None) -> None:
    """Refuse to send the work elsewhere.

    Raises:
        InputError: workers, a share of GPUs or a cluster are asked for.
    """
    options = {"--workers": workers or None, "--address": address or None, "--gpus-per-worker": gpus}
    given = next((f"{name} {value}" for name, value in options.items() if value is not None), None)
    if given is not None:
        raise InputError(f"{given}: a fusion of image models runs in this process alone; leave it out")
