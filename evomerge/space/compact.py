"""Paths for small budgets: what is swapped, repeated, skipped and put in beside on one source's own path."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from evomerge.errors import SpaceError
from evomerge.recipe import Recipe
from evomerge.score import Value
from evomerge.space.align import Departures, align
from evomerge.space.dataflow import SIGMA, DataflowConfig
from evomerge.space.grid import PLACE, LayerGroup, layer_groups
from evomerge.space.parameters import Categorical, Integer, Parameter, check, initial
from evomerge.space.pool import Layer, Pool
from evomerge.space.shape import Shape
from evomerge.space.starts import Start, path_starts

NONE = "none"


class CompactSpace:
    """Genes on top of the first source's path. A position is one of its layers, or a group of consecutive ones.

    For every position p: `source.p` (whose layers of these numbers; no choice where no other source has them),
    `times.p` (how often it is passed: 0 is skipped) and `scale.p` (what the residual stream is multiplied by where the
    position begins, the first time). For k = 1, 2, ...: `insertion.k.layer`, put in after position
    `insertion.k.after`. Then the choices of `embeddings` and `head`. The start is the first source as it is.

    Depth bounds are kept by repair, in an order that spares the outer layers, which matter most:

    - too deep: insertions go, the last first; then repeats, then positions, from the middle of the path outwards;
    - too shallow: skipped positions come back, from the ends inwards; then positions are repeated, from the middle
      outwards.

    Attributes:
        config: The space as its file says it.
        names: Short names of the sources.
        positions: The first source's layers of each position.
        scales: The parameter of each position's scale; None where scales are fixed.
        insertable: Layers that may be put in, by the name of the choice.
        parameters: All of the above.
    """

    sampler = "evolution"
    sigma = SIGMA

    def __init__(self, config: DataflowConfig, shapes: Mapping[str, Shape]) -> None:
        self.config = config
        self.pool = Pool(config, shapes)
        self.names = self.pool.names
        self.positions = self._cut()
        depths = self.pool.num_layers
        self.choices = [tuple(n for n in self.names if depths[n] >= group.end) for group in self.positions]
        places = [group.first / depths[self.names[0]] for group in self.positions]
        self.scales = [
            config.scale.parameter(f"scale.{_label(group)}", place)
            for group, place in zip(self.positions, places, strict=True)
        ]
        self.insertable: dict[str, tuple[Layer, ...]] = {
            f"{name}:{_label(group)}": _layers(name, group) for name in self.names for group in self._groups(name)
        }
        self.parameters: tuple[Parameter, ...] = tuple(self._parameters(places))
        middle = (len(self.positions) - 1) / 2
        self._outwards = sorted(range(len(self.positions)), key=lambda p: (abs(p - middle), -p))
        self._check_depth()

    def _cut(self) -> tuple[LayerGroup, ...]:
        count, size = self.config.layer_groups, self.config.layers_per_group
        num_layers = self.pool.num_layers[self.names[0]]
        if count is not None and count > num_layers:
            raise SpaceError(f'layer_groups = {count}: the first source, "{self.names[0]}", has {num_layers} layers')
        return layer_groups(num_layers, count, 1 if count is None and size is None else size)

    def _groups(self, name: str) -> Iterator[LayerGroup]:
        """The layers of a source cut as the positions are; what it has more of in groups of the first one's size."""
        num_layers = self.pool.num_layers[name]
        shared = [group for group in self.positions if group.end <= num_layers]
        yield from shared
        end, size = (shared[-1].end if shared else 0), self.positions[0].end
        for first in range(end, num_layers, size):
            yield LayerGroup(first, min(first + size, num_layers))

    def _check_depth(self) -> None:
        depth = self.config.depth
        most = self.config.repeats * self.positions[-1].end
        if depth.low > most:
            raise SpaceError(f"depth.low = {depth.low}: without insertions a path has at most {most} layers")
        sizes = [len(layers) for layers in self.insertable.values()]
        if depth.high is not None and depth.high - depth.low + 1 < max(sizes):
            raise SpaceError(
                f"depth = {depth.words()}: leaves no room for groups of {max(sizes)} layers; expected high at least "
                f"{depth.low + max(sizes) - 1}"
            )

    def _parameters(self, places: list[float]) -> Iterator[Parameter]:
        labels = [_label(group) for group in self.positions]
        for label, names, place in zip(labels, self.choices, places, strict=True):
            if len(names) > 1:
                yield Categorical(f"source.{label}", names, names[0], place)
        for label, place in zip(labels, places, strict=True):
            yield Integer(f"times.{label}", 0, self.config.repeats, 1, place)
        yield from (p for p in self.scales if p is not None)
        count, last = self.config.insertions, len(self.positions) - 1
        for k in range(1, count + 1):
            if last:
                yield Integer(f"insertion.{k}.after", 0, last, k * last // (count + 1))
            yield Categorical(f"insertion.{k}.layer", (NONE, *self.insertable), NONE)
        for end, names in self.pool.choices.items():
            yield Categorical(end, names, names[0], PLACE[end])

    def initial(self) -> dict[str, Value]:
        """The starting value of every parameter, in their order: the first source's own path."""
        return initial(self.parameters)

    def starts(self) -> list[Start]:
        """See `SearchSpace.starts`."""
        return path_starts(self)

    def decode(self, params: Mapping[str, Value], seed: int = 0) -> Recipe:
        """The recipe of some parameters: a plain mergekit passthrough.

        Raises:
            SpaceError: a value is missing, unknown or out of bounds.
        """
        params = check(self.parameters, params)
        departures = self._repaired(self._departures(params))
        layers: list[Layer] = []
        scales: list[float] = []
        for p, group in enumerate(self.positions):
            own = _layers(departures.sources[p], group) * departures.times[p]
            scale = self.scales[p]
            layers += own
            scales += ([departures.scales.get(p, scale.init) if scale else 1.0] + [1.0] * (len(own) - 1)) if own else []
            for after, choice in departures.insertions:
                if after == p:
                    layers += self.insertable[choice]
                    scales += [1.0] * len(self.insertable[choice])
        return self.pool.recipe(layers, scales, params, seed)

    def _departures(self, params: Mapping[str, Value]) -> Departures:
        labels = [_label(group) for group in self.positions]
        insertions = [
            (int(params.get(f"insertion.{k}.after", 0)), str(params[f"insertion.{k}.layer"]))
            for k in range(1, self.config.insertions + 1)
        ]
        return Departures(
            sources=[str(params.get(f"source.{label}", self.names[0])) for label in labels],
            times=[int(params[f"times.{label}"]) for label in labels],
            scales={p: float(params[s.name]) for p, s in enumerate(self.scales) if s is not None},
            insertions=[(after, choice) for after, choice in insertions if choice != NONE],
        )

    def _repaired(self, found: Departures) -> Departures:
        """With as many layers as the depth bounds ask for (see the class)."""
        low, high = self.config.depth.low, self.config.depth.high
        sizes = [group.end - group.first for group in self.positions]
        times, insertions = list(found.times), list(found.insertions)

        def depth() -> int:
            put_in = sum(len(self.insertable[choice]) for _, choice in insertions)
            return put_in + sum(n * size for n, size in zip(times, sizes, strict=True))

        while high is not None and depth() > high:
            if insertions:
                insertions.pop()
                continue
            deepest = max(times) if max(times) > 1 else 1
            times[next(p for p in self._outwards if times[p] == deepest)] -= 1
        while depth() < low:
            skipped = [p for p in reversed(self._outwards) if not times[p]]
            again = [p for p in self._outwards if times[p] == min(times)]
            times[(skipped or again)[0]] += 1
        return Departures(found.sources, times, found.scales, insertions)

    def encode(self, recipe: Recipe) -> dict[str, Value]:
        """The parameters of a path, with the fewest departures from the first source's own.

        Raises:
            SpaceError: no swaps, repeats, skips, scales and insertions of this space make that path.
        """
        layers, scales, ends = self.pool.read(recipe)
        found = align(self, layers, scales)
        out = self.initial() | ends
        for p, group in enumerate(self.positions):
            label, scale = _label(group), self.scales[p]
            if f"source.{label}" in out:
                out[f"source.{label}"] = found.sources[p]
            out[f"times.{label}"] = found.times[p]
            if scale is not None:
                out[scale.name] = found.scales.get(p, scale.init)
        for k, (after, choice) in enumerate(found.insertions, 1):
            if f"insertion.{k}.after" in out:
                out[f"insertion.{k}.after"] = after
            out[f"insertion.{k}.layer"] = choice
        return out

    def fingerprint(self) -> dict[str, Any]:
        """What makes this space this space, as plain data; the file's name and way of writing do not count."""
        return self.pool.fingerprint()

    def describe(self) -> str:
        """One line for printing: what paths consist of, and where the number of parameters comes from."""
        kinds = ("source", "times", "scale", "insertion")
        counts = [f"{kind} {n}" for kind in kinds if (n := sum(p.name.startswith(f"{kind}.") for p in self.parameters))]
        counts += [f"{end} (1 of {len(names)})" for end, names in self.pool.choices.items()]
        words = f"{self.pool.describe()}, from {self.names[0]}'s own ({len(self.positions)} positions)"
        return f"{words}; {len(self.parameters)} parameters: {', '.join(counts)}"


def _label(group: LayerGroup) -> str:
    """`3`, or `4-7` for a group."""
    return f"{group.first}" if group.end - group.first == 1 else f"{group.first}-{group.end - 1}"


def _layers(name: str, group: LayerGroup) -> tuple[Layer, ...]:
    return tuple((name, layer) for layer in range(group.first, group.end))
