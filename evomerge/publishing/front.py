"""The YAML in front of a model card, as the Hub reads it: huggingface_hub's own classes write it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from evomerge.publishing.lineage import Lineage

if TYPE_CHECKING:
    from huggingface_hub import EvalResult

TASKS = {"transformers": "text-generation", "diffusers": "text-to-image"}
UNTOLD = "unconditional-image-generation"  # the Hub has no name for models that are told a class
TAGS = ("merge", "evomerge")


def front_matter(
    lineage: Lineage,
    *,
    name: str,
    results: Sequence[EvalResult] = (),
    tags: Sequence[str] = TAGS,
    relation: str = "merge",
    base_model: Sequence[str] | None = None,
    library: str = "transformers",
    task: str | None = None,
) -> str:
    """The front matter with its `---` lines.

    `base_model` has ids of the Hub alone: the Hub refuses anything else there (a folder, zoo:NAME), and the card's text
    names those. `license` stands there only where all sources state the same one.

    Args:
        name: Of the model, in `model-index`.
        results: Evaluation results; none: no `model-index`.
        relation: What became of the base models: "merge" or "finetune".
        base_model: Default: the Hub's models of the lineage.
        library, task: What loads it, and what for, by the Hub's names; default: what models of the library mostly do.
    """
    from huggingface_hub import ModelCardData

    ids = list(base_model if base_model is not None else lineage.hub_ids)
    licence = lineage.licence
    # In the order in which they are to stand; what is None is left out.
    more: dict[str, Any] = {"base_model_relation": relation}
    data = ModelCardData(
        base_model=ids or None,
        library_name=library,
        pipeline_tag=task or TASKS[library],
        tags=list(tags),
        license=None if licence is None else licence.id,
        license_name=None if licence is None else licence.name,
        license_link=None if licence is None else licence.link,
        eval_results=list(results) or None,
        model_name=name if results else None,
        **more,
    )
    return f"---\n{data.to_yaml()}\n---\n"


def result(
    task: str, metric: str, value: float, dataset: str, split: str | None = None, *, kind: str | None = None
) -> EvalResult:
    """One evaluation result.

    Args:
        task: Of the evaluator, by name.
        metric: lm-eval's, with its filter ("exact_match,none").
        value: As the metric's authors report it.
        dataset: What a reader sees as the dataset.
        kind: What the model is for, by the Hub's name; default: text generation.
    """
    from huggingface_hub import EvalResult

    return EvalResult(
        task_type=kind or TASKS["transformers"],
        dataset_type=task,
        dataset_name=dataset,
        dataset_split=split,
        metric_type=metric.split(",")[0],
        metric_value=round(value, 6),
        metric_name=metric,
    )
