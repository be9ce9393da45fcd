"""How well a student speaks for its teachers: Fréchet distances from each of its styles to each teacher's pictures."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from evomerge.images.conditions import Prompt
from evomerge.images.config import MeasureConfig
from evomerge.images.frechet import Features, Gaussian, RandomFeatures, frechet_distance, gaussian
from evomerge.images.sampling import Denoise, fitting_batch, generate, plain, seed_of
from evomerge.images.student import StyledPipeline


@dataclass(frozen=True)
class Distances:
    """Fréchet distances, from few pictures larger than they are.

    Attributes:
        styles: Of the student, the rows.
        references: Whose pictures they are held against, the columns: the teachers in the order of the styles.
        matrix: Student style i to teacher j.
        average: The average of all models' weights to teacher j: what merging without training gives.
        floor: Teacher j to itself with other noise: what no student gets below.
    """

    styles: tuple[str, ...]
    references: tuple[str, ...]
    matrix: tuple[tuple[float, ...], ...]
    average: tuple[float, ...]
    floor: tuple[float, ...]

    @property
    def fidt(self) -> float:
        """Mean of the diagonal: FIDt of DMM, on our features."""
        return sum(self.matrix[i][i] for i in range(len(self.styles))) / len(self.styles)

    @property
    def least_on_diagonal(self) -> tuple[bool, ...]:
        """Of each style, whether no other teacher is nearer than its own."""
        return tuple(min(row) == row[i] for i, row in enumerate(self.matrix))

    def to_dict(self) -> dict[str, Any]:
        """As JSON has it."""
        return {**asdict(self), "fidt": self.fidt}

    @classmethod
    def read(cls, data: Mapping[str, Any]) -> Distances:
        """What `to_dict` gave."""
        return cls(
            tuple(data["styles"]), tuple(data["references"]), tuple(tuple(row) for row in data["matrix"]),
            tuple(data["average"]), tuple(data["floor"]),
        )  # fmt: skip


class Gallery:
    """Makes pictures of models of one kind, asked for the same prompts in turn, and the statistics of their features.

    Args:
        student: Of which scheduler, encoder and conditions are used for every model.
        prompts: What is asked for.
        features: By which pictures are compared; None: fixed random convolutions.
    """

    def __init__(
        self, student: StyledPipeline, prompts: Sequence[Prompt], config: MeasureConfig, seed: int,
        features: Features | None = None,
    ) -> None:  # fmt: skip
        self._student, self._config, self._seed = student, config, seed
        self.prompts = [prompts[i % len(prompts)] for i in range(config.images)]
        self._features = features
        given = config.batch_size
        self._batch = fitting_batch(student.model.config, student.model.latents) if given == "auto" else given

    def pictures(self, denoise: Denoise, prompts: Sequence[Prompt], *noise: object) -> Tensor:
        """Pictures in [-1, 1] of a denoiser.

        Args:
            noise: What the noise is drawn for.
        """
        own, config = self._student, self._config
        return generate(
            denoise, own.conditions, own.pipeline, prompts, own.model.config, steps=config.inference_steps,
            seed=seed_of(self._seed, *noise), guidance_scale=config.guidance_scale, batch_size=self._batch,
            device=own.device,
        )  # fmt: skip

    def gaussian(self, denoise: Denoise, *noise: object) -> Gaussian:
        """Statistics of the features of a denoiser's pictures."""
        pictures = self.pictures(denoise, self.prompts, *noise)
        self._features = self._features or RandomFeatures(pictures.shape[1])
        return gaussian(np.concatenate([self._features(some) for some in pictures.split(self._batch)]))


def measure(
    student: StyledPipeline,
    references: Mapping[str, Callable[[], Any]],
    prompts: Sequence[Prompt],
    config: MeasureConfig,
    seed: int,
    advance: Callable[[int], None] = lambda count: None,
    features: Features | None = None,
) -> Distances:
    """Hold every style of a student against the models that it learned from.

    Args:
        references: Loads the plain denoiser of each style, in the order of the student's styles.
        advance: Is told of each set of pictures that is made.
        features: See `Gallery`.
    """
    gallery = Gallery(student, prompts, config, seed, features)
    own, other = {}, {}
    total: dict[str, Tensor] = {}
    for name, load in references.items():
        denoiser = load().to(student.device)
        # Noise of its own: pictures of equal noise would flatter a student.
        own[name] = gallery.gaussian(plain(denoiser), "teacher", name)
        other[name] = gallery.gaussian(plain(denoiser), "again", name)
        total = add(total, denoiser)
        advance(2)
    mean = averaged(next(iter(references.values()))(), total, len(references)).to(student.device)
    merged = gallery.gaussian(plain(mean), "average")
    advance(1)
    rows = []
    for style in student.styles:
        said = gallery.gaussian(student.denoise(style), "student", style)
        rows.append(tuple(frechet_distance(said, own[name]) for name in references))
        advance(1)
    return Distances(
        student.styles, tuple(references), tuple(rows),
        tuple(frechet_distance(merged, own[name]) for name in references),
        tuple(frechet_distance(other[name], own[name]) for name in references),
    )  # fmt: skip


@torch.no_grad()
def add(total: dict[str, Tensor], denoiser: Any) -> dict[str, Tensor]:
    """A running sum of weights, in float64, on the CPU."""
    weights = {n: t.detach().cpu().double() for n, t in denoiser.state_dict().items() if t.is_floating_point()}
    return {n: total[n] + t for n, t in weights.items()} if total else weights


@torch.no_grad()
def averaged(denoiser: Any, total: Mapping[str, Tensor], count: int) -> Any:
    """A denoiser with the mean of weights that were summed."""
    for name, tensor in denoiser.state_dict().items():
        if name in total:
            tensor.copy_((total[name] / count).to(tensor.dtype))
    return denoiser
