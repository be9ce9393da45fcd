"""`kind: fuse_images`: which image models become one, on which pictures and how, as a file says it."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field, field_validator, model_validator

from evomerge.config import Frozen, Key, load_yaml, validate
from evomerge.errors import InputError
from evomerge.space.source import NAME

KIND = "fuse_images"


class ImageFusionError(InputError):
    """A fusion of image models is wrong, or what it names does not go together."""


class TeacherModel(Frozen):
    """One model whose style the student learns; a path alone stands for {model: PATH}.

    Attributes:
        model: Folder of a diffusers pipeline; relative to the file.
        style: What its style is called; default: the folder's name.
    """

    model: str
    style: str = ""

    @model_validator(mode="after")
    def _named(self) -> TeacherModel:
        name = self.style or Path(self.model.rstrip("/")).name
        if not NAME.fullmatch(name):
            raise ValueError(f'style = "{name}": expected letters, digits and _ . + -; name it: style: NAME')
        return self if self.style else self.model_copy(update={"style": name})


class PictureConfig(Frozen):
    """The pictures that noise is added to: any, for teachers say what they make of them.

    Attributes:
        path: Folder of PNG or JPEG files with a metadata.jsonl, each line an object with "file_name" and what the
            picture shows; relative to the file.
        prompt: Name of the column of prompts (text-conditioned models) or of labels (class-conditioned ones).
        null_label: Which class stands for no label; default: the last that the model has an embedding of.
        limit: The first so many pictures alone.
    """

    path: str
    prompt: str | None = None
    null_label: int | None = Field(default=None, ge=0)
    limit: int | None = Field(default=None, ge=1)


class StudentTraining(Frozen):
    """How the student learns; names as in transformers' TrainingArguments where they are of its kind.

    Attributes:
        max_steps: How many updates it takes.
        per_device_train_batch_size: Pictures in an update; each is shown in one style, all styles alike often.
        learning_rate: Largest; DMM has 1e-5 for models of SD 1.5's size, over 200,000 steps.
        lr_scheduler_type: How it falls after that, by transformers' name.
        warmup_steps: Steps in which it rises from 0.
        weight_decay: AdamW's, of all weights.
        max_grad_norm: Gradients are cut to this norm.
        prompt_drop: Share of the prompts that are left out, the same for student and teacher.
        feature_weight: Weight of the mean squared differences of the outputs of all blocks.
        old_weight: mu, the weight of what the student before says of its styles, where `student` is given.
        style_dim: Numbers of a style vector.
        save_steps: Updates between two checkpoints, from which a fusion that was cut off goes on.
    """

    max_steps: int = Field(default=1000, ge=1)
    per_device_train_batch_size: int = Field(default=16, ge=1)
    learning_rate: float = Field(default=1e-5, gt=0)
    lr_scheduler_type: Literal["constant", "constant_with_warmup", "linear", "cosine"] = "constant_with_warmup"
    warmup_steps: int = Field(default=0, ge=0)
    weight_decay: float = Field(default=0.0, ge=0)
    max_grad_norm: float = Field(default=1.0, gt=0)
    prompt_drop: float = Field(default=0.1, ge=0, lt=1)
    feature_weight: float = Field(default=0.002, ge=0)
    old_weight: float = Field(default=1.0, ge=0)
    style_dim: int = Field(default=64, ge=1)
    save_steps: int = Field(default=200, ge=1)


class MeasureConfig(Frozen):
    """How student and teachers are compared, by pictures that each of them makes.

    Attributes:
        images: Of each style and of each teacher. A Fréchet distance of few is too large.
        inference_steps: Steps of the teachers' own scheduler.
        guidance_scale: Of classifier-free guidance; 1: none.
        batch_size: Pictures made at a time; "auto": 256, fewer of large ones, whose decoding takes memory.
        prompts: What is asked for, in turn; default: the different prompts of the pictures, up to `images`.
        grid: How many of the prompts the grid of pictures shows; it changes nothing of what is measured.
        features: `file.py:function`, relative to this file, by which pictures are compared: it is given some, a tensor
            in [-1, 1], [n, channels, height, width], and returns their features, [n, any number]. It runs with your
            rights, as an evaluator's function does. Default: fixed random convolutions.
    """

    images: int = Field(default=256, ge=2)
    inference_steps: int = Field(default=20, ge=1)
    guidance_scale: float = Field(default=1.0, ge=1)
    batch_size: Annotated[int, Field(ge=1)] | Literal["auto"] = "auto"
    prompts: tuple[str | int, ...] = ()
    grid: int = Field(default=8, ge=1, le=64)
    features: str | None = None

    @field_validator("features")
    @classmethod
    def _function(cls, value: str | None) -> str | None:
        if value is not None and not re.fullmatch(r".+\.py:[A-Za-z_]\w*", value):
            raise ValueError(f'measure.features = "{value}": expected FILE.py:FUNCTION')
        return value


class ImageFusionConfig(Frozen):
    """A fusion of image models as a file gives it.

    Attributes:
        kind: Says that the file is a fusion of image models.
        name: What the fusion is called; default: the file's name.
        base: Folder of the diffusers pipeline that the student begins as, relative to the file.
        student: Instead of `base`, the `model` folder of a fusion of before: it learns the teachers' styles and, by
            `old_weight`, keeps its own.
        teachers: Models of the base's architecture, scheduler and latent size, one for each new style.
        pictures: What they are asked about; a path alone stands for {path: PATH}.
        training: How the student learns.
        measure: How the result is measured.
        seed: Seed of style vectors, order of pictures, noise, and what is generated to measure.
    """

    kind: Literal["fuse_images"]
    name: str = ""
    base: str | None = None
    student: str | None = None
    teachers: tuple[TeacherModel, ...] = Field(min_length=1)
    pictures: PictureConfig
    training: StudentTraining = StudentTraining()
    measure: MeasureConfig = MeasureConfig()
    seed: int = Field(default=0, ge=0, lt=2**31)

    @field_validator("pictures", mode="before")
    @classmethod
    def _path(cls, value: Any) -> Any:
        return {"path": value} if isinstance(value, str) else value

    @field_validator("teachers", mode="before")
    @classmethod
    def _one(cls, value: Any) -> Any:
        listed = [value] if isinstance(value, str | dict) else value
        return [{"model": v} if isinstance(v, str) else v for v in listed] if isinstance(listed, list) else listed

    @model_validator(mode="after")
    def _consistent(self) -> ImageFusionConfig:
        for _, text in self._problems():
            raise ValueError(text)
        return self

    def _problems(self) -> Iterator[tuple[Key, str]]:
        if (self.base is None) == (self.student is None):
            yield ("base",), "expected `base`, what the student begins as, or `student`, one to add styles to"
        if self.student is None and "old_weight" in self.training.model_fields_set:
            yield ("training", "old_weight"), "training.old_weight is for a student of before; leave it out"
        if self.student is not None and "style_dim" in self.training.model_fields_set:
            yield ("training", "style_dim"), "training.style_dim: is that of the student of before; leave it out"
        if self.student is None and len(self.teachers) < 2:
            yield ("teachers",), f"expected at least 2 teachers; got {len(self.teachers)}"
        styles = [t.style for t in self.teachers]
        twice = next((s for i, s in enumerate(styles) if s in styles[:i]), None)
        if twice is not None:
            yield ("teachers",), f'the style "{twice}" is given twice; name it: {{model: ..., style: ...}}'
        if self.training.warmup_steps >= self.training.max_steps:
            yield (
                ("training", "warmup_steps"),
                f"training.warmup_steps = {self.training.warmup_steps}: expected fewer than max_steps",
            )

    @property
    def styles(self) -> tuple[str, ...]:
        """Names of the teachers' styles."""
        return tuple(t.style for t in self.teachers)


def load_image_fusion(path: Path | str) -> ImageFusionConfig:
    """Read the file of a fusion of image models.

    Raises:
        ImageFusionError: every problem of the file, one line each.
    """
    config = validate(ImageFusionConfig, load_yaml(path, ImageFusionError), ImageFusionError)
    return config if config.name else config.model_copy(update={"name": Path(path).stem})
