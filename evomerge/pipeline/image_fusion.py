"""A fusion of image models, `kind: fuse_images`: check, distil, write the student, measure it."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

from evomerge.errors import EvoMergeError, InputError
from evomerge.fusion.files import read_json_object, write_json
from evomerge.fusion.workers import Silent, Watcher
from evomerge.images.config import ImageFusionError
from evomerge.images.fused import FusedImages
from evomerge.merging.allocation import out_of_memory
from evomerge.pipeline.image_plan import ImageFusionPlan, plan_images
from evomerge.study import place
from evomerge.study.store import differing

RECORD = "image_fusion.json"
RESULT, MODEL, WORK, MEASURED = "result.json", "model", "work", "measured.json"
GRID = "grid.png"


def fuse_images(file: Path, out: Path, watcher: Watcher | None = None, device: str | None = None) -> FusedImages:
    """Run or resume a fusion of image models.

    Args:
        device: torch's; None: CUDA where there is one.

    Raises:
        InputError: what was given is wrong; nothing was started.
        EvoMergeError: the loss is not finite, or memory ran out.
    """
    watcher = watcher or Silent()
    watcher.say("checking models, pictures and options")
    plan = plan_images(file)
    features = plan.features()
    out = out.resolve()
    if not (out / RECORD).is_file():
        plan.pictures.check()  # once: they are known by their hashes then
    _prepare(plan, out)
    with place.held(out / place.LOCK, out):
        _record(plan, out)
        return _Run(plan, out, watcher, device, features).run()


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
    different = sorted(key for key, _, _ in differing(there, plan.facts))
    if different:
        raise ImageFusionError(
            f"{out}: holds another fusion; give another folder, or undo what differs: {', '.join(different)}"
        )


@contextmanager
def _memory(key: str, value: object, then: str) -> Iterator[None]:
    """Tell which key to lower where memory runs out.

    Raises:
        EvoMergeError: it did.
    """
    try:
        yield
    except (MemoryError, RuntimeError) as e:
        if not out_of_memory(e):
            raise
        raise EvoMergeError(f"{key} = {value}: memory ran out; give a lower number, and {then}") from None


class _Run:
    """One fusion on its way."""

    def __init__(
        self, plan: ImageFusionPlan, out: Path, watcher: Watcher, device: str | None, features: Any
    ) -> None:
        import torch

        self.plan, self.out, self.watcher, self.features = plan, out, watcher, features
        self.config = plan.config
        self.device = device or ("cuda" if torch.cuda.is_available() else "cpu")
        self.began = time.monotonic()

    def run(self) -> FusedImages:
        from evomerge.images.student import StyledPipeline

        model, work = self.out / MODEL, self.out / WORK
        learned = read_json_object(work / RESULT)
        if learned is None or learned.get("key") != self.plan.key or learned.get("content") != _content(model):
            learned = self._learned(model, work)
        student = StyledPipeline.from_pretrained(model, self.device)
        prompts = self._prompts()
        batch = self.config.measure.batch_size
        with _memory("measure.batch_size", batch, "the same command again: the student is trained"):
            distances = self._held(student, prompts)
        return FusedImages(
            config=self.config, out=self.out, model=model, architecture=student.model.architecture,
            told=student.conditions.kind, distances=distances, prompts=prompts, replaced=self.plan.replaced,
            learned=tuple(learned["history"]), training_seconds=learned["seconds"],
            contents={"begins": self.plan.facts["begins"], **self.plan.facts["teachers"]},
            places={"begins": str(self.plan.begins.folder.root),
                    **{n: str(m.folder.root) for n, m in self.plan.teachers.items()}},
            old=self.plan.old, pictures=len(self.plan.pictures), seconds=time.monotonic() - self.began,
        )  # fmt: skip

    def _prompts(self) -> tuple[str | int, ...]:
        from evomerge.images.pictures import asked

        config = self.config.measure
        return config.prompts or asked(self.plan.pictures.prompts, config.images)

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
        given = config.training.per_device_train_batch_size
        with _memory("training.per_device_train_batch_size", given, "another folder"):
            learned = train(lesson, config.training, work, plan.key, config.seed, self.device, self.watcher)
        size = sum(p.numel() * p.element_size() for p in student.parameters())
        with atomic_folder(model, overwrite=True, needed=size, holds="model_index.json") as made:
            write_student(made, plan.begins, student, plan.styles, plan.conditions.null_label)
        result = {
            "key": plan.key, "content": _content(model), "history": list(learned.history), "seconds": learned.seconds,
        }  # fmt: skip
        write_json(work / RESULT, result)
        forget(work)
        return result

    def _held(self, student: Any, prompts: tuple[str | int, ...]) -> Any:
        """Distances and the grid of pictures, as far as they are not there."""
        from evomerge.images.measure import Distances

        config, key = self.config.measure, self.plan.measured_key
        there = read_json_object(self.out / MEASURED)
        if there is None or there.get("key") != key:
            there = {"key": key, "grid": None, **self._measured(student, prompts).to_dict()}
            write_json(self.out / MEASURED, there)
        if there["grid"] != config.grid or not (self.out / GRID).is_file():
            self._draw(student, prompts)
            write_json(self.out / MEASURED, {**there, "grid": config.grid})
        return Distances.read(there)

    def _measured(self, student: Any, prompts: tuple[str | int, ...]) -> Any:
        from evomerge.images.measure import measure

        config, references = self.config.measure, self._references()
        sets = 2 * len(references) + 1 + len(student.styles)
        self.watcher.begin(f"measuring {len(student.styles)} styles", sets * config.images, "pictures")
        try:
            return measure(
                student, references, prompts, config, self.config.seed,
                lambda count: self.watcher.advance(count * config.images), self.features,
            )  # fmt: skip
        finally:
            self.watcher.end()

    def _draw(self, student: Any, prompts: tuple[str | int, ...]) -> None:
        from evomerge.fusion.files import whole
        from evomerge.images.grid import write_grid
        from evomerge.images.measure import Gallery

        config = self.config.measure
        gallery = Gallery(student, prompts, config, self.config.seed)
        with whole(self.out / GRID) as part:
            write_grid(part, gallery, student, self._references(), prompts[: config.grid])

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


def _content(model: Path) -> str | None:
    """Content hash of a student that was written; None where there is none, or no whole one."""
    from evomerge.images.pipelines import open_model

    try:
        return open_model(model, str(model)).content_hash()
    except InputError:
        return None
