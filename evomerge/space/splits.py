"""Layer groups whose ends are searched: split points over depth as genes (as M2N2's, arXiv 2508.16204)."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass
from itertools import pairwise

from evomerge.errors import SpaceError
from evomerge.recipe import Recipe
from evomerge.score import Value
from evomerge.space.config import SpaceConfig
from evomerge.space.grid import LayerGroup
from evomerge.space.parameters import Integer, Parameter, check
from evomerge.space.space import Space

SPLIT = "split"


@dataclass(frozen=True)
class Segment(LayerGroup):
    """The layers between two split points, by number from 1."""

    number: int

    @property
    def name(self) -> str:
        """`segment_1`: its layers are not known before the split points."""
        return f"segment_{self.number}"


class SplitSpace(Space):
    """A space of K split points, `split.1` to `split.K`, and values for each of the K + 1 segments.

    A split point is the number of layers below it, from 0 to all. Which of them is the first does not matter: they are
    sorted. A segment between equal ones has no layers, and what stands for it changes nothing. In all else a candidate
    is one of the space whose layer groups are the segments.

    `grid` has the segments as if they were even: their names and order count, not their layers.
    """

    def __init__(self, config: SpaceConfig, num_layers: int, tensors: Collection[str] | None = None) -> None:
        self.splits = config.granularity.splits or 0
        if self.splits >= num_layers:
            raise SpaceError(f"granularity.splits = {self.splits}: the models have only {num_layers} layers")
        self._tensors = tensors
        edges = [k * num_layers // (self.splits + 1) for k in range(self.splits + 2)]
        super().__init__(config, num_layers, tensors, tuple(Segment(a, b, k) for k, (a, b) in _numbered(edges)))

    def _parameters(self) -> Iterator[Parameter]:
        for k in range(1, self.splits + 1):
            yield Integer(f"{SPLIT}.{k}", 0, self.num_layers, k * self.num_layers // (self.splits + 1))
        yield from super()._parameters()

    def boundaries(self, params: Mapping[str, Value]) -> tuple[int, ...]:
        """The split points in order."""
        return tuple(sorted(int(params[f"{SPLIT}.{k}"]) for k in range(1, self.splits + 1)))

    def decode(self, params: Mapping[str, Value], seed: int = 0) -> Recipe:
        """See `Space.decode`: one slice for each segment that has layers."""
        params = check(self.parameters, params)
        space, outer = self._cut((0, *self.boundaries(params), self.num_layers))
        return space.decode({p.name: params[outer[p.name]] for p in space.parameters}, seed)

    def encode(self, recipe: Recipe) -> dict[str, Value]:
        """See `Space.encode`: the recipe's slices are the first segments, the split points left over lie at the end.

        Raises:
            SpaceError: it has more slices than the space segments, or what does not fit the space with these slices.
        """
        edges = [0, self.num_layers]
        if recipe.slices:
            edges = [0, *(piece.sources[0].layer_range[1] for piece in recipe.slices)]
            if edges[-1] != self.num_layers or any(a >= b for a, b in pairwise(edges)):
                return super().encode(recipe)  # which says what is wrong with it
        if len(edges) - 2 > self.splits:
            raise SpaceError(
                f"the recipe has {len(edges) - 1} slices; with {self.splits} split points there are at most "
                f"{self.splits + 1}"
            )
        edges += [self.num_layers] * (self.splits + 2 - len(edges))
        space, outer = self._cut(edges)
        points = {f"{SPLIT}.{k}": edge for k, edge in enumerate(edges[1:-1], start=1)}
        return self.initial() | points | {outer[name]: value for name, value in space.encode(recipe).items()}

    def _cut(self, edges: Collection[int]) -> tuple[Space, dict[str, str]]:
        """The space with these layer groups, and what its parameters are called here."""
        segments = [Segment(a, b, k) for k, (a, b) in _numbered(edges) if a < b]
        space = Space(self.config, self.num_layers, self._tensors, tuple(segments))
        outer = {p.name: p.name for p in space.parameters}
        for gene in self.genes.values():
            for source in self.names if "source" in gene.axes else ("",):
                for g, segment in enumerate(segments):
                    for part in self.grid.parts:
                        name = gene.name(source, space.grid.position(gene.axes, g, part))
                        outer[name] = gene.name(source, self.grid.position(gene.axes, segment.number - 1, part))
        return space, outer


def _numbered(edges: Collection[int]) -> Iterator[tuple[int, tuple[int, int]]]:
    yield from enumerate(pairwise(edges), start=1)
