"""Weights that are the same for every prompt: a recipe, and from it a plain checkpoint or one adapter.

W_0 + sum_i w_i s_i B_i A_i is task arithmetic over adapters, which the engine sums exactly from the thin matrices. The
same change is also one adapter, by concatenation along the rank: B = [w_1 s_1 B_1, w_2 s_2 B_2, ...],
A = [A_1; A_2; ...].
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from safetensors.torch import save_file
from torch import Tensor

from evomerge.errors import InputError, SourceError
from evomerge.header import TensorInfo, read_header
from evomerge.library import Library, LibraryError, check_weights
from evomerge.merging.checkpoint import atomic_folder, check_apart
from evomerge.merging.mapped import MappedFiles
from evomerge.merging.methods.weights import divisor
from evomerge.merging.plan import Plan, TensorPlan
from evomerge.recipe import Extras, InputModel, Recipe
from evomerge.skills.opened import check_finite
from evomerge.skills.shelf import check_outside_libraries
from evomerge.sources import Source, differing, hash_sources
from evomerge.sources.adapter import CONFIG, WEIGHTS, Update

RECIPE = "recipe.yaml"
Dtype = Literal["float32", "float16", "bfloat16", "float64"]
_SIDE = ".lora_A.weight"


def recipe_of(library: Library, weights: Mapping[str, float], dtype: Dtype | None = None) -> Recipe:
    """The recipe of a library's skills with a weight each; those that are not named are left out.

    Args:
        dtype: Type of the checkpoint's weights; None: the base's own.

    Raises:
        LibraryError: a weight of a skill that there is not, one that is no finite number, or none at all.
    """
    check_weights(library, weights)
    for name, weight in weights.items():
        if not math.isfinite(weight):
            raise LibraryError(f"weight of {name} = {weight}: expected a finite number")
    return Recipe(
        merge_method="task_arithmetic",
        base_model=library.base,
        models=[InputModel(model=library.reference(n), parameters={"weight": float(w)}) for n, w in weights.items()],
        parameters={"normalize": False},
        dtype=dtype,
        evomerge=Extras(seed=0),
    )


@dataclass(frozen=True)
class OneAdapter:
    """A sum of adapters as one.

    Attributes:
        sources: The models that it was made from, the base among them, by the recipe's references.
        base: The model that it is on.
        tensors: By PEFT's names, float32.
        config: adapter_config.json.
        ranks: Rank of each module, by PEFT's name of the module.
    """

    sources: Mapping[str, Source]
    base: Source
    tensors: Mapping[str, Tensor]
    config: Mapping[str, Any]
    ranks: Mapping[str, int]

    @property
    def rank(self) -> int:
        """The largest of its modules'."""
        return max(self.ranks.values())

    def write(self, out: Path, recipe: Recipe, *, overwrite: bool = False) -> None:
        """Write it as PEFT saves adapters, whole or not at all, with the recipe beside it.

        Args:
            recipe: What it was made by; written with references that hold in any folder, and content hashes.

        Raises:
            SourceError: the sources are not those that the recipe's hashes are of.
            InputError: `out` is not empty (or, to be overwritten, holds no adapter), lies in a skill library or in a
                source, or cannot be written.
        """
        check_apart(self.sources.values(), (), out)
        check_outside_libraries(out)
        contents = hash_sources(self.sources)
        if problems := differing(contents, recipe.evomerge.sources):
            raise SourceError("\n".join(problems))
        recipe = recipe.with_extras(sources=contents)
        recipe = recipe.with_references({r: s.full_reference for r, s in self.sources.items()})
        needed = sum(t.numel() * t.element_size() for t in self.tensors.values())
        with atomic_folder(out, overwrite, needed, CONFIG) as folder:
            save_file(dict(self.tensors), folder / WEIGHTS, metadata={"format": "pt"})
            (folder / WEIGHTS).chmod(0o644)
            (folder / CONFIG).write_text(json.dumps(self.config, indent=2) + "\n", encoding="utf-8")
            (folder / RECIPE).write_text(recipe.to_yaml(), encoding="utf-8")


def one_adapter(plan: Plan) -> OneAdapter:
    """What a recipe over adapters of its base adds, as one adapter.

    Args:
        plan: Of task arithmetic, of adapters on the base's own model. Weights may differ by tensor, and be negative; a
            source that a tensor has weight 0 for is left out there.

    Raises:
        InputError: the recipe is something else, or changes nothing; an adapter holds NaN.
    """
    base = _base(plan)
    sources = {r: plan.sources[r] for r in plan.recipe.references()}
    for source in sources.values():
        if source.adapter is not None:
            check_finite(source.adapter)
    files, names = MappedFiles(), _Names()
    tensors: dict[str, Tensor] = {}
    ranks: dict[str, int] = {}
    transposed = False
    for tensor in plan.tensors:
        parts = [(u, w) for u, w in _parts(plan, tensor) if w != 0.0]
        if not parts:
            continue
        key = names.of(parts[0][0])
        module = key.removesuffix(_SIDE).removeprefix("base_model.model.")
        a = torch.cat([files.tensor(u.a).double() for u, _ in parts])
        b = torch.cat([w * u.scale * files.tensor(u.b).double() for u, w in parts], dim=1)
        tensors[key] = a.float().contiguous()
        tensors[key.replace("lora_A", "lora_B")] = b.float().contiguous()
        ranks[module] = a.shape[0]
        transposed |= any(u.transposed for u, _ in parts)
    if not ranks:
        raise InputError("every weight is 0: there is nothing to write but the base; expected a weight other than 0")
    return OneAdapter(sources, base, tensors, _config(base, ranks, transposed), ranks)


def _base(plan: Plan) -> Source:
    recipe = plan.recipe
    if recipe.merge_method != "task_arithmetic" or recipe.base_model is None:
        raise InputError(
            f"merge_method {recipe.merge_method}: only a weighted sum of adapters is one adapter again; expected "
            "task_arithmetic, or a checkpoint"
        )
    base = plan.sources[recipe.base_model]
    for reference in recipe.merged_models():
        source = plan.sources[reference]
        if source is base:
            continue
        adapter = source.adapter
        if adapter is None or base.adapter is not None or adapter.model.path.resolve() != base.path.resolve():
            raise InputError(
                f'model "{reference}": expected a LoRA adapter on the base_model ({recipe.base_model}+ADAPTER)'
            )
        if adapter.replaced:
            name = next(iter(adapter.replaced))
            raise InputError(
                f'model "{reference}": brings "{name}" whole, which no low-rank product is; write a checkpoint'
            )
    if plan.gathers or plan.vocabulary is not None:
        raise InputError("the recipe merges tokenizers, which an adapter cannot; expected none, or write a checkpoint")
    return base


def _parts(plan: Plan, tensor: TensorPlan) -> Sequence[tuple[Update, float]]:
    """What is added to a tensor: each adapter's product with its weight."""
    given = tensor.parameters
    weights = given.get("weight", ())
    assert isinstance(weights, tuple)
    found = []
    for item, weight in zip(tensor.inputs, weights, strict=False):
        adapter = plan.sources[item.model].adapter
        update = adapter.updates.get(item.tensor) if adapter is not None else None
        if update is None:
            continue
        if item.tensor != tensor.name:
            raise InputError(
                f'the recipe moves "{item.tensor}" to "{tensor.name}", which an adapter cannot; write a checkpoint'
            )
        scale = float(given["lambda_"]) / divisor(weights, bool(given["normalize"]))  # type: ignore[arg-type]
        found.append((update, weight * scale))
    return found


class _Names:
    """PEFT's names of tensors: as the adapters' own files have them, which live models know them by."""

    def __init__(self) -> None:
        self._by_place: dict[TensorInfo, str] = {}
        self._read: set[Path] = set()

    def of(self, update: Update) -> str:
        if update.a.file not in self._read:
            self._read.add(update.a.file)
            self._by_place |= {info: name for name, info in read_header(update.a.file).items()}
        name = self._by_place[update.a]
        if not name.endswith(_SIDE):
            raise InputError(f'{update.a.file}: "{name}": expected a linear layer\'s lora_A; write a checkpoint')
        return name if name.startswith("base_model.model.") else f"base_model.model.{name}"


def _config(base: Source, ranks: Mapping[str, int], transposed: bool) -> dict[str, Any]:
    """adapter_config.json: the scale of every module is 1, whatever its rank."""
    rank = max(ranks.values())
    # A pattern is matched against the end of a module's name; a whole name matches itself alone.
    others = {module: r for module, r in ranks.items() if r != rank}
    return {
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM",
        "base_model_name_or_path": base.full_reference,
        "inference_mode": True,
        "r": rank,
        "lora_alpha": rank,
        "rank_pattern": others,
        "alpha_pattern": dict(others),
        "target_modules": sorted(ranks),
        "lora_dropout": 0.0,
        "bias": "none",
        "fan_in_fan_out": transposed,
        "use_rslora": False,
        "use_dora": False,
        "modules_to_save": None,
    }
