"""What paths are made of: layers of the sources, their embeddings and heads. Both encodings stand on it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from evomerge.errors import SpaceError, choose
from evomerge.recipe import Condition, Path, Recipe
from evomerge.score import Value
from evomerge.space.dataflow import KEYS, DataflowConfig
from evomerge.space.shape import Shape
from evomerge.space.source import reference

EMBEDDINGS, HEAD = "embeddings", "head"
# A layer by the short name of its source and its number there.
Layer = tuple[str, int]


class Pool:
    """The sources of a data-flow space.

    Attributes:
        names: Their short names.
        num_layers: Of each, by name.
        ends: Names of the sources that may give the embeddings, and the head where it is not tied to them.

    Raises:
        SpaceError: scales that a source cannot have, or a choice of the head where it is tied.
    """

    def __init__(self, config: DataflowConfig, shapes: Mapping[str, Shape]) -> None:
        self.config = config
        self.names = tuple(s.name for s in config.sources)
        of = {s.name: shapes[s.model] for s in config.sources}
        self._model = {s.name: s.model for s in config.sources}
        self._name = {s.model: s.name for s in config.sources}
        self._writers = of[self.names[0]].writers
        self.num_layers = {name: shape.num_layers for name, shape in of.items()}
        self.tied = any(shape.tied for shape in of.values())
        self.ends = {EMBEDDINGS: config.embeddings or self.names}
        if not self.tied:
            self.ends[HEAD] = config.head or self.names
        elif config.head is not None:
            raise SpaceError("head: the output heads of these models are tied to their embeddings; leave it out")
        for name, shape in of.items():
            if shape.unscalable is not None and config.scale.value is None:
                raise SpaceError(f'scale: source "{name}" takes none but 1: {shape.unscalable}; write scale: 1')

    @property
    def layers(self) -> tuple[Layer, ...]:
        """Every layer of every source, in order."""
        return tuple((name, layer) for name in self.names for layer in range(self.num_layers[name]))

    @property
    def choices(self) -> dict[str, tuple[str, ...]]:
        """The ends that more than one source may give."""
        return {end: names for end, names in self.ends.items() if len(names) > 1}

    def recipe(self, layers: Sequence[Layer], scales: Sequence[float], ends: Mapping[str, Value], seed: int) -> Recipe:
        """The recipe of a path with these input scales; `ends` names the source of each end that is a choice."""
        chosen = {end: self._model[str(ends.get(end, names[0]))] for end, names in self.ends.items()}
        hops = [(self._model[name], layer) for name, layer in layers]
        path = Path.scaled(hops, scales, chosen[EMBEDDINGS], chosen.get(HEAD))
        return path.recipe(self._writers, dtype=self.config.dtype, out_dtype=self.config.out_dtype, seed=seed)

    def read(self, recipe: Recipe) -> tuple[list[Layer], tuple[float, ...], dict[str, str]]:
        """Layers and scales of a recipe's hops, and the source of each end that is a choice.

        Raises:
            SpaceError: it is no path, or one with layers, ends or a depth that the space does not have.
        """
        path = Path.read(recipe)
        if path is None:
            raise SpaceError(
                f"the recipe (merge_method {recipe.merge_method}) is no path over layers: expected passthrough slices "
                "of one model each, with no tokenizer of their own and no scale but that of what layers write to the "
                "residual stream"
            )
        self._check_filters(recipe)
        layers = [(self._known(hop.model), hop.layer) for hop in path.hops]
        for name, layer in layers:
            if layer >= self.num_layers[name]:
                raise SpaceError(f'the recipe has layer {layer} of "{name}", which has {self.num_layers[name]} layers')
        depth = self.config.depth
        if len(layers) < depth.low or len(layers) > (depth.high or len(layers)):
            raise SpaceError(f"the recipe's path has {len(layers)} layers, the space's have {depth.words()}")
        ends = {EMBEDDINGS: self._known(path.embeddings), HEAD: self._known(path.head)}
        if self.tied and ends[HEAD] != ends[EMBEDDINGS]:
            raise SpaceError(
                f'the recipe has the embeddings of "{ends[EMBEDDINGS]}" and the final norm of "{ends[HEAD]}"; where '
                "heads are tied, the space takes both from one source"
            )
        for end, names in self.ends.items():
            if ends[end] not in names:
                raise SpaceError(f'the recipe has the {end} of "{ends[end]}"; {choose(ends[end], names)}')
        return layers, path.scales, {end: ends[end] for end in self.choices}

    def _known(self, model: str) -> str:
        name = self._name.get(reference(model))
        if name is None:
            raise SpaceError(f'the recipe\'s model "{model}" is not in the space; {choose(model, list(self._name))}')
        return name

    def _check_filters(self, recipe: Recipe) -> None:
        """The scaled tensors must be all those that write to the residual stream, and no others."""
        for piece in recipe.slices or ():
            settings = (piece.sources[0].parameters or {}).get("scale")
            found = {c.filter for c in settings if isinstance(c, Condition)} if isinstance(settings, list) else set()
            if found and found - {None, "*"} != set(self._writers):
                given = ", ".join(sorted(f for f in found if f not in (None, "*")))
                raise SpaceError(f"the recipe scales {given}; a path's scale is that of {', '.join(self._writers)}")

    def fingerprint(self) -> dict[str, Any]:
        """What makes paths over these sources these paths, as plain data."""
        others = {key for encoding, keys in KEYS.items() if encoding != self.config.encoding for key in keys}
        config = self.config.model_dump(mode="json", exclude={"name", EMBEDDINGS, HEAD, *others})
        ends = {end: list(names) for end, names in self.ends.items()}
        return {**config, **ends, "num_layers": dict(self.num_layers), "tied": self.tied}

    def describe(self) -> str:
        """The sources and the depth in words."""
        sources = ", ".join(f"{name} ({self.num_layers[name]} layers)" for name in self.names)
        return f"paths of {self.config.depth.words()} layers over {sources}"
