"""How a model is cut into positions: layer groups x modules, and the embeddings and the head beside them.

A recipe names tensors by substrings (filters), the first hit wins; embeddings belong to its first slice, final norm and
head to its last. So every slice has an ordered list of entries (filter, part), and a parameter has one value per
position: the entries it does not tell apart share one.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from itertools import pairwise
from typing import Literal, NamedTuple

from evomerge.errors import SpaceError

# Substrings that name input embeddings, and final norm and output head, over the architectures of transformers
# (llama-like, gpt_neox, gpt2, phi). None of them occurs in a tensor of a layer.
EMBEDDING_FILTERS = ("embed", "wte", "wpe")
HEAD_FILTERS = ("lm_head", "embed_out", "model.norm", "final_layer", "ln_f")
EMBEDDINGS, HEAD, OTHER = "embeddings", "head", "other"
# Where these lie along depth.
PLACE = {EMBEDDINGS: 0.0, HEAD: 1.0}


@dataclass(frozen=True)
class LayerGroup:
    """Consecutive layers, from `first` up to, without, `end`."""

    first: int
    end: int

    @property
    def name(self) -> str:
        """`layer_3` or `layers_0-1`."""
        return f"layer_{self.first}" if self.end - self.first == 1 else f"layers_{self.first}-{self.end - 1}"


class Entry(NamedTuple):
    """One entry of a filtered parameter in one slice: which tensors (None: the rest) and to what part they belong."""

    filter: str | None
    part: str


def layer_groups(num_layers: int, count: int | None, size: int | None) -> tuple[LayerGroup, ...]:
    """Cut the layers into `count` groups as even as possible, or into groups of `size` (the last may be smaller)."""
    if not num_layers and count in (None, 1) and size is None:
        return (LayerGroup(0, 0),)  # a model without layers of one kind (a UNet): cut by modules alone
    if size is not None:
        cuts = [*range(0, num_layers, size), num_layers]
    else:
        count = count or 1
        if count > num_layers:
            raise SpaceError(f"granularity.layer_groups = {count}: the models have only {num_layers} layers")
        cuts = [i * num_layers // count for i in range(count + 1)]
    return tuple(LayerGroup(a, b) for a, b in pairwise(cuts))


@dataclass(frozen=True)
class Grid:
    """The cut of one model.

    Attributes:
        modules: Filters of each module, by name, in order of precedence.
        rest: The part of the layers' tensors that no filter matches.
        edges: What embeddings and head are (see `Granularity.embeddings`).
        smooth: One slice whose values are gradients over the groups.
    """

    groups: tuple[LayerGroup, ...]
    modules: Mapping[str, tuple[str, ...]]
    rest: str
    edges: Literal["own", "together", "layers"]
    smooth: bool
    embedding_filters: tuple[str, ...] = EMBEDDING_FILTERS
    head_filters: tuple[str, ...] = HEAD_FILTERS

    @classmethod
    def cut(
        cls,
        groups: tuple[LayerGroup, ...],
        modules: Mapping[str, tuple[str, ...]],
        edges: Literal["own", "together", "layers"],
        smooth: bool,
        tensors: Collection[str] | None = None,
    ) -> Grid:
        """The grid of a granularity; with the tensors' names, filters that match nothing are left out.

        Raises:
            SpaceError: a module none of whose filters matches a tensor.
        """
        rest = next((name for name, filters in modules.items() if "*" in filters), OTHER if modules else "")
        kept = {name: tuple(f for f in filters if f != "*") for name, filters in modules.items()}
        grid = cls(groups, kept, rest, edges, smooth)
        return grid if tensors is None else grid._pruned(sorted(tensors))

    def _pruned(self, tensors: list[str]) -> Grid:
        def hits(filters: tuple[str, ...]) -> tuple[str, ...]:
            return tuple(f for f in filters if any(f in t for t in tensors))

        modules = {name: hits(filters) for name, filters in self.modules.items()}
        for name, filters in modules.items():
            if not filters and name != self.rest:
                asked = ", ".join(self.modules[name])
                raise SpaceError(
                    f'granularity.modules.{name}: no tensor of the models has "{asked}" in its name'
                    f' (one is "{tensors[0]}")'
                )
        return Grid(
            self.groups, modules, self.rest, self.edges, self.smooth,
            hits(self.embedding_filters), hits(self.head_filters),
        )  # fmt: skip

    @property
    def slices(self) -> int:
        """Number of slices of a recipe; 1 is written as `models:`."""
        return 1 if self.smooth else len(self.groups)

    @property
    def parts(self) -> tuple[str, ...]:
        """The modules of a layer, the rest last (the empty name where there are no modules)."""
        return (*(name for name in self.modules if name != self.rest), self.rest)

    def entries(self, slice_: int) -> tuple[Entry, ...]:
        """The entries of one slice, in order of precedence; the last one has no filter."""
        out: list[Entry] = []
        if self.edges != "layers":
            head = EMBEDDINGS if self.edges == "together" else HEAD
            # The head first: gpt_neox's `embed_out` is one, though "embed" is in its name.
            if slice_ == self.slices - 1:
                out += [Entry(f, head) for f in self.head_filters]
            if slice_ == 0:
                out += [Entry(f, EMBEDDINGS) for f in self.embedding_filters]
        out += [Entry(f, name) for name, filters in self.modules.items() for f in filters]
        while out and out[-1].part == self.rest:  # they would be reached as the rest anyway
            out.pop()
        return (*out, Entry(None, self.rest))

    def position(self, axes: Collection[str], group: int, part: str) -> str:
        """Name of the position where a parameter with these axes has its value for a part of a layer group."""
        if not {"layers", "modules"} & set(axes):
            return ""
        if part in (EMBEDDINGS, HEAD):
            return part
        words = [self.groups[group].name] if "layers" in axes and len(self.groups) > 1 else []
        words += [part] if "modules" in axes and self.modules else []
        return ".".join(words) or ("" if self.edges == "layers" else "layers")

    def positions(self, axes: Collection[str]) -> tuple[str, ...]:
        """All positions of a parameter: embeddings, then layer groups in order, in each the modules, then the head."""
        # Pruned to nothing, a group is none: its tensors go with the layers beside them.
        edge = [e.part for i in (0, self.slices - 1) for e in self.entries(i) if e.part in (EMBEDDINGS, HEAD)]
        names = [self.position(axes, 0, EMBEDDINGS)] if EMBEDDINGS in edge else []
        names += [self.position(axes, g, part) for g in range(len(self.groups)) for part in self.parts]
        names += [self.position(axes, 0, HEAD)] if HEAD in edge else []
        return tuple(dict.fromkeys(names))

    def places(self, axes: Collection[str]) -> dict[str, float | None]:
        """Where each of `positions` lies along depth: 0 embeddings, 1 the head, between them layers and their modules.

        None where a position is all over the model.
        """
        found: dict[str, float | None] = dict.fromkeys(self.positions(axes))
        if not {"layers", "modules"} & set(axes):
            return found
        span, cut = len(self.groups) + 1, len(self.groups) > 1
        if "layers" in axes or not cut:
            for g in range(len(self.groups)):
                for k, part in reversed([*enumerate(self.parts)]):  # a place begins with its first module
                    found[self.position(axes, g, part)] = (g + 1 + cut * k / len(self.parts)) / span
        if self.edges == "own":
            found |= {end: place for end, place in PLACE.items() if end in found}
        return found
