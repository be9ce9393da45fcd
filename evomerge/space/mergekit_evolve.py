"""mergekit-evolve's own configuration (top-level keys `genome` and `tasks`) read as a search space and an evaluator.

What differs, on purpose, is told line by line (`Migrated.changes`): weights are bounded (there they are not, and a
negative one is used by its magnitude), density stays above 0, slerp interpolates between two named models instead of
the two heaviest of many, and items are divided into those of the search and those that it never sees.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from pydantic import Field, field_validator, model_validator

from evomerge.config import Document, Frozen, validate
from evomerge.errors import SpaceError, choose
from evomerge.recipe.reference import Reference
from evomerge.space.config import SpaceConfig
from evomerge.space.granularity import TAKEN

METHODS = ("linear", "task_arithmetic", "ties", "dare_ties", "slerp")
NORMALIZED = ("linear", "ties", "dare_ties")
# Shares of an evaluator that says nothing of them, which the file cannot do.
SHARES = {"search": 0.3, "select": 0.2, "test": 0.5}
# Metrics of lm-eval that are better when lower.
LOWER = ("perplexity", "word_perplexity", "byte_perplexity", "bits_per_byte", "brier_score", "ter")
MAX_WEIGHT = 2.0
MIN_DENSITY = 0.01


class Task(Frozen):
    """One task of the file: an lm-eval task and metric.

    Attributes:
        name: Of the task; an entry that is a text is one.
        weight: In the score. Below 0: the task is better when lower.
        metric: As lm-eval writes it, with its filter.
    """

    name: str
    weight: float = 1.0
    metric: str = "acc,none"

    @model_validator(mode="before")
    @classmethod
    def _plain(cls, value: Any) -> Any:
        return {"name": value} if isinstance(value, str) else value


class Genome(Frozen):
    """The part of the file that says what varies, by mergekit-evolve's names.

    Attributes:
        models: The sources; the base may be among them.
        merge_method: linear, task_arithmetic, ties, dare_ties or slerp.
        base_model: What the models were fine-tuned from; slerp and linear do without.
        tokenizer_source: As in a recipe.
        layer_granularity: Layers that share their values; 0: all of them.
        normalize: Divide by the sum of weights; default as the method has it there (linear, ties, dare_ties: yes).
        allow_negative_weights: Weights from -2 to 2 instead of 0 to 2.
        filters: Parts of tensors' names that have values of their own; what none matches has another.
        smooth: Values are gradients over the layers, and not steps.
    """

    models: list[Reference] = Field(min_length=1)
    merge_method: str
    base_model: Reference | None = None
    tokenizer_source: Reference | None = None
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
    """The whole file, by mergekit-evolve's names and with its defaults.

    Attributes:
        genome: What varies.
        tasks: What makes a merge good; without them --tasks or --evaluator says it.
        limit: At most so many items of each task are searched on.
        num_fewshot: Examples in the prompt; default as each task has it.
        shuffle: Changes nothing: items are drawn by a hash of their content.
        random_init: Not taken; --seed gives another search.
        apply_chat_template: Applied where all models have one; where the file asks for it, a model without is refused.
        fewshot_as_multiturn: Examples are turns of the chat.
    """

    genome: Genome
    tasks: list[Task] = Field(default_factory=list)
    limit: int | None = Field(default=None, ge=1)
    num_fewshot: int | None = Field(default=None, ge=0)
    shuffle: bool = False
    random_init: bool = False
    apply_chat_template: bool = True
    fewshot_as_multiturn: bool = True

    @model_validator(mode="after")
    def _once(self) -> MergekitEvolve:
        for name, count in Counter(t.name for t in self.tasks).items():
            if count > 1:
                metrics = ", ".join(t.metric for t in self.tasks if t.name == name)
                raise ValueError(
                    f'tasks: "{name}" is named {count} times ({metrics}); here a task is scored by one metric: keep one'
                )
        return self


@dataclass(frozen=True)
class Migrated:
    """What a mergekit-evolve file says beside its space.

    Attributes:
        evaluator: Its tasks and options by an evaluator's keys; empty where it names no task.
        asked: Whether the file itself says to apply a chat template; mergekit-evolve's default does too, and fails
            where there is none.
        changes: What is done in another way than mergekit-evolve does it, one line each.
        scored: The same of how a merge is scored, where it is scored by this evaluator.
    """

    evaluator: Mapping[str, Any]
    asked: bool
    changes: tuple[str, ...]
    scored: tuple[str, ...]


def read(document: Document) -> SpaceConfig:
    """The space of a mergekit-evolve file; the rest of it is in `SpaceConfig.migrated`.

    Raises:
        SpaceError: every problem of the file, one line each.
    """
    file = validate(MergekitEvolve, document, SpaceError)
    config = validate(SpaceConfig, Document(_space(file.genome), document.file), SpaceError)
    asked = "apply_chat_template" in file.model_fields_set and file.apply_chat_template
    config._migrated = Migrated(_evaluator(file), asked, tuple(_changes(file, config)), tuple(_scored(file)))
    return config


def _evaluator(file: MergekitEvolve) -> dict[str, Any]:
    """The evaluator that a file's tasks and options are; empty where it has none."""
    if not file.tasks:
        return {}
    tasks: list[dict[str, Any]] = []
    for task in file.tasks:
        made: dict[str, Any] = {"name": task.name, "metric": task.metric, "weight": abs(task.weight)}
        if task.weight < 0:
            made["higher_is_better"] = False
        tasks.append(made)
    found: dict[str, Any] = {"tasks": tasks}
    if file.num_fewshot is not None:
        found["num_fewshot"] = file.num_fewshot
    if file.apply_chat_template:
        found |= {"apply_chat_template": True, "fewshot_as_multiturn": file.fewshot_as_multiturn}
    if file.limit is not None:
        found["splits"] = {"search": {"share": SHARES["search"], "limit": file.limit}}
    return found


def _changes(file: MergekitEvolve, config: SpaceConfig) -> Iterator[str]:
    """What is done in another way, in words."""
    genome = file.genome
    if genome.merge_method == "slerp":
        yield (
            f'slerp: t goes from "{config.base_model}" (0) to "{config.sources[0].model}" (1), from the middle on '
            "(mergekit-evolve: the softmax of two weights)"
        )
    else:
        low = config.parameters["weight"].low
        sign = "with their sign" if genome.allow_negative_weights else "of a negative one the magnitude"
        yield (
            f"weights are searched from {low:g} to {MAX_WEIGHT:g}, from {1 / len(genome.models):.3g} on "
            f"(mergekit-evolve: no bounds, {sign})"
        )
    if "density" in config.parameters:
        yield f"density is searched from {MIN_DENSITY:g} to 1, from 1 on (mergekit-evolve: its magnitude, cut at 1)"
    if genome.merge_method == "dare_ties":
        yield "dare_ties: random masks follow from the seed alone (mergekit's from the order of its draws)"
    if genome.smooth and genome.layer_granularity > 0:
        yield "smooth: final norm and output head get the last value of a gradient (mergekit: the first)"
    kept = {s.model for s in config.sources}
    if genome.merge_method not in ("linear", "slerp") and genome.base_model in genome.models:
        yield f'models: "{genome.base_model}" is the base, whose task vector is zero: it gets no weight'
    again = [m for m, n in Counter(genome.models).items() if n > 1 and m in kept]
    if again:
        yield f"models: named more than once: {', '.join(again)}; each is one source (there: a gene for each)"
    living = _living(genome.filters or ())
    dead = [f for f in genome.filters or () if f not in living]
    if dead:
        yield f"filters: an earlier one leaves no tensor for {', '.join(dead)}; left out (there: a gene)"
    if file.random_init:
        yield "random_init: not taken; a search starts from the weights above, and --seed gives another one"


def _scored(file: MergekitEvolve) -> Iterator[str]:
    """What is scored in another way, in words."""
    if not file.tasks:
        return
    share = ", ".join(f"{name} {part:.0%}" for name, part in SHARES.items())
    yield (
        f"each task's items are divided by their content: {share} (mergekit-evolve: all of them are searched on); "
        "an evaluator's file sets other shares"
    )
    if len(file.tasks) > 1:
        yield "the score is the weighted mean of the tasks (mergekit-evolve: the sum); the order is the same"
    if file.limit is not None:
        yield f"limit: {file.limit} items of each task are searched on, drawn by their content (lm-eval: the first)"
    if file.shuffle:
        yield "shuffle: nothing to do, items are drawn by a hash of their content"
    negative = [t.name for t in file.tasks if t.weight < 0]
    if negative:
        yield f"tasks of negative weight are better when lower: {', '.join(negative)}"
    lower = [t.name for t in file.tasks if t.weight > 0 and t.metric.split(",")[0] in LOWER]
    if lower:
        yield (
            f"tasks whose metric is better when lower are searched for less of it: {', '.join(lower)} "
            "(mergekit-evolve: for more, unless the weight is negative)"
        )


def _living(filters: Sequence[str]) -> list[str]:
    """Those that some tensor can be left for: the first that occurs in a name wins."""
    kept: list[str] = []
    for text in filters:
        if not any(earlier in text for earlier in kept):
            kept.append(text)
    return kept


def _space(genome: Genome) -> dict[str, Any]:
    method, base, models = genome.merge_method, genome.base_model, list(dict.fromkeys(genome.models))
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
        "modules": {_module(text): text for text in _living(genome.filters or ())},
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
