"""mergekit-evolve's own configuration (top-level keys `genome` and `tasks`) read as a search space of ours.

What differs, on purpose: weights are bounded (there they are not, and a negative one is used by its magnitude), density
stays above 0, and slerp interpolates between two named models instead of the two heaviest of many.
"""

from __future__ import annotations

from typing import Any

from pydantic import Field, field_validator, model_validator

from evomerge.config import Document, Frozen, validate
from evomerge.errors import SpaceError, choose
from evomerge.space.config import SpaceConfig
from evomerge.space.granularity import TAKEN

METHODS = ("linear", "task_arithmetic", "ties", "dare_ties", "slerp")
NORMALIZED = ("linear", "ties", "dare_ties")
MAX_WEIGHT = 2.0
MIN_DENSITY = 0.01


class Task(Frozen):
    """One task of the file: an lm-eval task and metric."""

    name: str
    weight: float = 1.0
    metric: str = "acc,none"

    @model_validator(mode="before")
    @classmethod
    def _plain(cls, value: Any) -> Any:
        return {"name": value} if isinstance(value, str) else value


class Genome(Frozen):
    """The part of the file that says what varies, by mergekit-evolve's names."""

    models: list[str] = Field(min_length=1)
    merge_method: str
    base_model: str | None = None
    tokenizer_source: str | None = None
    layer_granularity: int = 0
    normalize: bool | None = None
    allow_negative_weights: bool = False
    filters: list[str] | None = None
    smooth: bool = False

    @field_validator("merge_method")
    @classmethod
    def _known(cls, value: str) -> str:
        if value not in METHODS:
            raise ValueError(f"not a method of mergekit-evolve; {choose(value, METHODS)}")
        return value

    @model_validator(mode="after")
    def _two_models(self) -> Genome:
        if self.merge_method == "slerp" and len(dict.fromkeys([*self.models, self.base_model or self.models[0]])) != 2:
            raise ValueError("slerp is searched between exactly two models here: two models, or one and a base_model")
        return self


class MergekitEvolve(Frozen):
    """The whole file. Options of its evaluation are read and left to the evaluator."""

    genome: Genome
    tasks: list[Task] = Field(default_factory=list)
    limit: int | None = None
    num_fewshot: int | None = None
    shuffle: bool = False
    random_init: bool = False
    apply_chat_template: bool = True
    fewshot_as_multiturn: bool = True


def read(document: Document) -> SpaceConfig:
    """The space of a mergekit-evolve file; its tasks are in `SpaceConfig.tasks`.

    Raises:
        SpaceError: every problem of the file, one line each.
    """
    file = validate(MergekitEvolve, document, SpaceError)
    config = validate(SpaceConfig, Document(_space(file.genome), document.file), SpaceError)
    config._tasks = tuple(task.model_dump() for task in file.tasks)
    return config


def _space(genome: Genome) -> dict[str, Any]:
    method, base, models = genome.merge_method, genome.base_model, genome.models
    if method == "slerp":
        base = base or models[0]
    if method != "linear":
        models = [m for m in models if m != base]  # its task vector is zero
    elif base in models:
        base = None
    share = 1 / len(genome.models)
    parameters: dict[str, Any] = {}
    if method == "slerp":
        parameters["t"] = {"low": 0.0, "high": 1.0, "init": 0.5}
    else:
        low = -MAX_WEIGHT if genome.allow_negative_weights else 0.0
        parameters["weight"] = {"low": low, "high": MAX_WEIGHT, "init": share}
        normalize = genome.normalize if genome.normalize is not None else method in NORMALIZED
        parameters["normalize"] = normalize
    if method in ("ties", "dare_ties"):
        parameters["density"] = {"low": MIN_DENSITY, "high": 1.0, "init": 1.0}
    granularity: dict[str, Any] = {
        "modules": {_module(text): text for text in genome.filters or ()},
        "embeddings": "layers",
        "smooth": genome.smooth,
    }
    if genome.layer_granularity > 0:
        granularity["layers_per_group"] = genome.layer_granularity
    return {
        "method": method,
        "base_model": base,
        "sources": models,
        "granularity": granularity,
        "parameters": parameters,
        "dtype": "bfloat16",
        "tokenizer_source": genome.tokenizer_source,
    }


def _module(text: str) -> str:
    """A module's name from its filter."""
    name = "".join(c if c.isalnum() or c in "_.+-" else "_" for c in text)
    return name if name not in TAKEN else f"{name}_"
