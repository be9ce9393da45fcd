"""Distillation of several image models into one student (DMM, arXiv 2504.12364), by transformers' Trainer.

    L = mean_i |e(x_t, t, c, i; th) - e(x_t, t, c; th_i)|^2 + w sum_b mean_i |f_b(.., i; th) - f_b(..; th_i)|^2
        + mu sum_old mean |e(x_t, t, c, i; th) - e(x_t, t, c, i; th_old)|^2

with x_t noisy pictures, c the prompt (left out for student and teacher alike, or for neither), i the style, f_b the
outputs of block b. The published adversarial term is left out: its code was not released. Where a denoiser says a
variance behind the noise, e is the noise alone; the variance is learned beside it, with a small weight.
"""

from __future__ import annotations

import math
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import PrinterCallback, Trainer, TrainerCallback, TrainingArguments, set_seed

from evomerge.errors import EvoMergeError
from evomerge.fusion.alone import alone
from evomerge.fusion.files import read_json_object, write_json
from evomerge.fusion.training.run import PROGRESS, begin, last_checkpoint
from evomerge.fusion.workers import Watcher
from evomerge.images.conditions import Conditions
from evomerge.images.config import StudentTraining
from evomerge.images.noise import training_noise
from evomerge.images.pictures import Pictures
from evomerge.images.sampling import encoded, seed_of
from evomerge.images.styles import BlockOutputs, StyledDenoiser, one_hot

# Of the variance that a denoiser says behind the noise, beside 1 for the noise, as Improved DDPM weighs its bound.
VARIANCE = 0.001


@dataclass(frozen=True)
class Lesson:
    """What a student learns from.

    Attributes:
        student: Learns, in place.
        teachers: Plain denoisers, by the number of the style that each teaches.
        old: The student of before; None where there is none.
        old_styles: Numbers of its styles.
        pipeline: Of which the scheduler's betas and the encoder are used.
    """

    student: StyledDenoiser
    teachers: Mapping[int, Any]
    old: StyledDenoiser | None
    old_styles: tuple[int, ...]
    pipeline: Any
    conditions: Conditions
    pictures: Pictures


@dataclass(frozen=True)
class Learned:
    """How a training went.

    Attributes:
        history: Mean losses since the line before: {step, score, features, old, loss}, and the variance's where the
            denoiser says one.
        seconds: Of training, in all runs together.
    """

    history: tuple[Mapping[str, float], ...]
    seconds: float


def train(
    lesson: Lesson, config: StudentTraining, work: Path, key: str, seed: int, device: str, watcher: Watcher
) -> Learned:
    """Train a student in place, from its last checkpoint where there is one.

    Args:
        work: Folder of checkpoints.
        key: Names everything that decides what comes out; checkpoints of another are forgotten.

    Raises:
        EvoMergeError: the loss is not finite, or another process trains there.
    """
    with alone(work):
        begin(work, key)
        set_seed(seed)
        lesson.student.to(device).requires_grad_(True)
        follower = _Follower(work / PROGRESS, watcher)
        trainer = StudentTrainer(
            lesson=lesson, training=config, seed=seed, model=lesson.student, train_dataset=lesson.pictures,
            args=_arguments(config, work, seed, device), data_collator=_collated, callbacks=[follower],
        )  # fmt: skip
        trainer.remove_callback(PrinterCallback)  # it prints on stdout, which holds the result alone
        last = last_checkpoint(work)
        done = int(last.name.rpartition("-")[2]) if last is not None else 0
        watcher.begin(f"training {len(lesson.teachers)} styles", config.max_steps, "steps", done)
        began = time.monotonic()
        try:
            trainer.train(resume_from_checkpoint=str(last) if last is not None else None)
        finally:
            watcher.end()
        lesson.student.requires_grad_(False)
        history = [_line(entry) for entry in trainer.state.log_history if "score" in entry]
        return Learned(tuple(history), follower.seconds + time.monotonic() - began)


def _line(entry: Mapping[str, Any]) -> dict[str, float]:
    return {k: float(entry[k]) for k in ("step", "score", "features", "old", "variance", "loss") if k in entry}


def _arguments(config: StudentTraining, work: Path, seed: int, device: str) -> TrainingArguments:
    own = (
        "max_steps", "per_device_train_batch_size", "learning_rate", "lr_scheduler_type", "warmup_steps",
        "weight_decay", "max_grad_norm", "save_steps",
    )  # fmt: skip
    found = TrainingArguments(
        output_dir=str(work), seed=seed, data_seed=seed, save_strategy="steps", save_total_limit=2, eval_strategy="no",
        logging_strategy="steps",
        logging_steps=config.save_steps,  # so that no line is of a part before and a part after a cut
        logging_nan_inf_filter=False, report_to="none", disable_tqdm=True, remove_unused_columns=False,
        label_names=[], use_cpu=device == "cpu", dataloader_pin_memory=False,
        **{name: getattr(config, name) for name in own},
    )  # fmt: skip
    if device != "cpu":
        found._n_gpu = 1
    return found


def _collated(rows: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    return {"pictures": torch.stack([r["picture"] for r in rows]), "prompts": [r["prompt"] for r in rows]}


class StudentTrainer(Trainer):
    """The Trainer with DMM's loss. What is drawn for a step depends on seed and step alone."""

    def __init__(self, lesson: Lesson, training: StudentTraining, seed: int, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self._lesson, self._training, self._seed = lesson, training, seed
        self._count = len(lesson.teachers) + len(lesson.old_styles)
        self._noise = training_noise(lesson.pipeline.scheduler)
        self._sums: dict[str, float] = {}
        self._steps = 0
        for teacher in lesson.teachers.values():
            teacher.to(self.args.device)
        if lesson.old is not None:
            lesson.old.to(self.args.device)

    def compute_loss(
        self, model: Any, inputs: Mapping[str, Any], return_outputs: bool = False, num_items_in_batch: Any = None
    ) -> Any:
        """The loss of a batch; see `Trainer.compute_loss`."""
        own, config = self._lesson, self._training
        generator = torch.Generator().manual_seed(seed_of(self._seed, "step", self.state.global_step))
        with torch.no_grad():
            clean = encoded(own.pipeline, inputs["pictures"].to(self.args.device))
        new = _Batch.drawn(
            own, self._noise, clean, inputs["prompts"], tuple(own.teachers), config.prompt_drop, generator
        )
        batches = [new]
        if own.old is not None and config.old_weight > 0:
            batches.append(_Batch.drawn(
                own, self._noise, clean, inputs["prompts"], own.old_styles, config.prompt_drop, generator
            ))  # fmt: skip
        student = BlockOutputs(own.student.denoiser) if config.feature_weight > 0 else None
        try:
            told = {k: torch.cat([b.told[k] for b in batches]) for k in new.told}
            noisy, times = (torch.cat([getattr(b, n) for b in batches]) for n in ("noisy", "times"))
            weights = one_hot(torch.cat([b.styles for b in batches]), self._count).to(noisy)
            said = model(noisy, times, weights, **told)
            blocks = [x[: len(clean)] for x in student.take()] if student is not None else []
        finally:
            if student is not None:
                student.__exit__()
        wanted, features = self._taught(new)
        score, variance = _apart(said[: len(clean)], wanted, clean.shape[1])
        zero = score.new_zeros(())
        feature = sum(
            (torch.nn.functional.mse_loss(a, b) for a, b in zip(blocks, features, strict=True)), start=zero
        )
        kept = zero
        if len(batches) > 1:
            old = batches[1]
            assert own.old is not None
            with torch.no_grad():
                before = own.old(
                    old.noisy, old.times, one_hot(old.styles, own.old.styles.vectors.shape[0]).to(noisy), **old.told
                )
            # A sum over old styles, of which each picture shows one.
            kept, more = (len(own.old_styles) * x for x in _apart(said[len(clean) :], before, clean.shape[1]))
            variance = variance + config.old_weight * more
        loss = score + config.feature_weight * feature + config.old_weight * kept
        told_variance = {}
        if said.shape[1] > clean.shape[1]:
            loss = loss + VARIANCE * variance
            told_variance = {"variance": variance}
        self._note(score=score, features=feature, old=kept, **told_variance)
        return (loss, {}) if return_outputs else loss

    @torch.no_grad()
    def _taught(self, batch: _Batch) -> tuple[Tensor, list[Tensor]]:
        """What the teachers say of a batch, each of the pictures in its style, and the outputs of their blocks."""
        said: list[Tensor] = []
        blocks: list[list[Tensor]] = []
        order: list[Tensor] = []
        for style, teacher in self._lesson.teachers.items():
            rows = (batch.styles == style).nonzero().flatten()
            if not len(rows):
                continue
            watched = BlockOutputs(teacher) if self._training.feature_weight > 0 else None
            some = rows.to(batch.noisy.device)
            told = {k: v[some] for k, v in batch.told.items()}
            said.append(teacher(batch.noisy[some], batch.times[some], **told).sample)
            if watched is not None:
                blocks.append(watched.take())
                watched.__exit__()
            order.append(some)
        back = torch.argsort(torch.cat(order))
        return torch.cat(said)[back], [torch.cat(parts)[back] for parts in zip(*blocks, strict=True)]

    def _note(self, **losses: Tensor) -> None:
        self._steps += 1
        for name, value in losses.items():
            self._sums[name] = self._sums.get(name, 0.0) + float(value.detach())

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """Put the parts of the loss beside it."""
        if "loss" in logs and self._steps:
            logs = {**logs, **{name: total / self._steps for name, total in self._sums.items()}}
            self._sums, self._steps = {}, 0
        super().log(logs, start_time)


def _apart(said: Tensor, wanted: Tensor, channels: int) -> tuple[Tensor, Tensor]:
    """Mean squared differences of the noise, and of the variance said behind it (0 where none is)."""
    loss = torch.nn.functional.mse_loss
    if said.shape[1] == channels:
        return loss(said, wanted), said.new_zeros(())
    return loss(said[:, :channels], wanted[:, :channels]), loss(said[:, channels:], wanted[:, channels:])


@dataclass(frozen=True)
class _Batch:
    """Noisy pictures, each in one style.

    Attributes:
        noisy: x_t, [n, channels, height, width].
        times: t, [n].
        styles: Numbers of styles, [n], on the CPU.
        told: Conditions, some of them of no prompt.
    """

    noisy: Tensor
    times: Tensor
    styles: Tensor
    told: dict[str, Tensor]

    @classmethod
    def drawn(
        cls, own: Lesson, noise_of: Any, clean: Tensor, prompts: Sequence[Any], styles: Sequence[int], drop: float,
        generator: torch.Generator,
    ) -> _Batch:  # fmt: skip
        count = len(clean)
        noise = torch.randn(clean.shape, generator=generator).to(clean)
        steps = int(noise_of.config.num_train_timesteps)
        times = torch.randint(0, steps, (count,), generator=generator)
        # Each style as often as any other, which begins at random.
        first = int(torch.randint(0, len(styles), (1,), generator=generator))
        shown = torch.tensor([styles[(first + i) % len(styles)] for i in range(count)])
        dropped = torch.rand(count, generator=generator) < drop
        told = own.conditions(
            [own.conditions.null if gone else p for p, gone in zip(prompts, dropped, strict=True)], clean.device
        )
        times = times.to(clean.device)
        return cls(noise_of.add_noise(clean, noise, times), times, shown, told)


class _Follower(TrainerCallback):
    """Tells how far a training is, and ends it where the loss is no number any more."""

    def __init__(self, file: Path, watcher: Watcher) -> None:
        self._file, self._watcher = file, watcher
        self._note = ""
        # Of the runs that were cut off before.
        self.seconds = float((read_json_object(file) or {}).get("seconds", 0.0))
        self._began = time.monotonic()

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """A step is done."""
        if state.global_step >= state.max_steps:
            control.should_log = control.should_save = True
        self._watcher.advance(1, self._note)

    def on_log(self, args: Any, state: Any, control: Any, logs: Any = None, **_: Any) -> None:
        """Losses are there."""
        loss = (logs or {}).get("loss")
        if loss is None:
            return
        if not math.isfinite(float(loss)):
            raise EvoMergeError(f"step {state.global_step}: the loss is {loss}; try a lower training.learning_rate")
        self._note = f"loss {float(loss):.4g}"

    def on_save(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """A checkpoint is there."""
        seconds = self.seconds + time.monotonic() - self._began
        write_json(self._file, {"step": state.global_step, "seconds": seconds})
