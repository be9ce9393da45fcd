"""Checkpoint tensors that a live model keeps as parts of larger ones (the experts of a mixture, fused projections).

transformers says what it does to a checkpoint on loading as a list of renamings and of operations (stack, concatenate,
transpose, ...). Followed backwards, they say which part of which parameter every stored tensor is, and a merge can be
written there: a view, no copy. No table of families is kept here.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

from torch import Tensor

from evomerge.errors import RecipeError

if TYPE_CHECKING:
    from transformers import PreTrainedModel
    from transformers.core_model_loading import ConversionOps, WeightConverter

Shape = tuple[int, ...]
Step = tuple[str, tuple[int, ...]]


@dataclass(frozen=True, slots=True)
class Part:
    """A part of a live tensor.

    Attributes:
        name: Of the live tensor.
        steps: Names and arguments of the views that lead from the whole to the part.
    """

    name: str
    steps: tuple[Step, ...] = ()

    def view(self, tensor: Tensor) -> Tensor:
        """The part of the tensor, sharing its memory."""
        for step, arguments in self.steps:
            tensor = tensor.view(arguments) if step == "view" else getattr(tensor, step)(*arguments)
        return tensor


@dataclass(frozen=True, slots=True)
class _Whole:
    """A tensor on its way into the live model: its shape, and the way to each stored tensor inside it."""

    shape: Shape
    parts: Mapping[str, tuple[Step, ...]]

    @classmethod
    def joined(cls, shape: Shape, pieces: Iterable[tuple[Step, _Whole]]) -> _Whole:
        parts = {name: (step, *steps) for step, piece in pieces for name, steps in piece.parts.items()}
        return cls(shape, parts)


# Stored tensors by the pattern that they match, each a list in the order of their numbers.
_Collected = dict[str, list[_Whole]]


def live_places(
    names: Iterable[str], model: PreTrainedModel
) -> dict[str, tuple[str, WeightConverter | None, str] | None]:
    """For each checkpoint name the live tensor that holds it, the converter that puts it there, and its pattern.

    Names are taken as transformers takes them on loading: renamed, with or without the model's base prefix. None where
    the model has no such tensor.
    """
    from transformers.conversion_mapping import get_model_conversion_mapping
    from transformers.core_model_loading import WeightConverter, WeightRenaming, dot_natural_key, rename_source_key

    live = model.state_dict()
    prefix = model.base_model_prefix
    transforms = get_model_conversion_mapping(model)
    renamings = [t for t in transforms if isinstance(t, WeightRenaming)]
    converters = [t for t in transforms if isinstance(t, WeightConverter)]
    by_pattern = {pattern: converter for converter in converters for pattern in converter.source_patterns}
    found: dict[str, tuple[str, WeightConverter | None, str] | None] = {}
    # In transformers' order: some renamings depend on the names before.
    for name in sorted(names, key=dot_natural_key):
        renamed, pattern = rename_source_key(name, renamings, converters, prefix, live)
        if renamed not in live and name in live:
            renamed, pattern = name, None
        if renamed in live:
            found[name] = (renamed, by_pattern[pattern] if pattern is not None else None, pattern or "")
        else:
            found[name] = None
    return found


def converted_parts(shapes: Mapping[str, Shape], model: PreTrainedModel) -> dict[str, Part | None]:
    """The part of the live model that each checkpoint tensor is, or None where it has no place.

    Args:
        shapes: Of the checkpoint's tensors, by name.

    Raises:
        RecipeError: transformers converts a tensor in a way that leaves no part of a parameter to write it to.
    """
    live = model.state_dict()
    if not hasattr(model, "base_model_prefix"):  # diffusers' models have the names of their checkpoints
        return {name: Part(name) if name in live else None for name in shapes}
    found: dict[str, Part | None] = {}
    fused: dict[str, tuple[WeightConverter, _Collected]] = {}
    for name, place in live_places(shapes, model).items():
        target, converter, pattern = place if place else (None, None, "")
        if target is None or converter is None:
            found[name] = None if target is None else Part(target)
            continue
        _, collected = fused.setdefault(target, (converter, {}))
        collected.setdefault(pattern, []).append(_Whole(shapes[name], {name: ()}))
    for target, (converter, collected) in fused.items():
        for name, steps in _followed(converter, collected, target, tuple(live[target].shape)).items():
            found[name] = Part(target, steps)
    return found


def _followed(
    converter: WeightConverter, collected: _Collected, target: str, shape: Shape
) -> Mapping[str, tuple[Step, ...]]:
    """The way from a live tensor to each stored one that a converter makes it of."""
    first = next(iter(collected.values()))[0]
    if len(converter.target_patterns) > 1:
        raise _impossible(first, target, f"{converter.operations}, into several parameters")
    for operation in converter.operations:
        collected = _applied(operation, converter, collected, shape, target)
    wholes = [whole for listed in collected.values() for whole in listed]
    if len(wholes) != 1:
        raise _impossible(first, target, str(converter.operations))
    return wholes[0].parts


def _applied(
    operation: ConversionOps, converter: WeightConverter, collected: _Collected, shape: Shape, target: str
) -> _Collected:
    from transformers.core_model_loading import Concatenate, Conv3dToLinear, LinearToConv3d, MergeModulelist, Transpose

    goal = converter.target_patterns[0]
    # Exact types: an operation derived from one of these may do more.
    if type(operation) is MergeModulelist:
        return {pattern: [_stacked(listed, operation.dim)] for pattern, listed in collected.items()}
    if type(operation) is Concatenate:
        ordered = [w for pattern in converter.source_patterns for w in collected.get(pattern, [])]
        return {goal: [_concatenated(ordered, operation.dim)]}
    (_, listed), *more = collected.items()
    whole = listed[0]
    if not more and len(listed) == 1:
        if type(operation) is Transpose:
            if operation.check_dims and whole.shape == shape:
                return {goal: [whole]}
            return {goal: [_transposed(whole, operation.dim0, operation.dim1)]}
        if type(operation) in (Conv3dToLinear, LinearToConv3d) and math.prod(whole.shape) == math.prod(shape):
            # A convolution whose windows do not overlap, as a matrix: the same numbers in the same order.
            return {goal: [_Whole.joined(shape, [(("view", whole.shape), whole)])]}
    raise _impossible(whole, target, str(operation))


def _stacked(wholes: list[_Whole], dim: int) -> _Whole:
    shape = wholes[0].shape
    return _Whole.joined(
        (*shape[:dim], len(wholes), *shape[dim:]), [(("select", (dim, i)), w) for i, w in enumerate(wholes)]
    )


def _concatenated(wholes: list[_Whole], dim: int) -> _Whole:
    sizes = [w.shape[dim] for w in wholes]
    starts = [sum(sizes[:i]) for i in range(len(sizes))]
    shape = wholes[0].shape
    pieces = [(("narrow", (dim, start, size)), w) for start, size, w in zip(starts, sizes, wholes, strict=True)]
    return _Whole.joined((*shape[:dim], sum(sizes), *shape[dim + 1 :]), pieces)


def _transposed(whole: _Whole, dim0: int, dim1: int) -> _Whole:
    shape = list(whole.shape)
    shape[dim0], shape[dim1] = shape[dim1], shape[dim0]
    return _Whole.joined(tuple(shape), [(("transpose", (dim0, dim1)), whole)])


def _impossible(whole: _Whole, target: str, operation: str) -> RecipeError:
    name = next(iter(whole.parts))
    return RecipeError(
        f'"{name}" cannot be written into a live model: transformers converts it by {operation} into "{target}", and '
        "no part of that is the tensor; write the merge to a folder and load it from there"
    )
