"""The shape of a merge: which tensors of which sources meet in which output tensor. Numbers play no part in it.

All candidates of a search share it, so it is worked out once per shape.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace

from evomerge.errors import RecipeError, SourceError
from evomerge.merging.modules import Module, donor_of, is_composite, modules_of
from evomerge.merging.plan import Input
from evomerge.methods import METHODS, Method
from evomerge.recipe import InputSlice, OutputSlice, Parameters, Recipe
from evomerge.sources import TEXT, Place, Source, check_fit

# A problem that every tensor shares is not worth more lines than that.
_SHOWN = 20


@dataclass(frozen=True)
class Row:
    """One output tensor before its parameters are known.

    Attributes:
        inputs: The sources' tensors in the recipe's order, the base included where it is one of them.
        base: Place of the base in `inputs`, or None.
        piece: Number of the piece whose parameters apply.
        t: Place in the slice from 0 to 1, for gradients.
        shape: Of the base's tensor, or else the first input's.
        copied: No merge: the first input as it is.
        layer: Which transformer block of the output it belongs to (module and number); empty outside of them.
    """

    name: str
    inputs: tuple[Input, ...]
    base: int | None
    piece: int
    t: float
    shape: tuple[int, ...]
    copied: bool
    layer: str = ""


@dataclass(frozen=True)
class Structure:
    """The output tensors in order, the donor of the configuration, and each output layer's origin."""

    rows: tuple[Row, ...]
    donor: str
    layers: tuple[tuple[str, int], ...]


@dataclass(frozen=True)
class Piece:
    """A run of output layers of one module, with what stands before the first and after the last.

    Attributes:
        base: Place of the base among the sources, where the method treats it apart.
        levels: Parameters that apply to all sources: the slice's before the module's before the recipe's.
    """

    module: str
    where: str
    sources: tuple[InputSlice, ...]
    base_model: str | None
    base: int | None
    levels: tuple[Parameters, ...]


Key = tuple[object, ...]


def key_of(recipe: Recipe) -> Key:
    """What two recipes of one structure have in common."""
    groups = [(name, m.models, m.slices) for name, m in (recipe.modules or {}).items()]
    return (
        recipe.merge_method,
        recipe.base_model,
        recipe.evomerge.into,
        *(
            (
                name,
                tuple(m.model for m in models or ()),
                tuple((p.base_model, *((s.model, s.layer_range) for s in p.sources)) for p in slices or ()),
            )
            for name, models, slices in (("", recipe.models, recipe.slices), *groups)
        ),
    )


def pieces_of(recipe: Recipe, sources: Mapping[str, Source]) -> list[Piece]:
    """The recipe as pieces: `models:` is one slice over all layers; a base that is not listed is added at the end.

    For `models:` the base is added whenever it is given and the method takes one (as mergekit does); for `slices:`
    where the method treats it apart and all sources have the same layer range.
    """
    method = METHODS[recipe.merge_method]
    found: list[Piece] = []
    for module in modules_of(recipe, sources):
        if module.models:
            found.append(_whole(recipe, method, module, sources))
        for number, piece in enumerate(module.slices):
            found.append(_sliced(recipe, method, module, piece, f"{module.where}slices[{number}]"))
    return found


def _whole(recipe: Recipe, method: Method, module: Module, sources: Mapping[str, Source]) -> Piece:
    def over_all(model: str, parameters: Parameters | None) -> InputSlice:
        layers = (0, sources[model].layout.layers_of(module.name))
        return InputSlice.model_construct(model=model, layer_range=layers, parameters=parameters)

    listed = [over_all(m.model, m.parameters) for m in module.models]
    base = recipe.base_model
    if base and method.base != "none" and base not in [s.model for s in listed]:
        listed.append(over_all(base, None))
    return _piece(recipe, method, module, listed, base, None, f"{module.where}models")


def _sliced(recipe: Recipe, method: Method, module: Module, piece: OutputSlice, where: str) -> Piece:
    listed = list(piece.sources)
    base = piece.base_model or recipe.base_model
    ranges = list(dict.fromkeys(s.layer_range for s in listed))
    if base and method.apart and len(ranges) == 1 and base not in [s.model for s in listed]:
        listed.append(InputSlice(model=base, layer_range=ranges[0]))
    return _piece(recipe, method, module, listed, base, piece.parameters, where)


def _piece(
    recipe: Recipe,
    method: Method,
    module: Module,
    listed: list[InputSlice],
    base: str | None,
    own: Parameters | None,
    where: str,
) -> Piece:
    place = next((i for i, s in enumerate(listed) if s.model == base), None) if method.apart else None
    levels = tuple(level for level in (own, module.parameters, recipe.parameters) if level)
    return Piece(module.name, where, tuple(listed), base, place, levels)


def build(recipe: Recipe, sources: Mapping[str, Source], *, vocabulary: bool = True) -> Structure:
    """Work out the structure of a recipe.

    Args:
        vocabulary: Whether the sources' vocabularies must agree. If not, tensors with a row for every token may differ
            in the number of rows; `Row.shape` is then the base's or first input's, and the tokenizer says the output's.

    Raises:
        SourceError: the sources do not fit each other.
        RecipeError: every structural problem, one line each.
    """
    modules = modules_of(recipe, sources)
    pieces = pieces_of(recipe, sources)
    problems: list[str] = []
    for module in modules:
        by_name = bool(module.models)
        own = [p.sources for p in pieces if p.module == module.name]
        named = list(dict.fromkeys(s.model for listed in own for s in listed))
        lacking = [r for r in named if module.name not in sources[r].layout.stacks]
        if lacking:
            has = ", ".join(sources[lacking[0]].layout.stacks)
            problems.append(f'{module.where.rstrip(".")}: "{lacking[0]}" has no {module.name}; it has {has}')
            continue
        try:
            # In a stack, the embeddings are the first slice's, the head the last's, and no other model's is used.
            stack = not by_name and all(len(listed) == 1 for listed in own)
            ends = [sources[own[0][0].model], sources[own[-1][0].model]] if stack else None
            fitting = [sources[r] for r in named]
            donor = sources[donor_of(recipe, sources)]
            kept = is_composite(donor)
            if kept and ends is not None and donor in fitting:
                ends.append(donor)  # whose configuration says how many tokens there are
            check_fit(fitting, layers=by_name, vocabulary=vocabulary, modules=[module.name], ends=ends)
            if kept and donor not in fitting:
                # Encoder, projector and configuration are of a model that is not merged: what is must go with them.
                check_fit([donor, ends[0] if ends else fitting[0]], layers=False, vocabulary=vocabulary,
                          modules=[module.name])  # fmt: skip
        except SourceError as e:
            problems.append(str(e))
    structural = [p for piece in pieces for p in _piece_problems(recipe, piece, sources)]
    if structural:
        raise RecipeError("\n".join(dict.fromkeys(problems + structural)))
    if problems:
        raise SourceError("\n".join(dict.fromkeys(problems)))
    return _Builder(recipe, sources, pieces, vocabulary).built(modules)


class _Builder:
    """Collects the rows of a structure, and the problems on the way."""

    def __init__(self, recipe: Recipe, sources: Mapping[str, Source], pieces: list[Piece], vocabulary: bool) -> None:
        self.sources = sources
        self.pieces = pieces
        self.vocabulary = vocabulary
        self.donor = donor_of(recipe, sources)
        self.out = sources[self.donor].layout
        self.problems: list[str] = []

    def built(self, modules: list[Module]) -> Structure:
        merged = {module.name for module in modules}
        rows: list[Row] = []
        layers: list[tuple[str, int]] = []
        for module in self.out.stacks:
            if module in merged:
                made, own = self._merged(module)
                rows += made
                layers = own if module == TEXT else layers
            else:
                rows += self._copied(module)
                layers = self._as_they_are() if module == TEXT else layers
        if self.problems:
            raise RecipeError("\n".join(dict.fromkeys(self.problems[:_SHOWN])))
        return Structure(tuple(rows), self.donor, tuple(layers))

    def _as_they_are(self) -> list[tuple[str, int]]:
        return [(self.donor, layer) for layer in range(self.out.num_layers)]

    def _places(self, module: str) -> list[Place]:
        kept = self.sources[self.donor].merged_tensors
        return [place for name, place in self.out.places.items() if name in kept and place.module == module]

    def _copied(self, module: str) -> Iterator[Row]:
        """A module that is not merged: the donor's, bit for bit."""
        for place in self._places(module):
            name = self.out.named(place)
            shape = self.sources[self.donor].tensors[name].shape
            yield Row(name, (Input(self.donor, name),), None, 0, 0.0, shape, True)

    def _merged(self, module: str) -> tuple[list[Row], list[tuple[str, int]]]:
        """The rows of a module, and where each of its output layers comes from."""
        numbers = [i for i, piece in enumerate(self.pieces) if piece.module == module]
        outside = [place for place in self._places(module) if place.layer is None]
        # Where there are no layers, there is no before and after.
        after = [place for place in outside if place.stage == "after" and self.out.layers_of(module)]
        first, last = numbers[0], numbers[-1]
        rows = [self._outside(place, first, 0.0) for place in outside if place not in after]
        layers: list[tuple[str, int]] = []
        for number in numbers:
            piece = self.pieces[number]
            start, end = piece.sources[0].layer_range
            lead = piece.sources[piece.base or 0]
            source = self.sources[lead.model]
            for step in range(end - start):
                t = step / (end - start - 1) if end - start > 1 else 1.0
                at = lead.layer_range[0] + step
                for place in source.layout.inside(module, at):
                    if source.layout.named(place) in source.merged_tensors:
                        rows.append(self._layered(place, number, step, t, len(layers)))
                layers.append((lead.model, at))
        if module != TEXT and len(layers) != self.out.layers_of(module):
            self.problems.append(
                f"{self.pieces[first].where}: {module} would have {len(layers)} layers instead of "
                f"{self.out.layers_of(module)}; only the {TEXT} can have another number of layers"
            )
        rows += [self._outside(place, last, 1.0) for place in after]
        return rows, layers

    def _outside(self, place: Place, piece: int, t: float) -> Row:
        name = self.out.named(place)
        return self._row(name, [place] * len(self.pieces[piece].sources), piece, t)

    def _layered(self, place: Place, piece: int, step: int, t: float, layer: int) -> Row:
        places = [Place(place.module, s.layer_range[0] + step, place.bare) for s in self.pieces[piece].sources]
        name = self.out.named(Place(place.module, layer, place.bare))
        return replace(self._row(name, places, piece, t), layer=f"{place.module} {layer}")

    def _row(self, name: str, places: list[Place], piece: int, t: float) -> Row:
        listed, base = self.pieces[piece].sources, self.pieces[piece].base
        inputs = []
        for source, place in zip(listed, places, strict=True):
            tensor = self.sources[source.model].layout.names.get(place)
            if tensor is None:
                self.problems.append(f'"{source.model}" has no tensor for "{name}" ({place.bare})')
                tensor = name
            inputs.append(Input(source.model, tensor))
        lead = inputs[base or 0]
        info = self.sources[lead.model].tensors.get(lead.tensor)
        for item, place in zip(inputs, places, strict=True):
            other = self.sources[item.model].tensors.get(item.tensor)
            if info is None or other is None:
                continue
            if other.is_float != info.is_float:
                types = f"{other.dtype} against {info.dtype}"
                self.problems.append(f'"{name}": "{item.tensor}" of "{item.model}" has type {types}')
            if other.shape == info.shape:
                continue
            if not self.vocabulary and place.by_token and other.shape[1:] == info.shape[1:]:
                continue
            shapes = f"{list(other.shape)} against {list(info.shape)}"
            self.problems.append(f'"{name}": "{item.tensor}" of "{item.model}" has shape {shapes}')
        shape, is_float = (info.shape, info.is_float) if info else ((), True)
        return Row(name, tuple(inputs), base, piece, t, shape, not is_float)


def _piece_problems(recipe: Recipe, piece: Piece, sources: Mapping[str, Source]) -> Iterator[str]:
    method = METHODS[recipe.merge_method]
    models = [s.model for s in piece.sources]
    for s in piece.sources:
        have = sources[s.model].layout.layers_of(piece.module)
        if s.layer_range[1] > have:
            yield (
                f'{piece.where}: layer_range {list(s.layer_range)} of "{s.model}": the model has {have} layers; '
                f"expected [first, end] within [0, {have}]"
            )
    if method.base == "required":
        if piece.base_model is None:
            yield f'{piece.where}: merge_method "{method.name}" needs a base_model'
        elif piece.base_model not in models:
            yield (
                f'{piece.where}: base_model "{piece.base_model}" is not among the sources, whose layer ranges differ; '
                "list it with the range that it is to have"
            )
    if method.apart and piece.base_model and models.count(piece.base_model) > 1:
        yield f'{piece.where}: base_model "{piece.base_model}" is listed {models.count(piece.base_model)} times'
    least, most = method.room
    count = len(models) - (piece.base is not None)
    if not least <= count <= (count if most is None else most):
        wanted = f"{least}" if most == least else f"at least {least}"
        beside = " beside the base_model" if method.apart and piece.base is not None else ""
        yield f'{piece.where}: merge_method "{method.name}" takes {wanted} model(s){beside}; got {count}'
