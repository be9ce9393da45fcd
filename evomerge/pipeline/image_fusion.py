"""A fusion of image models, `kind: fuse_images`: check, distil, write the student, measure it."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cached_property, partial
from pathlib import Path
from typing import Any

from evomerge.config import load_yaml
from evomerge.errors import InputError, SourceError
from evomerge.fusion.files import key_of, read_json_object, write_json
from evomerge.fusion.workers import Silent, Watcher
from evomerge.images.config import KIND, ImageFusionConfig, ImageFusionError, load_image_fusion
from evomerge.images.extra import check_diffusers
from evomerge.images.fused import FusedImages
from evomerge.study import place

RECORD = "image_fusion.json"
RESULT, MODEL, WORK, MEASURED = "result.json", "model", "work", "measured.json"
VERSION = 1
# What changes nothing of the student or of what is measured of it, or is looked at by content.
_LOOSE: dict[str, Any] = {
    "name": True, "base": True, "student": True, "teachers": {"__all__": {"model"}}, "pictures": {"path": True},
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
        return key_of({"student": self.key, "measure": self.config.measure.model_dump(mode="json")})

    def lines(self) -> list[str]:
        """What it will do, in words."""
        config, training = self.config, self.config.training
        kept = f", keeping {', '.join(self.old)}" if self.old else ""
        size = " x ".join(map(str, self.pictures.size))
        return [
            f"one {self.begins.architecture} learns {', '.join(config.styles)}{kept}; told: {self.conditions.kind}",
            f"{training.max_steps:,} steps of {training.per_device_train_batch_size} of {len(self.pictures):,} "
            f"pictures ({size}); then {config.measure.images:,} pictures of each style and teacher",
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
            found[where] = open_model(root / model, f"{file}: {where} ({model})")
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
            old, kept_null = read_styles(root / config.student)
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
    if conditions.null in pictures.prompts and conditions.kind == "class":
        raise ImageFusionError(
            f"{file}: pictures.null_label: {conditions.null} is the class of a picture; expected one that none has"
        )
    teachers = dict(zip(config.styles, found.values(), strict=True))
    return ImageFusionPlan(file, config, begins, teachers, old, pictures, conditions)


def check_here(workers: int | None, address: str | None) -> None:
    """Refuse to send the work elsewhere.

    Raises:
        InputError: workers or a cluster are asked for.
    """
    if workers or address:
        option = f"--workers {workers}" if workers else f"--address {address}"
        raise InputError(f"{option}: a fusion of image models runs in this process alone; leave it out")


def fuse_images(file: Path, out: Path, watcher: Watcher | None = None, device: str | None = None) -> FusedImages:
    """Run or resume a fusion of image models.

    Args:
        device: torch's; None: CUDA where there is one.

    Raises:
        InputError: what was given is wrong; nothing was started.
        EvoMergeError: the loss is not finite.
    """
    watcher = watcher or Silent()
    watcher.say("checking models, pictures and options")
    plan = plan_images(file)
    out = out.resolve()
    _prepare(plan, out)
    with place.held(out / place.LOCK, out):
        _record(plan, out)
        return _Run(plan, out, watcher, device).run()


def _prepare(plan: ImageFusionPlan, out: Path) -> None:
    """Make the output folder, after checking that it holds nothing of somebody else's."""
    if out.exists() and not out.is_dir():
        raise InputError(f"{out}: is a file, expected a folder to write to")
    for model in (plan.begins, *plan.teachers.values()):
        root = model.folder.root.resolve()
        if root.is_relative_to(out) or out.is_relative_to(root):
            raise InputError(f"{out}: holds the model {model.folder.root}, or lies in it; give another folder")
    foreign = sorted(f.name for f in out.iterdir() if f.name[0] != ".") if out.is_dir() else []
    if foreign and not (out / RECORD).exists():
        shown = ", ".join(foreign[:3])
        raise InputError(f"{out}: holds {shown} already, and no fusion wrote them; give another folder")
    try:
        out.mkdir(parents=True, exist_ok=True)
    except OSError as e:
        raise InputError(f"{out}: cannot be written ({e.strerror})") from None


def _record(plan: ImageFusionPlan, out: Path) -> None:
    """Note in the output folder which fusion it belongs to."""
    there = read_json_object(out / RECORD)
    if there is None:
        write_json(out / RECORD, plan.facts)
        return
    different = [name for name in plan.facts if there.get(name) != plan.facts[name]]
    if different:
        raise ImageFusionError(
            f"{out}: holds another fusion; give another folder, or undo what differs: {', '.join(different)}"
        )


class _Run:
    """One fusion on its way."""

    def __init__(self, plan: ImageFusionPlan, out: Path, watcher: Watcher, device: str | None) -> None:
        import torch

        self.plan, self.out, self.watcher = plan, out, watcher
        self.config = plan.config
        self.device = device or ("cuda" if torch.cuda.is_available() else "cpu")
        self.began = time.monotonic()

    def run(self) -> FusedImages:
        from evomerge.images.measure import Distances
        from evomerge.images.student import StyledPipeline

        model, work = self.out / MODEL, self.out / WORK
        learned = read_json_object(work / RESULT)
        if learned is None or learned["key"] != self.plan.key or not (model / "model_index.json").is_file():
            learned = self._learned(model, work)
        student = StyledPipeline.from_pretrained(model, self.device)
        prompts = self._prompts()
        measured = read_json_object(self.out / MEASURED)
        if measured is None or measured["key"] != self.plan.measured_key or not (self.out / "grid.png").is_file():
            distances = self._measured(student, prompts)
            write_json(self.out / MEASURED, {"key": self.plan.measured_key, **distances.to_dict()})
        else:
            distances = Distances.read(measured)
        return FusedImages(
            config=self.config, out=self.out, model=model, architecture=student.model.architecture,
            told=student.conditions.kind, distances=distances, prompts=prompts, learned=tuple(learned["history"]),
            training_seconds=learned["seconds"],
            contents={"begins": self.plan.facts["begins"], **self.plan.facts["teachers"]},
            places={"begins": str(self.plan.begins.folder.root),
                    **{n: str(m.folder.root) for n, m in self.plan.teachers.items()}},
            old=self.plan.old, pictures=len(self.plan.pictures), seconds=time.monotonic() - self.began,
        )  # fmt: skip

    def _prompts(self) -> tuple[str | int, ...]:
        from evomerge.images.pictures import asked

        config = self.config.measure
        return config.prompts or asked(self.plan.pictures.prompts, config.grid)

    def _learned(self, model: Path, work: Path) -> dict[str, Any]:
        """Distil, and write the student."""
        import torch

        from evomerge.fusion.training.run import forget
        from evomerge.images.conditions import Conditions
        from evomerge.images.pipelines import load_denoiser, load_pipeline
        from evomerge.images.sampling import seed_of
        from evomerge.images.student import load_styles, write_student
        from evomerge.images.styles import StyledDenoiser, Styles, time_width
        from evomerge.images.training import Lesson, train
        from evomerge.merging.checkpoint import atomic_folder

        plan, config, folder = self.plan, self.config, self.plan.begins.folder
        generator = torch.Generator().manual_seed(seed_of(config.seed, "styles", *plan.styles))
        denoiser = load_denoiser(folder)
        old = None
        if plan.old:
            styles = load_styles(folder.root, denoiser)
            old = StyledDenoiser(load_denoiser(folder), styles).requires_grad_(False)
            styles = styles.extended(len(config.styles), generator)
        else:
            styles = Styles(len(config.styles), config.training.style_dim, time_width(denoiser), generator)
        student = StyledDenoiser(denoiser, styles)
        pipeline = load_pipeline(folder, denoiser, self.device)
        numbers = {name: len(plan.old) + i for i, name in enumerate(config.styles)}
        lesson = Lesson(
            student, {numbers[n]: load_denoiser(m.folder) for n, m in plan.teachers.items()}, old,
            tuple(range(len(plan.old))), pipeline, Conditions(plan.begins.config, pipeline, plan.conditions.null_label),
            plan.pictures,
        )  # fmt: skip
        learned = train(lesson, config.training, work, plan.key, config.seed, self.device, self.watcher)
        size = sum(p.numel() * p.element_size() for p in student.parameters())
        with atomic_folder(model, overwrite=True, needed=size, holds="model_index.json") as made:
            write_student(made, plan.begins, student, plan.styles, plan.conditions.null_label)
        result = {"key": plan.key, "history": list(learned.history), "seconds": learned.seconds}
        write_json(work / RESULT, result)
        forget(work)
        return result

    def _measured(self, student: Any, prompts: tuple[str | int, ...]) -> Any:
        """Distances, and the grid of pictures."""
        from evomerge.fusion.files import whole
        from evomerge.images.grid import write_grid
        from evomerge.images.measure import Gallery, measure

        config = self.config.measure
        references = self._references()
        sets = 2 * len(references) + 1 + len(student.styles)
        self.watcher.begin(f"measuring {len(student.styles)} styles", sets * config.images, "pictures")
        try:
            distances = measure(
                student, references, prompts, config, self.config.seed,
                lambda count: self.watcher.advance(count * config.images),
            )  # fmt: skip
        finally:
            self.watcher.end()
        gallery = Gallery(student, prompts, config, self.config.seed)
        with whole(self.out / "grid.png") as part:
            write_grid(part, gallery, student, references, prompts[: config.grid])
        return distances

    def _references(self) -> dict[str, Callable[[], Any]]:
        """What loads the plain denoiser that each style is of: a teacher, or the student of before in that style."""
        from evomerge.images.pipelines import load_denoiser
        from evomerge.images.student import StyledPipeline, weights_of

        folder = self.plan.begins.folder

        def before(number: int) -> Any:
            old = StyledPipeline.from_pretrained(folder.root, "cpu")
            return old.denoiser.folded(weights_of(number, len(old.styles)))

        kept = {name: partial(before, i) for i, name in enumerate(self.plan.old)}
        return kept | {name: partial(load_denoiser, model.folder) for name, model in self.plan.teachers.items()}
