"""Recipe -> parameters: the inverse of `Space.decode`, for its own recipes and for plain ones that the space contains.

A recipe is asked, by its own rules of precedence, for the value of every parameter at every entry (layer x filter) of
the space's grid; all entries of one position must agree.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

from evomerge.errors import RecipeError, SpaceError, choose
from evomerge.methods import IGNORED_PARAMETERS, METHODS
from evomerge.methods import Parameter as MethodParameter
from evomerge.recipe import (
    Condition,
    InputModel,
    InputSlice,
    ModelReference,
    OutputSlice,
    Parameters,
    Recipe,
    Scalar,
    Setting,
    number,
    resolve,
)
from evomerge.score import Value
from evomerge.space.grid import EMBEDDINGS, HEAD
from evomerge.space.parameters import Categorical, Integer

if TYPE_CHECKING:
    from evomerge.space.space import Gene, Space

_CLOSE = 1e-9


@dataclass(frozen=True)
class _Place:
    """Where a value is read: a layer of the models, and a name that stands for the tensors of an entry."""

    layer: int
    group: int
    tensor: str
    part: str


def encode(space: Space, recipe: Recipe) -> dict[str, Value]:
    """The parameters of a recipe (see `Space.encode`).

    Raises:
        SpaceError: which part of the recipe does not fit the space.
    """
    recipe = _as_task_vectors(space, _of_one_base(space, _of_one_module(recipe)))
    if recipe.merge_method not in space.config.method:
        raise SpaceError(f'the recipe\'s merge_method "{recipe.merge_method}" is not in the space; '
                         f"{choose(recipe.merge_method, space.config.method)}")  # fmt: skip
    reader = _Reader(space, recipe)
    reader.check()
    out = space.initial()
    if len(space.config.method) > 1:
        out["method"] = recipe.merge_method
    for parameter in METHODS[recipe.merge_method].parameters:
        gene = space.genes.get(parameter.name)
        for source in space.names if parameter.per_source else ("",):
            if gene is None:
                reader.check_fixed(parameter, source)
                continue
            for name, value in reader.values(gene, parameter, source):
                if name in out and name in reader.read and not math.isclose(value, reader.read[name], abs_tol=_CLOSE):
                    raise SpaceError(
                        f"the recipe is finer than the space: {name} would be both {reader.read[name]:g} and {value:g}"
                    )
                reader.read.setdefault(name, value)
    return out | _bounded(space, reader.read)


def _bounded(space: Space, values: dict[str, float]) -> dict[str, Value]:
    out: dict[str, Value] = {}
    for parameter in space.parameters:
        if parameter.name not in values or isinstance(parameter, Categorical):
            continue
        value = values[parameter.name]
        slack = _CLOSE * (parameter.high - parameter.low)
        if not parameter.low - slack <= value <= parameter.high + slack:
            raise SpaceError(
                f"the recipe's {parameter.name} = {value:g} is outside the space's "
                f"[{parameter.low:g}, {parameter.high:g}]"
            )
        value = min(max(value, parameter.low), parameter.high)
        out[parameter.name] = round(value) if isinstance(parameter, Integer) else value
    return out


def _same(reference: str | None) -> str | None:
    """One spelling per reference, so that a slash at the end is no difference."""
    return None if reference is None else str(ModelReference.parse(reference.rstrip("/") or reference))


def _of_one_module(recipe: Recipe) -> Recipe:
    """A recipe that says `modules: {default: ...}`, as the one that mergekit leaves beside a model, without it."""
    if recipe.modules is None or list(recipe.modules) != ["default"]:
        return recipe
    module = recipe.modules["default"]
    if module.parameters:
        return recipe
    return recipe.model_copy(update={"modules": None, "models": module.models, "slices": module.slices})


def _of_one_base(space: Space, recipe: Recipe) -> Recipe:
    """A slerp whose slices each name their base, as mergekit-evolve writes it: from b to a by t is a to b by 1 - t."""
    base = space.config.base_model
    if recipe.merge_method != "slerp" or recipe.base_model is not None or not recipe.slices:
        return recipe
    pieces = []
    for piece in recipe.slices:
        t = (piece.parameters or {}).get("t")
        if piece.base_model is None or not isinstance(t, float | int):
            return recipe
        away = _same(piece.base_model) != _same(base)
        pieces.append(piece.model_copy(update={"base_model": None, "parameters": {"t": 1 - t if away else t}}))
    return recipe.model_copy(update={"base_model": base, "slices": pieces})


class _Reader:
    """Reads one recipe at the places of one space's grid."""

    def __init__(self, space: Space, recipe: Recipe) -> None:
        self.space = space
        self.recipe = recipe
        self.method = METHODS[recipe.merge_method]
        self.source_of = {s.model: s.name for s in space.config.sources}
        self.read: dict[str, float] = {}
        grid = space.grid
        self.known_filters = {f for i in range(grid.slices) for f, _ in grid.entries(i) if f}

    def check(self) -> None:
        """Refuse what no parameter could express: modules, paths, other models, another base, foreign filters."""
        recipe, space = self.recipe, self.space
        if recipe.modules:
            raise SpaceError("the recipe has modules, which this space does not cut")
        if self.method.apart and _same(recipe.base_model) != space.config.base_model:
            raise SpaceError(
                f'the recipe\'s base_model "{recipe.base_model}" is not the space\'s "{space.config.base_model}"'
            )
        if recipe.evomerge.into and _same(recipe.evomerge.into) != _same(space.config.into):
            raise SpaceError(
                f'the recipe\'s evomerge.into "{recipe.evomerge.into}" is not the space\'s into '
                f"({space.config.into or 'not given'})"
            )
        if recipe.tokenizer or (
            recipe.tokenizer_source and _same(recipe.tokenizer_source) != _same(space.config.tokenizer_source)
        ):
            raise SpaceError(
                f"the recipe's tokenizer is not the space's ({space.config.tokenizer_source or 'not given'})"
            )
        layer = 0
        for piece in recipe.slices or ():
            if piece.base_model and _same(piece.base_model) != space.config.base_model:
                raise SpaceError(
                    f'a slice\'s base_model "{piece.base_model}" is not the space\'s "{space.config.base_model}"'
                )
            for source in piece.sources:
                if source.layer_range[0] != layer:
                    raise SpaceError(
                        f"the recipe is a path over layers (layers {source.layer_range[0]}-{source.layer_range[1] - 1} "
                        f"of {source.model} at layer {layer}), the space merges each layer with its like"
                    )
            layer = piece.sources[0].layer_range[1]
            self._check_models([s.model for s in piece.sources])
        if recipe.slices and layer != space.num_layers:
            raise SpaceError(f"the recipe has {layer} layers, the models {space.num_layers}")
        if recipe.models:
            self._check_models([m.model for m in recipe.models])
        for where, settings in self._settings():
            for name, setting in (settings or {}).items():
                if name not in (*IGNORED_PARAMETERS, *self.method.ignored):
                    self._check_filters(f"{where}.{name}", setting)

    def _check_models(self, models: list[str]) -> None:
        known = [*self.source_of, *([self.recipe.base_model] if self.method.apart else [])]
        spelled = [str(_same(m)) for m in models]
        for model in spelled:
            if model not in [_same(k) for k in known]:
                raise SpaceError(
                    f'the recipe\'s model "{model}" is not in the space; {choose(model, list(self.source_of))}'
                )
            if spelled.count(model) > 1:
                raise SpaceError(f'the recipe names model "{model}" twice in one slice')

    def _settings(self) -> Iterator[tuple[str, Parameters | None]]:
        yield "parameters", self.recipe.parameters
        for piece in self.recipe.slices or ():
            yield "slices.parameters", piece.parameters
            for source in piece.sources:
                yield f"parameters of {source.model}", source.parameters
        for model in self.recipe.models or ():
            yield f"parameters of {model.model}", model.parameters

    def _check_filters(self, where: str, setting: Setting) -> None:
        conditions = [setting] if isinstance(setting, Condition) else setting if isinstance(setting, list) else []
        for condition in conditions:
            if isinstance(condition, Condition) and condition.filter not in (None, "*", *self.known_filters):
                known = ", ".join(sorted(self.known_filters)) or "none"
                raise SpaceError(f'the recipe\'s {where} has filter "{condition.filter}"; the space cuts by: {known}')

    def places(self) -> Iterator[_Place]:
        """Every entry of the grid at every layer that it covers."""
        grid, last = self.space.grid, self.space.num_layers - 1
        for i in range(grid.slices):
            groups = range(len(grid.groups)) if grid.smooth else (i,)
            for filter_, part in grid.entries(i):
                if part == HEAD or (part == EMBEDDINGS and filter_ in grid.head_filters):
                    yield _Place(last, len(grid.groups) - 1, filter_ or "", part)
                elif part == EMBEDDINGS:
                    yield _Place(0, 0, filter_ or "", part)
                else:
                    for g in groups:
                        for layer in range(grid.groups[g].first, grid.groups[g].end):
                            yield _Place(layer, g, filter_ or "", part)

    def values(self, gene: Gene, parameter: MethodParameter, source: str) -> Iterator[tuple[str, float]]:
        """(name of the optimizer's parameter, value) at every place, for one source."""
        for place in self.places():
            name = gene.name(source, self.space.grid.position(gene.axes, place.group, place.part))
            value = self.value(parameter, source, place)
            if value is not None:
                yield name, value

    def check_fixed(self, parameter: MethodParameter, source: str) -> None:
        """A parameter that the space does not vary must have the space's value (or the method's default)."""
        fixed = self.space.fixed.get(parameter.name)
        expected = parameter.default if fixed is None else fixed
        for place in self.places():
            if parameter.kind == "choice":
                word = self._found(parameter, source, place)
                if word is not None and word != expected:
                    raise SpaceError(f"the recipe's {parameter.name} is {word}, fixed at {expected} in the space")
                continue
            value = self.value(parameter, source, place)
            if value is not None and (expected is None or not math.isclose(value, float(expected), abs_tol=_CLOSE)):
                shown = bool(value) if parameter.kind == "bool" else f"{value:g}"
                raise SpaceError(f"the recipe's {parameter.name} is {shown}, fixed at {expected} in the space")

    def value(self, parameter: MethodParameter, source: str, place: _Place) -> float | None:
        """A parameter's value at a place; None where the recipe leaves the source out and nothing depends on it."""
        found = self._found(parameter, source, place)
        return None if found is None else _number(parameter, found)

    def _found(self, parameter: MethodParameter, source: str, place: _Place) -> Scalar | None:
        """The same as the recipe writes it."""
        levels, t = self._levels(parameter, source, place.layer)
        if levels is None:  # a source that is not there has weight 0, whatever else it has
            return 0.0 if parameter.name == "weight" else None
        for settings in levels:
            found = self._resolve((settings or {}).get(parameter.name), place, t)
            if found is not None:
                return found
        if parameter.default is None:
            raise SpaceError(f'the recipe gives no {parameter.name} for "{source or "the merge"}"')
        return parameter.default

    def _resolve(self, setting: Setting | None, place: _Place, t: float) -> Scalar | None:
        if not self.space.grid.smooth or setting is None:
            return resolve(setting, place.tensor, t)
        # Of a gradient with one value per layer group the very value, which interpolation would round.
        conditions = setting if isinstance(setting, list) else [setting]
        if any(isinstance(c, Condition) for c in conditions):
            hit = next((c for c in conditions if isinstance(c, Condition) and c.matches(place.tensor)), None)
            return None if hit is None else self._resolve(hit.value, place, t)
        if len(conditions) == 1:
            return resolve(conditions[0], place.tensor, t)
        if len(conditions) != len(self.space.grid.groups):
            groups = len(self.space.grid.groups)
            raise SpaceError(f"the recipe has a gradient of {len(conditions)} values, the space of {groups}")
        return resolve(conditions[place.group], place.tensor, t)

    def _levels(
        self, parameter: MethodParameter, source: str, layer: int
    ) -> tuple[list[Parameters | None] | None, float]:
        """The settings that apply, the winner first, and the layer's place in its slice; None: no such source."""
        piece, first, end = self._slice(layer)
        t = (layer - first) / (end - 1 - first) if end - first > 1 else 1.0
        below = [piece.parameters if piece else None, self.recipe.parameters]
        if not parameter.per_source:
            return below, t
        inputs: list[InputSlice] | list[InputModel] = piece.sources if piece else list(self.recipe.models or ())
        found = next((i for i in inputs if self.source_of.get(str(_same(i.model))) == source), None)
        return (None if found is None else [found.parameters, *below]), t

    def _slice(self, layer: int) -> tuple[OutputSlice | None, int, int]:
        for piece in self.recipe.slices or ():
            first, end = piece.sources[0].layer_range
            if first <= layer < end:
                return piece, first, end
        return None, 0, self.space.num_layers


def _number(parameter: MethodParameter, value: Scalar) -> float:
    try:
        return float(value) if parameter.kind == "bool" else number(value)
    except (RecipeError, ValueError):
        raise SpaceError(f"the recipe's {parameter.name} = {value!r}: expected a number") from None


def _as_task_vectors(space: Space, recipe: Recipe) -> Recipe:
    """A normalised linear merge of whole models as task arithmetic: sum w W / sum w = W_0 + sum (w / sum w) delta."""
    methods = space.config.method
    if recipe.merge_method != "linear" or "linear" in methods or "task_arithmetic" not in methods or not recipe.models:
        return recipe
    if recipe.base_model is not None and _same(recipe.base_model) != space.config.base_model:
        return recipe
    top = recipe.parameters or {}
    weights: list[float] = []
    for model in recipe.models:
        setting = (model.parameters or {}).get("weight", top.get("weight"))
        if not isinstance(setting, int | float) or isinstance(setting, bool):
            return recipe
        weights.append(float(setting))
    total = sum(weights) if top.get("normalize", True) else 1.0
    if not total or (not top.get("normalize", True) and not math.isclose(sum(weights), 1.0)):
        return recipe
    models = [
        InputModel(model=m.model, parameters={"weight": w / total})
        for m, w in zip(recipe.models, weights, strict=True)
        if _same(m.model) != space.config.base_model  # the base's share is what the others leave
    ]
    return recipe.model_copy(
        update={
            "merge_method": "task_arithmetic",
            "models": models,
            "base_model": space.config.base_model,
            "parameters": None,
        }
    )
