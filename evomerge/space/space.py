"""A search space over models of a known depth: typed parameters <-> Recipe."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from evomerge.methods import METHODS, Method
from evomerge.recipe import Recipe
from evomerge.score import Value
from evomerge.space.config import SpaceConfig
from evomerge.space.decode import Decoder
from evomerge.space.grid import Grid, LayerGroup, layer_groups
from evomerge.space.parameters import Categorical, Float, Integer, Parameter, check, default_sampler, initial
from evomerge.space.range import Range
from evomerge.space.starts import Start, merge_starts

METHOD = "method"


@dataclass(frozen=True)
class Gene:
    """What one searched parameter of a merge method varies by.

    Attributes:
        parameter: Its name in the method.
        range: Its bounds.
        axes: Of source, layers, modules: what has a value of its own.
    """

    parameter: str
    range: Range
    axes: tuple[str, ...]

    def name(self, source: str, position: str) -> str:
        """Name of the optimizer's parameter, such as `weight.maths.layers_0-1.mlp`."""
        return ".".join(p for p in (self.parameter, source if "source" in self.axes else "", position) if p)


class Space:
    """A search space bound to models of `num_layers` layers.

    The total order of `parameters`: `method` first where several are searched; then the methods' parameters as the
    table of methods lists them; in each the sources as the file lists them; in each the positions (embeddings, layer
    groups from the first, in each the modules as listed and the rest last, then the head).

    Attributes:
        config: The space as its file says it.
        grid: How the models are cut.
        parameters: What the optimizer varies.
    """

    def __init__(
        self,
        config: SpaceConfig,
        num_layers: int,
        tensors: Collection[str] | None = None,
        groups: tuple[LayerGroup, ...] | None = None,
    ) -> None:
        cut = config.granularity
        groups = groups or layer_groups(num_layers, cut.layer_groups, cut.layers_per_group)
        self.config = config
        self.num_layers = num_layers
        self.grid = Grid.cut(groups, cut.modules, cut.edges, cut.smooth, tensors)
        self.names = tuple(s.name for s in config.sources)
        known = dict.fromkeys(p.name for m in config.methods for p in m.parameters)
        self.genes = {n: self._gene(n) for n in known if n in config.parameters and config.parameters[n].value is None}
        self.fixed = {n: config.parameters[n].value for n in known if n in config.parameters and n not in self.genes}
        self.parameters: tuple[Parameter, ...] = tuple(self._parameters())
        self._decoders: dict[str, Decoder] = {}  # by method, each made when it is first asked for

    def _gene(self, name: str) -> Gene:
        given, taken = self.config.parameters[name], self.config.taken(name)
        assert taken is not None
        fine = ("source", "layers", "modules") if taken.per_source else ("layers", "modules")
        default = fine if taken.per_source or taken.default is None else ()
        return Gene(name, given, default if given.per is None else given.per)

    def _parameters(self) -> Iterator[Parameter]:
        if len(self.config.method) > 1:
            yield Categorical(METHOD, self.config.method, self.config.method[0])
        for gene in self.genes.values():
            taken, bounds = self.config.taken(gene.parameter), gene.range
            assert taken is not None and bounds.low is not None and bounds.high is not None
            for source in self.names if "source" in gene.axes else ("",):
                for position, place in self.grid.places(gene.axes).items():
                    name = gene.name(source, position)
                    if taken.kind == "int":
                        yield Integer(name, int(bounds.low), int(bounds.high), round(bounds.start), place)
                    else:
                        yield Float(name, bounds.low, bounds.high, bounds.start, bounds.log, place=place)

    sigma = None

    @property
    def sampler(self) -> str:
        """The optimizer that suits the space."""
        return default_sampler(self.parameters)

    def initial(self) -> dict[str, Value]:
        """The starting value of every parameter, in their order."""
        return initial(self.parameters)

    def method_of(self, params: Mapping[str, Value]) -> Method:
        """The merge method that some parameters choose."""
        return METHODS[str(params.get(METHOD, self.config.method[0]))]

    def starts(self) -> list[Start]:
        """See `SearchSpace.starts`."""
        return merge_starts(self)

    def decode(self, params: Mapping[str, Value], seed: int = 0) -> Recipe:
        """The recipe of some parameters: plain mergekit YAML, `models:` for one layer group, else slices.

        Args:
            params: A value for every parameter; those that the chosen method does not take change nothing.
            seed: Of the random masks (DARE); one per study.

        Raises:
            SpaceError: a value is missing, unknown or out of bounds.
        """
        params = check(self.parameters, params)
        method = self.method_of(params)
        if method.name not in self._decoders:
            self._decoders[method.name] = Decoder(self, method)
        return self._decoders[method.name](params, seed)

    def encode(self, recipe: Recipe) -> dict[str, Value]:
        """The parameters of a recipe, so that decode(encode(recipe)) merges to the same model.

        A linear recipe without a base whose weights sum to one (the uniform merge) is read as task vectors where the
        space has task_arithmetic only. Parameters that the recipe's method does not take stand at their start.

        Raises:
            SpaceError: which part of the recipe does not fit this space.
        """
        from evomerge.space.encode import encode

        return encode(self, recipe)

    def fingerprint(self) -> dict[str, Any]:
        """What makes this space this space, as plain data; the file's name and way of writing do not count."""
        config = self.config.model_dump(mode="json", exclude={"name"})
        if config["granularity"]["splits"] is None:  # fingerprints that were stored before there were any
            del config["granularity"]["splits"]
        if config["into"] is None:
            del config["into"]
        return {
            "num_layers": self.num_layers,
            **config,
            "granularity": config["granularity"] | {"embeddings": self.grid.edges},
            "parameters": {name: config["parameters"][name] for name in sorted(config["parameters"])},
        }

    def describe(self) -> str:
        """One line for printing: method, sources, base, and where the number of parameters comes from."""
        config = self.config
        words = " | ".join(config.method) + f" of {', '.join(self.names)}"
        if config.base_model:
            words += f" on {config.base_model}"
        counts = [f"{METHOD} (1 of {len(config.method)})"] if len(config.method) > 1 else []
        counts += [f"split ({splits} points)"] if (splits := config.granularity.splits) else []
        for gene in self.genes.values():
            positions = self.grid.positions(gene.axes)
            sources = [f"{len(self.names)} sources"] if "source" in gene.axes and len(self.names) > 1 else []
            places = [f"{len(positions)} places ({_few(positions)})"] if len(positions) > 1 else []
            counts.append(f"{gene.parameter} {' x '.join(sources + places) or '(1)'}")
        return f"{words}; {len(self.parameters)} parameters: {', '.join(counts) or 'none'}"


def _few(names: tuple[str, ...]) -> str:
    return ", ".join(names if len(names) <= 8 else (*names[:3], "...", names[-1]))
