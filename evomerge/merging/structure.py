"""The shape of a merge: which tensors of which sources meet in which output tensor. Numbers play no part in it.

All candidates of a search share it, so it is worked out once per shape.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from evomerge.errors import RecipeError, choose
from evomerge.merging.layout import Layout
from evomerge.merging.plan import Input
from evomerge.methods import METHODS
from evomerge.recipe import InputSlice, OutputSlice, Parameters, Recipe
from evomerge.sources import Source, check_fit

# Names under which `modules:` may speak of a text model's only module.
TEXT_MODULES = ("default", "text_decoder", "language_model", "model")


@dataclass(frozen=True)
class Row:
    """One output tensor before its parameters are known.

    Attributes:
        inputs: The sources' tensors in the recipe's order, the base included where it is one of them.
        base: Place of the base in `inputs`, or None.
        piece: Number of the output slice whose parameters apply.
        t: Place in the slice from 0 to 1, for gradients.
        origin: The donor's tensor that decides the output's type.
    """

    name: str
    inputs: tuple[Input, ...]
    base: int | None
    piece: int
    t: float
    shape: tuple[int, ...]
    is_float: bool
    origin: str


@dataclass(frozen=True)
class Structure:
    """The output tensors in order, the donor of the configuration, and each output layer's origin."""

    rows: tuple[Row, ...]
    donor: str
    layers: tuple[tuple[str, int], ...]


Key = tuple[object, ...]


def key_of(recipe: Recipe) -> Key:
    """What two recipes of one structure have in common."""
    pieces: list[object] = []
    if recipe.models:
        pieces = [m.model for m in recipe.models]
    for piece in output_slices(recipe):
        pieces.append((piece.base_model, *((s.model, s.layer_range) for s in piece.sources)))
    for module in (recipe.modules or {}).values():
        pieces += [m.model for m in module.models or ()]
    return (recipe.merge_method, recipe.base_model, tuple(recipe.modules or ()), *pieces)


def output_slices(recipe: Recipe) -> list[OutputSlice]:
    """The slices as written, of the recipe or of its only module."""
    if recipe.modules:
        return [s for m in recipe.modules.values() for s in m.slices or ()]
    return list(recipe.slices or ())


def pieces_of(recipe: Recipe, sources: Mapping[str, Source]) -> list[OutputSlice]:
    """The recipe as slices: `models:` is one slice over all layers; a base that is not listed is added at the end.

    For `models:` the base is added whenever it is given and the method takes one (as mergekit does); for `slices:`
    where the method needs one and all sources have the same layer range.
    """
    method = METHODS[recipe.merge_method]
    models = recipe.models or [m for module in (recipe.modules or {}).values() for m in module.models or ()]
    if models:
        listed = [
            InputSlice(model=m.model, layer_range=(0, sources[m.model].num_layers), parameters=m.parameters)
            for m in models
        ]
        base = recipe.base_model
        if base and method.base != "none" and base not in [s.model for s in listed]:
            listed.append(InputSlice(model=base, layer_range=(0, sources[base].num_layers)))
        return [OutputSlice.model_construct(sources=listed, base_model=None, parameters=None)]
    pieces = []
    for piece in output_slices(recipe):
        base = piece.base_model or recipe.base_model
        ranges = list(dict.fromkeys(s.layer_range for s in piece.sources))
        if base and method.base == "required" and len(ranges) == 1 and base not in [s.model for s in piece.sources]:
            added = [*piece.sources, InputSlice(model=base, layer_range=ranges[0])]
            piece = piece.model_copy(update={"sources": added})
        pieces.append(piece)
    return pieces


def module_parameters(recipe: Recipe) -> Parameters | None:
    """Parameters of the recipe's only module, where it is written with `modules:`."""
    return next((m.parameters for m in (recipe.modules or {}).values()), None)


def build(recipe: Recipe, sources: Mapping[str, Source]) -> Structure:
    """Work out the structure of a recipe.

    Raises:
        SourceError: the sources do not fit each other.
        RecipeError: every structural problem, one line each.
    """
    problems = list(_module_problems(recipe, sources))
    if problems:
        raise RecipeError("\n".join(problems))
    named = [sources[r] for r in recipe.references()]
    by_name = recipe.models or any(m.models for m in (recipe.modules or {}).values())
    check_fit(named, layers=bool(by_name))
    pieces = pieces_of(recipe, sources)
    problems = [p for i, piece in enumerate(pieces) for p in _piece_problems(recipe, piece, i, len(pieces), sources)]
    if problems:
        raise RecipeError("\n".join(problems))
    layouts = {s.reference: Layout.of(s.tensors, s.num_layers, s.reference) for s in named}
    rows: list[Row] = []
    layers: list[tuple[str, int]] = []
    donor = recipe.base_model or recipe.references()[0]
    out = layouts[donor]
    names = sources[donor].merged_tensors

    def row(name: str, tensors: list[str], piece: int, t: float, origin: str) -> Row:
        listed = pieces[piece].sources
        base = _base_place(recipe, pieces[piece])
        inputs = tuple(Input(s.model, tensor) for s, tensor in zip(listed, tensors, strict=True))
        for item in inputs:
            if item.tensor not in sources[item.model].tensors:
                problems.append(f'"{item.model}" has no tensor "{item.tensor}", which becomes "{name}"')
        model = sources[inputs[base or 0].model]
        info = model.tensors.get(inputs[base or 0].tensor, next(iter(names.values())))
        for item in inputs:
            other = sources[item.model].tensors.get(item.tensor, info)
            if other.shape != info.shape:
                shapes = f"{list(other.shape)} against {list(info.shape)}"
                problems.append(f'"{name}": "{item.tensor}" of "{item.model}" has shape {shapes}')
        return Row(name, inputs, base, piece, t, info.shape, info.is_float, origin)

    last = len(pieces) - 1
    rows += [row(n, [n] * len(pieces[0].sources), 0, 0.0, n) for n in names if out.place(n) == "before"]
    for i, piece in enumerate(pieces):
        first, end = piece.sources[0].layer_range
        lead = piece.sources[_base_place(recipe, piece) or 0]
        lead_layout, lead_names = layouts[lead.model], sources[lead.model].merged_tensors
        for step in range(end - first):
            t = step / (end - first - 1) if end - first > 1 else 1.0
            at = lead.layer_range[0] + step
            for name in lead_layout.inside(lead_names, at):
                # Layouts of sources that fit have one prefix, unless one was saved without its base prefix.
                bare = lead_layout.bare(name)
                inputs = [layouts[s.model].named(bare, s.layer_range[0] + step) for s in piece.sources]
                origin = out.named(bare, min(at, out.num_layers - 1))
                rows.append(row(out.named(bare, len(layers)), inputs, i, t, origin))
            layers.append((lead.model, at))
    rows += [row(n, [n] * len(pieces[last].sources), last, 1.0, n) for n in names if out.place(n) == "after"]
    if problems:
        raise RecipeError("\n".join(problems[:20]))
    return Structure(tuple(rows), donor, tuple(layers))


def _base_place(recipe: Recipe, piece: OutputSlice) -> int | None:
    """Place of the base among a slice's sources, where the method treats it apart."""
    if METHODS[recipe.merge_method].base != "required":
        return None
    base = piece.base_model or recipe.base_model
    return next((i for i, s in enumerate(piece.sources) if s.model == base), None)


def _module_problems(recipe: Recipe, sources: Mapping[str, Source]) -> Iterator[str]:
    if recipe.modules is None:
        return
    composite = [r for r in recipe.references() if sources[r].text_config is not sources[r].config]
    if len(recipe.modules) > 1 or composite:
        yield "modules: composite models (vision and language) are not supported yet; name one module of a text model"
    for name in recipe.modules:
        if name not in TEXT_MODULES:
            yield f'modules: unknown module "{name}"; {choose(name, TEXT_MODULES)}'


def _piece_problems(
    recipe: Recipe, piece: OutputSlice, number: int, of: int, sources: Mapping[str, Source]
) -> Iterator[str]:
    method = METHODS[recipe.merge_method]
    where = f"slices[{number}]" if recipe.slices or of > 1 else "models"
    base = piece.base_model or recipe.base_model
    models = [s.model for s in piece.sources]
    for s in piece.sources:
        have = sources[s.model].num_layers
        if s.layer_range[1] > have:
            yield f'{where}: layer_range {list(s.layer_range)} of "{s.model}": the model has layers 0 to {have} (end)'
    if method.base == "required":
        if base is None:
            yield f'{where}: merge_method "{method.name}" needs a base_model'
        elif base not in models:
            yield (
                f'{where}: base_model "{base}" is not among the sources, whose layer ranges differ; list it with '
                "the range that it is to have"
            )
        elif models.count(base) > 1:
            yield f'{where}: base_model "{base}" is listed {models.count(base)} times'
    if method.models is not None and len(models) != method.models:
        counted = ", the base counted" if method.base == "required" else ""
        yield f'{where}: merge_method "{method.name}" takes {method.models} model(s){counted}; got {len(models)}'
