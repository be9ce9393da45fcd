"""A folder of statistics: a manifest that says of which model and text they are, and one tensor for each weight."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from evomerge.errors import RecipeError, SourceError, choose
from evomerge.header import TensorInfo, read_header
from evomerge.merging.plan import Plan, TensorPlan
from evomerge.sources import Source, remembered

MANIFEST, TENSORS = "statistics.json", "statistics.safetensors"
KINDS = ("fisher", "gram")
VERSION = 1
Tensor = TypeVar("Tensor")


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
    path = Path(folder).expanduser()
    path = next((p for p in (path, root / path if root else path) if (p / MANIFEST).is_file()), path)
    manifest = path / MANIFEST
    if not manifest.is_file():
        raise SourceError(f"statistics {path}: no such folder, or no {MANIFEST} in it (evomerge statistics writes it)")
    try:
        facts = json.loads(manifest.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as e:
        raise SourceError(f"{manifest}: cannot be read ({e})") from None
    if not isinstance(facts, dict) or facts.get("kind") not in KINDS or not isinstance(facts.get("model"), str):
        raise SourceError(f'{manifest}: expected a JSON object with "kind" ({" or ".join(KINDS)}) and "model"')
    if facts.get("version") != VERSION:
        raise SourceError(f"{manifest}: has version {facts.get('version')!r}, expected {VERSION}; collect them again")
    return Statistics(str(folder), path, facts["kind"], facts["model"], read_header(path / TENSORS), facts)


def of_plan(plan: Plan, root: Path | None = None) -> dict[str, Statistics]:
    """The statistics that a plan's method needs, by the reference of each model that is merged.

    Args:
        root: Where relative folders are looked for beside the current one.

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
    found: dict[str, Statistics] = {}
    for reference in needed:
        command = f"evomerge statistics '{reference}' TEXT --kind {kind} --out FOLDER"
        if reference not in named:
            problems.append(
                f'merge_method "{plan.recipe.merge_method}" needs statistics of "{reference}": collect them '
                f"({command}) and name their folder under evomerge: statistics: {{MODEL: FOLDER}}"
            )
            continue
        try:
            statistics = open_statistics(named[reference], root)
        except SourceError as e:
            problems.append(f"{e}; collect them: {command}")
            continue
        problem = _problem(statistics, kind, plan.sources[reference])
        if problem:
            problems.append(f"statistics {statistics.folder}: {problem}; collect them: {command}")
        elif plan.recipe.evomerge.sources.get(statistics.named, have := statistics.content_hash()) != have:
            problems.append(
                f"statistics {statistics.folder}: their content is not what the recipe was made with; use the same "
                "ones, or remove evomerge.sources"
            )
        found[reference] = statistics
    if problems:
        raise RecipeError("\n".join(problems))
    return found


def _problem(statistics: Statistics, kind: str, source: Source) -> str | None:
    if statistics.kind != kind:
        return f'are of kind "{statistics.kind}", the method needs "{kind}"'
    if statistics.model != source.content_hash():
        return f'are those of another model than "{source.reference}" (or of another version of it)'
    for name, info in statistics.tensors.items():
        own = source.tensors.get(name)
        shape = own.shape if own else ()
        inputs = shape[-1:] if len(info.shape) == 2 else shape[:1]
        wanted = shape if kind == "fisher" else (*(1,) * (len(info.shape) - 2), *inputs, *inputs)
        if own is None or info.shape != wanted or info.dtype != "F32":
            return f'are damaged: tensor "{name}" is {info.dtype} {list(info.shape)}'
    return None


def tensors_of(
    statistics: Mapping[str, Statistics], t: TensorPlan, read: Callable[[TensorInfo], Tensor]
) -> tuple[Tensor, ...]:
    """The statistics of one output tensor's inputs; () where one of them has none, or has rows in another order."""
    found = [statistics[i.model].tensors.get(i.tensor) if i.model in statistics else None for i in t.inputs]
    infos = [info for info in found if info is not None]
    if len(infos) < len(found):
        return ()
    if any(statistics[i.model].kind == "fisher" and x.shape != t.shape for i, x in zip(t.inputs, infos, strict=True)):
        return ()
    return tuple(read(info) for info in infos)
