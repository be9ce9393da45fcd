"""From a recipe to its plan: structure once per shape of recipe, parameters for each candidate."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from evomerge.errors import RecipeError, choose
from evomerge.header import FLOATS
from evomerge.merging import structure, tokenizer
from evomerge.merging.plan import Plan, TensorPlan, Value
from evomerge.merging.structure import Row, Structure
from evomerge.methods import METHODS, Parameter
from evomerge.recipe import OutputSlice, Parameters, Recipe, number, resolve
from evomerge.sources import Source

# mergekit's names of types -> safetensors'.
DTYPES = {"float32": "F32", "float16": "F16", "bfloat16": "BF16", "float64": "F64"}
Levels = list[Parameters]


class Planner:
    """Plans recipes over a fixed set of sources."""

    def __init__(self, sources: Mapping[str, Source]) -> None:
        self.sources = sources
        self._structures: dict[structure.Key, Structure] = {}
        self._tokenizers: dict[tuple[str, ...], str] = {}

    def plan(self, recipe: Recipe) -> Plan:
        """Work out every output tensor.

        Raises:
            RecipeError: every problem of the recipe, one line each.
            SourceError: the sources do not fit each other.
        """
        unknown = [r for r in recipe.references() if r not in self.sources]
        if unknown:
            raise RecipeError("\n".join(f'model "{r}" is not open; {choose(r, list(self.sources))}' for r in unknown))
        key = structure.key_of(recipe)
        if key not in self._structures:
            self._structures[key] = structure.build(recipe, self.sources)
        found = self._structures[key]
        words = self._tokenizer(recipe, found.donor)
        resolver = _Resolver(recipe, self.sources, found.donor)
        tensors = tuple(resolver.tensor(row) for row in found.rows)
        if resolver.problems:
            raise RecipeError("\n".join(resolver.problems))
        return Plan(recipe, self.sources, tensors, found.donor, found.layers, words)

    def _tokenizer(self, recipe: Recipe, donor: str) -> str:
        key = (donor, str(recipe.tokenizer_source), str(recipe.tokenizer), str(recipe.chat_template),
               *recipe.references())  # fmt: skip
        if key not in self._tokenizers:
            self._tokenizers[key] = tokenizer.choose_source(recipe, self.sources, donor)
        return self._tokenizers[key]


class _Resolver:
    """Finds the value of every parameter: source before slice before module before the whole recipe."""

    def __init__(self, recipe: Recipe, sources: Mapping[str, Source], donor: str) -> None:
        self.problems: list[str] = []
        self.recipe = recipe
        self.sources = sources
        self.donor = sources[donor]
        self.method = METHODS[recipe.merge_method]
        self.pieces = structure.pieces_of(recipe, sources)
        self.wide: list[Levels] = [self._levels(recipe, piece) for piece in self.pieces]
        asked = recipe.out_dtype or recipe.dtype
        self.dtype = DTYPES[asked] if asked else None
        self._lacking: set[str] = set()

    @staticmethod
    def _levels(recipe: Recipe, piece: OutputSlice) -> Levels:
        levels = (piece.parameters, structure.module_parameters(recipe), recipe.parameters)
        return [level for level in levels if level]

    def tensor(self, row: Row) -> TensorPlan:
        """The plan of one output tensor."""
        apart = row.base is not None
        inputs = tuple(i for place, i in enumerate(row.inputs) if place != row.base) if apart else row.inputs
        base = row.inputs[row.base] if row.base is not None else None
        parameters: dict[str, Value] = {}
        for parameter in self.method.parameters:
            name = parameter.name + "_" if parameter.name == "lambda" else parameter.name
            if parameter.per_source:
                parameters[name] = tuple(
                    self._value(parameter, row, self._of(row, place) + self.wide[row.piece], item.tensor, item.model)
                    for place, item in enumerate(row.inputs)
                    if place != row.base
                )
            else:
                parameters[name] = self._value(parameter, row, self.wide[row.piece], row.name, None)
        copied = not row.is_float or not inputs
        if copied:
            inputs, base = ((base,) if base else inputs[:1]), None
        return TensorPlan(row.name, inputs, base, parameters, row.shape, self._dtype(row), copied)

    def _of(self, row: Row, place: int) -> Levels:
        own = self.pieces[row.piece].sources[place].parameters
        return [own] if own else []

    def _value(self, parameter: Parameter, row: Row, levels: Levels, tensor: str, model: str | None) -> Any:
        for level in levels:
            if parameter.name in level:
                value = resolve(level[parameter.name], tensor, row.t)
                if value is not None:
                    return bool(value) if parameter.kind == "bool" else number(value)
        if parameter.default is None:
            self._lack(parameter.name, tensor, model)
            return 0.0
        return parameter.default

    def _lack(self, name: str, tensor: str, model: str | None) -> None:
        who = f'"{model}"' if model else "the recipe"
        if f"{name} {who}" not in self._lacking:
            self._lacking.add(f"{name} {who}")
            hint = ""
            if model == self.recipe.base_model:
                hint = " (a base_model is merged too: give it a weight, or remove it)"
            self.problems.append(
                f'merge_method "{self.method.name}" needs "{name}", and {who} has none for tensor "{tensor}"{hint}'
            )

    def _dtype(self, row: Row) -> str:
        info = self.donor.tensors.get(row.origin)
        own = info.dtype if info else self.sources[row.inputs[0].model].tensors[row.inputs[0].tensor].dtype
        return self.dtype if self.dtype and own in FLOATS else own
