"""The value of every parameter for every tensor: source before slice before module before the whole recipe."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from typing import Any

from evomerge.header import FLOATS
from evomerge.merging.plan import Input, TensorPlan, Value
from evomerge.merging.structure import Piece, Row
from evomerge.methods import METHODS, Parameter
from evomerge.recipe import Condition, Parameters, Recipe, Scalar, Setting, number, resolve
from evomerge.sources import Source

# mergekit's names of types -> safetensors'.
DTYPES = {"float32": "F32", "float16": "F16", "bfloat16": "BF16", "float64": "F64"}
# What may give a parameter's value, in the order of precedence.
Chain = tuple[Setting, ...]
_SUMS = "sums"


def promoted(dtypes: Collection[str]) -> str:
    """The narrowest type that holds all of the given ones: of bfloat16 and float16, float32."""
    first, *others = dtypes
    if not others:
        return first
    return "F64" if "F64" in dtypes else "F32"


class Resolver:
    """Turns the rows of a structure into tensor plans.

    A candidate of a search is resolved for hundreds of tensors, but most of its numbers are the same for all of them or
    for all of one layer: those are worked out once.

    Args:
        sums: Whether weights that sum to 0 and are divided by that are a problem here; else building it fails.
    """

    def __init__(
        self, recipe: Recipe, sources: Mapping[str, Source], pieces: Sequence[Piece], *, sums: bool = False
    ) -> None:
        self.problems: list[str] = []
        self.recipe = recipe
        self.sources = sources
        self.sums = sums
        self.method = METHODS[recipe.merge_method]
        self.pieces = [_Resolved(self, piece) for piece in pieces]
        asked = recipe.out_dtype or recipe.dtype
        self.dtype = DTYPES[asked] if asked else None
        self.copied_dtype = DTYPES[recipe.out_dtype] if recipe.out_dtype else None
        self._lacking: set[str] = set()
        # By the setting's identity: the recipe holds them all.
        self._known: dict[tuple[int, float], Scalar | None] = {}

    def tensor(self, row: Row) -> TensorPlan:
        """The plan of one output tensor."""
        if row.copied:
            return TensorPlan(row.name, (row.inputs[row.base or 0],), None, {}, row.shape, self._dtype(row), True)
        values = self.pieces[row.piece].values(row)
        if row.base is None:
            return TensorPlan(row.name, row.inputs, None, values, row.shape, self._dtype(row))
        base = row.inputs[row.base]
        inputs = row.inputs[: row.base] + row.inputs[row.base + 1 :]
        if not inputs:
            return TensorPlan(row.name, (base,), None, values, row.shape, self._dtype(row), True)
        return TensorPlan(row.name, inputs, base, values, row.shape, self._dtype(row), layer=row.layer)

    def _dtype(self, row: Row) -> str:
        read = (row.inputs[row.base or 0],) if row.copied else row.inputs
        own = promoted({self.sources[i.model].tensors[i.tensor].dtype for i in read})
        # What is not merged is not computed in `dtype` either.
        asked = self.copied_dtype if row.copied else self.dtype
        return asked if asked and own in FLOATS else own

    def value(self, parameter: Parameter, chain: Chain, tensor: str, t: float, model: str | None) -> Any:
        """The first value that applies, or the default; one that is lacking is noted as a problem."""
        for setting in chain:
            value = self._resolved(setting, tensor, t)
            if value is not None:
                if parameter.kind in ("bool", "choice"):
                    return bool(value) if parameter.kind == "bool" else str(value)
                return int(number(value)) if parameter.kind == "int" else number(value)
        if parameter.default is None:
            self._lack(parameter.name, tensor, model)
            return 0.0
        return parameter.default

    def check(self, values: Mapping[str, Value], tensor: str) -> None:
        """Note what is wrong with the parameters of one tensor together, once for each problem."""
        for problem in self.method.check(values) if self.method.check else ():
            if problem not in self._lacking:
                self._lacking.add(problem)
                self.problems.append(f'merge_method "{self.method.name}", tensor "{tensor}": {problem}')
        # Of weights that sum to 0 the first tensor is told alone: a gradient has other weights in every layer.
        if self.sums and self.method.check_sum and _SUMS not in self._lacking and not self.problems:
            for problem in self.method.check_sum(values):
                self._lacking.add(_SUMS)
                self.problems.append(f'merge_method "{self.method.name}", tensor "{tensor}": {problem}')

    def _resolved(self, setting: Setting, tensor: str, t: float) -> Scalar | None:
        """`resolve`, with what a scalar or a gradient gives at t remembered: many tensors ask for the same."""
        if _filtered(setting):
            entries = setting if isinstance(setting, list) else [setting]
            entry = next((e for e in entries if isinstance(e, Condition) and e.matches(tensor)), None)
            if entry is None:
                return None
            setting = entry.value
        key = (id(setting), t)
        if key not in self._known:
            self._known[key] = resolve(setting, tensor, t)
        return self._known[key]

    def _lack(self, name: str, tensor: str, model: str | None) -> None:
        who = f'"{model}"' if model else "the recipe"
        if f"{name} {who}" not in self._lacking:
            self._lacking.add(f"{name} {who}")
            hint = ""
            if model is not None and model == self.recipe.base_model:
                hint = " (a base_model is merged too: give it a weight, or remove it)"
            self.problems.append(
                f'merge_method "{self.method.name}" needs "{name}", and {who} has none for tensor "{tensor}"{hint}'
            )


class _Resolved:
    """The parameters of one piece."""

    def __init__(self, resolver: Resolver, piece: Piece) -> None:
        self.resolver = resolver
        self.models = [(i, s.model) for i, s in enumerate(piece.sources) if i != piece.base]
        own = {i: [s.parameters] if s.parameters else [] for i, s in enumerate(piece.sources)}
        self.columns: list[tuple[str, Parameter, list[Chain]]] = []
        for parameter in resolver.method.parameters:
            keyword = parameter.name + "_" if parameter.name == "lambda" else parameter.name
            if parameter.per_source:
                chains = [_chain(parameter.name, [*own[i], *piece.levels]) for i, _ in self.models]
            else:
                chains = [_chain(parameter.name, piece.levels)]
            self.columns.append((keyword, parameter, chains))
        settings = [s for _, _, chains in self.columns for chain in chains for s in chain]
        self.by_name = any(_filtered(s) for s in settings)
        self.by_layer = any(isinstance(s, list) for s in settings)
        self._known: dict[float, dict[str, Value]] = {}

    def values(self, row: Row) -> Mapping[str, Value]:
        """Every parameter for one row, by the keyword of the method's function."""
        if self.by_name:
            return self._worked_out(row.inputs, row)
        t = row.t if self.by_layer else 0.0
        found = self._known.get(t)
        if found is None:
            found = self._known[t] = self._worked_out(row.inputs, row)
        return found

    def _worked_out(self, inputs: tuple[Input, ...], row: Row) -> dict[str, Value]:
        values: dict[str, Value] = {}
        value = self.resolver.value
        for keyword, parameter, chains in self.columns:
            if parameter.per_source:
                values[keyword] = tuple(
                    value(parameter, chain, inputs[i].tensor, row.t, model)
                    for (i, model), chain in zip(self.models, chains, strict=True)
                )
            else:
                values[keyword] = value(parameter, chains[0], row.name, row.t, None)
        self.resolver.check(values, row.name)
        return values


def _chain(name: str, levels: Sequence[Parameters]) -> Chain:
    """The settings that may give a parameter's value; nothing stands behind one that always does."""
    found: list[Setting] = []
    for level in levels:
        if name in level:
            found.append(level[name])
            if not _filtered(level[name]):
                break
    return tuple(found)


def _filtered(setting: Setting) -> bool:
    return isinstance(setting, Condition) or (
        isinstance(setting, list) and bool(setting) and isinstance(setting[0], Condition)
    )
