"""A folder of statistics: a manifest that says of which model and text they are, and one tensor for each weight."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from evomerge.errors import RecipeError, SourceError, choose
from evomerge.header import TensorInfo, read_header
from evomerge.merging.plan import Plan, TensorPlan
from evomerge.recipe import Recipe
from evomerge.sources import Source, local_folder, read_json, remembered

if TYPE_CHECKING:
    from torch import Tensor

MANIFEST, TENSORS = "statistics.json", "statistics.safetensors"
KINDS = ("fisher", "gram")
VERSION = 1


@dataclass(frozen=True)
class Statistics:
    """Statistics of one model, opened.

    Attributes:
        kind: "fisher": for each weight, its diagonal Fisher information, of the weight's shape. "gram": for each matrix
            of a linear layer the mean of x x^T over its inputs x, [in, in]; [1, in, in] where the weight is stored as
            [in, out] (Conv1D). float32.
        model: Content hash of the model.
        tensors: By the names of the model's tensors; weights that have none are left out.
        facts: The whole manifest.
        named: What recipes call the folder.
    """

    named: str
    folder: Path
    kind: str
    model: str
    tensors: Mapping[str, TensorInfo]
    facts: Mapping[str, Any]

    def content_hash(self) -> str:
        """SHA-256 (hex) of every tensor, and of which kind and model they are."""
        labels = [(f"{name} {info.dtype} {info.shape}", info) for name, info in sorted(self.tensors.items())]
        return remembered(self.folder, f"{self.kind} of {self.model}", labels)


def open_statistics(folder: str | Path, root: Path | None = None) -> Statistics:
    """Read a folder that `evomerge statistics` wrote.

    Args:
        root: Where a relative folder is looked for when it is not below the current one.

    Raises:
        SourceError: it is missing or damaged.
    """
    path = local_folder(str(folder), root)
    if path is None or not (path / MANIFEST).is_file():
        raise SourceError(
            f"statistics {path or folder}: no such folder, or no {MANIFEST} in it (evomerge statistics writes it)"
        )
    manifest = path / MANIFEST
    facts = read_json(manifest)
    if not isinstance(facts, dict) or facts.get("kind") not in KINDS or not isinstance(facts.get("model"), str):
        raise SourceError(f'{manifest}: expected a JSON object with "kind" ({" or ".join(KINDS)}) and "model"')
    if facts.get("version") != VERSION:
        raise SourceError(f"{manifest}: has version {facts.get('version')!r}, expected {VERSION}; collect them again")
    return Statistics(str(folder), path, facts["kind"], facts["model"], read_header(path / TENSORS), facts)


def unnamed(recipe: Recipe, needed: Sequence[str]) -> Iterator[str]:
    """Problems: models that need statistics, and for which the recipe names no folder."""
    kind = recipe.method.statistics
    for reference in needed:
        if kind and reference not in recipe.evomerge.statistics:
            yield (
                f'merge_method "{recipe.merge_method}" needs statistics of "{reference}": collect them '
                f"({_command(reference, kind)}) and name their folder under evomerge: statistics: {{MODEL: FOLDER}}"
            )


def _command(reference: str, kind: str) -> str:
    return f"evomerge statistics '{reference}' TEXT --kind {kind} --out FOLDER"


def of_plan(plan: Plan, root: Path | None = None, *, contents: bool = True) -> dict[str, Statistics]:
    """The statistics that a plan's method needs, by the reference of each model that is merged.

    Args:
        root: Where relative folders are looked for beside the current one.
        contents: Whether models and statistics are read whole, to compare their hashes.

    Raises:
        RecipeError, SourceError: every model without statistics, or with those of another kind or model; one line each.
    """
    kind = plan.recipe.method.statistics
    if not kind:
        return {}
    named = plan.recipe.evomerge.statistics
    needed = list(dict.fromkeys(i.model for t in plan.tensors if not t.copied for i in t.inputs))
    problems = [
        f'evomerge.statistics: "{reference}" is not a model of this recipe; {choose(reference, needed)}'
        for reference in named
        if reference not in plan.sources
    ]
    problems += unnamed(plan.recipe, needed)
    found: dict[str, Statistics] = {}
    for reference in [r for r in needed if r in named]:
        command = _command(reference, kind)
        try:
            statistics = open_statistics(named[reference], root)
        except SourceError as e:
            problems.append(f"{e}; collect them: {command}")
            continue
        problem = _problem(statistics, kind, plan.sources[reference], contents)
        if problem:
            problems.append(f"statistics {statistics.folder}: {problem}; collect them: {command}")
        elif contents and plan.recipe.evomerge.sources.get(statistics.named, have := statistics.content_hash()) != have:
            problems.append(
                f"statistics {statistics.folder}: their content is not what the recipe was made with; use the same "
                "ones, or remove evomerge.sources"
            )
        found[reference] = statistics
    if problems:
        raise RecipeError("\n".join(problems))
    return found


def _problem(statistics: Statistics, kind: str, source: Source, contents: bool) -> str | None:
    if statistics.kind != kind:
        return f'are of kind "{statistics.kind}", the method needs "{kind}"'
    if contents and statistics.model != source.content_hash():
        return f'are those of another model than "{source.reference}" (or of another version of it)'
    for name, info in statistics.tensors.items():
        own = source.tensors.get(name)
        shape = own.shape if own else ()
        inputs = shape[-1:] if len(info.shape) == 2 else shape[:1]
        wanted = shape if kind == "fisher" else (*(1,) * (len(info.shape) - 2), *inputs, *inputs)
        if own is None or info.shape != wanted or info.dtype != "F32":
            return f'are damaged: tensor "{name}" is {info.dtype} {list(info.shape)}'
    return None


def tensors_of(plan: Plan, t: TensorPlan, read: Callable[[TensorInfo], Tensor]) -> tuple[Tensor, ...]:
    """The statistics of one output tensor's inputs; () where one of them has none.

    Fisher information lies row by row as its weight does: () too where the tokenizer lays one of the inputs out anew.
    Gram matrices are about what a layer is given, whatever the order of what it makes of it.

    Raises:
        SourceError: values that no such statistics have.
    """
    of = [plan.statistics[i.model] for i in t.inputs if i.model in plan.statistics]
    if len(of) < len(t.inputs) or any(i.tensor not in s.tensors for i, s in zip(t.inputs, of, strict=True)):
        return ()
    if any(s.kind == "fisher" and i in plan.gathers for i, s in zip(t.inputs, of, strict=True)):
        return ()
    return tuple(_checked(s, i.tensor, read(s.tensors[i.tensor])) for i, s in zip(t.inputs, of, strict=True))


def _checked(statistics: Statistics, name: str, values: Tensor) -> Tensor:
    """Means of squares are finite and not negative; those of a Gram matrix, on its diagonal.

    One pass: the least and the greatest of values of which one is NaN are NaN.
    """
    if not values.numel():
        return values
    least, most = (float(x) for x in values.aminmax())
    if statistics.kind == "gram" and -math.inf < least:
        least = float(values.diagonal(dim1=-2, dim2=-1).min())
    if not (least >= 0.0 and most < math.inf):
        wanted = "Fisher information" if statistics.kind == "fisher" else "the diagonal of a Gram matrix"
        raise SourceError(
            f'statistics {statistics.folder}: tensor "{name}" has NaN, infinite or negative values, which {wanted} has '
            "not; collect them again"
        )
    return values
