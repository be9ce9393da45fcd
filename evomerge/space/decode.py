"""Parameters -> recipe: the inverse of `encode`, for one merge method of a space.

All recipes of a method are one form with other numbers in it. The form is made once, and checked as every recipe is.
What goes into it later are values of the space's parameters, whose bounds were held against the method's when the space
was read; to check each candidate's recipe again as a whole took most of the time that the driver has for it.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, TypeVar

from evomerge.methods import Method
from evomerge.recipe import Condition, Extras, InputModel, InputSlice, OutputSlice, Parameters, Recipe, Scalar, Setting
from evomerge.score import Value

if TYPE_CHECKING:
    from evomerge.space.space import Gene, Space

Numbers = Mapping[str, Scalar]
# Of the tensors that each condition's filter matches first (None: all others) the parameters whose values they have:
# one, or those of all layer groups where values are interpolated over the layers.
Layout = tuple[tuple[Condition, tuple[str, ...]], ...]
# Where the values of a source's, a slice's or a recipe's `parameters:` stand.
Layouts = Mapping[str, Layout]
Holder = TypeVar("Holder", InputModel, InputSlice, OutputSlice, Recipe)


class Decoder:
    """The recipes of one method of a space: plain mergekit YAML, `models:` for one layer group, else slices."""

    def __init__(self, space: Space, method: Method) -> None:
        self._space, self._method = space, method
        genes = [g for g in space.genes.values() if method.parameter(g.parameter)]
        of_source = [g for g in genes if g.axes and _per_source(g, method)]
        of_slice = [g for g in genes if g.axes and not _per_source(g, method)]
        slices = range(space.grid.slices)
        self._sources = [[self._layouts(of_source, name, i) for name in space.names] for i in slices]
        self._slices = [self._layouts(of_slice, "", i) for i in slices]
        self._top: dict[str, Layout] = {g.parameter: ((_of(None), (g.name("", ""),)),) for g in genes if not g.axes}
        self._form = self._checked(_numbers(space.initial()))

    def __call__(self, params: Mapping[str, Value], seed: int) -> Recipe:
        """The recipe of parameters that have been checked."""
        form, numbers = self._form, _numbers(params)
        extras, top = Extras(seed=seed, into=self._space.config.into), self._top
        if form.models is not None:
            models = [_filled(m, own, numbers) for m, own in zip(form.models, self._sources[0], strict=True)]
            return _filled(form, {**top, **self._slices[0]}, numbers, models=models, evomerge=extras)
        assert form.slices is not None
        slices = []
        for piece, layouts, own in zip(form.slices, self._slices, self._sources, strict=True):
            # A base, which has no parameters, stands behind the sources.
            sources = [*map(_filled, piece.sources, own, [numbers] * len(own)), *piece.sources[len(own) :]]
            slices.append(_filled(piece, layouts, numbers, sources=sources))
        return _filled(form, top, numbers, slices=slices, evomerge=extras)

    def _checked(self, numbers: Numbers) -> Recipe:
        config, grid, method = self._space.config, self._space.grid, self._method
        base = config.base_model if method.apart else None
        top = _values(self._top, numbers)
        fixed = self._space.fixed.items()
        top |= {n: _scalar(v) for n, v in fixed if v is not None and method.parameter(n)}
        models: list[InputModel] | None = None
        slices: list[OutputSlice] | None = None
        if grid.slices == 1:
            models = [
                InputModel(model=s.model, parameters=_values(own, numbers) or None)
                for s, own in zip(config.sources, self._sources[0], strict=True)
            ]
            top |= _values(self._slices[0], numbers)
        else:
            slices = []
            for group, layouts, sources in zip(grid.groups, self._slices, self._sources, strict=True):
                layers = (group.first, group.end)
                inputs = [
                    InputSlice(model=s.model, layer_range=layers, parameters=_values(own, numbers) or None)
                    for s, own in zip(config.sources, sources, strict=True)
                ]
                if base is not None:
                    inputs.append(InputSlice(model=base, layer_range=layers))
                slices.append(OutputSlice(sources=inputs, parameters=_values(layouts, numbers) or None))
        return Recipe(
            merge_method=method.name,
            models=models,
            slices=slices,
            base_model=base,
            parameters=top or None,
            dtype=config.dtype,
            out_dtype=config.out_dtype,
            tokenizer_source=config.tokenizer_source,
            evomerge=Extras(),
        )

    def _layouts(self, genes: list[Gene], source: str, slice_: int) -> Layouts:
        return {g.parameter: self._layout(g, source, slice_) for g in genes}

    def _layout(self, gene: Gene, source: str, slice_: int) -> Layout:
        """Where the values for one source and slice stand, with filters only where its parts differ."""
        grid = self._space.grid

        def over_layers(part: str) -> tuple[str, ...]:
            groups = range(len(grid.groups)) if grid.smooth else [slice_]
            names = tuple(gene.name(source, grid.position(gene.axes, g, part)) for g in groups)
            return names if len(set(names)) > 1 else names[:1]

        entries = grid.entries(slice_)
        if len({grid.position(gene.axes, slice_, e.part) for e in entries}) == 1:
            entries = entries[-1:]
        return tuple((_of(e.filter), over_layers(e.part)) for e in entries)


def _of(filter_: str | None) -> Condition:
    """A condition that waits for its value."""
    return Condition(filter=filter_, value=0.0)


def _scalar(value: Value | bool) -> Scalar:
    """Numbers of a recipe are floats, so that equal recipes read equal."""
    return value if isinstance(value, bool | str) else float(value)


def _numbers(params: Mapping[str, Value]) -> Numbers:
    return {name: _scalar(value) for name, value in params.items()}


def _per_source(gene: Gene, method: Method) -> bool:
    taken = method.parameter(gene.parameter)
    return taken is not None and taken.per_source


def _values(layouts: Layouts, numbers: Numbers) -> Parameters:
    return {name: _setting(layout, numbers) for name, layout in layouts.items()}


def _setting(layout: Layout, numbers: Numbers) -> Setting:
    def value(names: tuple[str, ...]) -> Scalar | list[Scalar]:
        return numbers[names[0]] if len(names) == 1 else [numbers[name] for name in names]

    if len(layout) == 1:
        return value(layout[0][1])
    return [condition.unchecked_copy(value=value(names)) for condition, names in layout]


def _filled(holder: Holder, layouts: Layouts, numbers: Numbers, **more: Any) -> Holder:
    """A copy with these numbers, which are not checked, in the places of its own."""
    if layouts:
        more["parameters"] = {**(holder.parameters or {}), **_values(layouts, numbers)}
    return holder.unchecked_copy(**more) if more else holder
