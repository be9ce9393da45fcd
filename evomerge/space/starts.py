"""What everybody tries first: each source as it is, the uniform merge, a method's published settings.

They are candidates like others, put before those that the optimizer draws, where the space has them.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

from evomerge.errors import SpaceError
from evomerge.methods import Method
from evomerge.score import Value
from evomerge.space.parameters import check

if TYPE_CHECKING:
    from evomerge.space.compact import CompactSpace
    from evomerge.space.slots import SlotSpace
    from evomerge.space.space import Space

# Of a merge that keeps all of its sources' task vectors.
WHOLE = {"density": 1.0, "gamma": 0.0, "lambda": 1.0, "select_topk": 1.0, "share": 0.0}
# Averages whose weights may be searched: with equal ones they are the uniform merge.
AVERAGES = ("linear", "task_arithmetic", "dare_linear", "della_linear", "breadcrumbs")


@dataclass(frozen=True)
class Start:
    """A candidate of which there is reason to expect something.

    Attributes:
        name: "source NAME", "uniform", "published METHOD".
    """

    name: str
    params: Mapping[str, Value]

    @property
    def words(self) -> str:
        """What a sentence calls it."""
        kind, _, what = self.name.partition(" ")
        words = {"source": f"{what} as it is", "published": f"{what} with its published settings"}
        return words.get(kind, "the uniform merge")


def start_of(starts: Iterable[Start], params: Mapping[str, Value]) -> Start | None:
    """The start that has just these parameters, if any."""
    return next((s for s in starts if dict(s.params) == dict(params)), None)


def merge_starts(space: Space) -> list[Start]:
    """Those of a parameter space, in this order; none twice. What lies outside its bounds is left out."""
    found: list[Start] = []
    for start in [*_sources(space), *_uniform(space), *_published(space)]:
        if all(start.params != other.params for other in found):
            found.append(start)
    return found


def path_starts(space: CompactSpace | SlotSpace) -> list[Start]:
    """Those of a data-flow space: each source's own path, where the space has it."""
    found: list[Start] = []
    for name in space.names:
        layers = [(name, layer) for layer in range(space.pool.num_layers[name])]
        ends = {end: name for end, names in space.pool.choices.items() if name in names}
        recipe = space.pool.recipe(layers, [1.0] * len(layers), ends, 0)
        try:
            found.append(Start(f"source {name}", space.encode(recipe)))
        except SpaceError:
            continue  # too deep, or its embeddings are not among the choices
    return found


def _sources(space: Space) -> Iterator[Start]:
    for name in space.names:
        for method in space.config.methods:
            params = None
            if method.parameter("weight"):
                params = _at(space, method, WHOLE, {s: float(s == name) for s in space.names})
            elif method.name == "slerp":  # of two models: the base, and the one source beside it
                params = _at(space, method, {"t": 1.0})
            if params is not None:
                yield Start(f"source {name}", params)
                break


def _uniform(space: Space) -> Iterator[Start]:
    for method in space.config.methods:
        share = _share(space, method) if method.name in AVERAGES else None
        params = None if share is None else _at(space, method, WHOLE, dict.fromkeys(space.names, share))
        if params is not None:
            yield Start("uniform", params)
            return


def _published(space: Space) -> Iterator[Start]:
    for method in space.config.methods:
        if method.published:
            weight = method.published.get("weight")
            weights = _equal(space) if weight is None else dict.fromkeys(space.names, weight)
            params = _at(space, method, method.published, weights)
            if params is not None:
                yield Start(f"published {method.name}", params)


def _share(space: Space, method: Method) -> float | None:
    """The weight of each source in the uniform merge; None where no weight gives it."""
    equal, scale = 1 / len(space.names), float(space.fixed.get("lambda") or 1.0)
    switch = method.parameter("normalize")
    if switch is None or not space.fixed.get("normalize", switch.default):
        return equal / scale
    # Of normalised weights any equal ones do: the nearest that the space has.
    bounds = space.genes["weight"].range if "weight" in space.genes else None
    if scale != 1.0 or bounds is None or bounds.low is None or bounds.high is None:
        return None if scale != 1.0 else equal
    nearest = min(max(equal, bounds.low), bounds.high)
    return nearest if nearest > 0.0 else None


def _equal(space: Space) -> dict[str, float]:
    return dict.fromkeys(space.names, 1 / len(space.names))


def _at(
    space: Space, method: Method, values: Mapping[str, float], weights: Mapping[str, float] | None = None
) -> dict[str, Value] | None:
    """Parameters of a method with these values everywhere; None where the space does not have them.

    What the space fixes stays as it is, but for weights: a source's own cannot be had where they are fixed.

    Args:
        weights: The weight of each source, where the method has weights.
    """
    params = space.initial()
    if len(space.config.method) > 1:
        params["method"] = method.name
    if weights and method.parameter("weight") and "weight" not in space.genes:
        return None
    for gene in space.genes.values():
        if method.parameter(gene.parameter) is None:
            continue
        given = dict.fromkeys(space.names, values[gene.parameter]) if gene.parameter in values else None
        if gene.parameter == "weight":
            given = dict(weights) if weights is not None else None
        if given is None:
            continue
        if "source" not in gene.axes:
            if len(set(given.values())) > 1:
                return None  # the space has one weight for all
            given = {"": next(iter(given.values()))}
        for source, value in given.items():
            params |= {gene.name(source, position): value for position in space.grid.positions(gene.axes)}
    bounds = {p.name: p for p in space.parameters}
    if any(bounds[name].problem(value) is not None for name, value in params.items()):
        return None
    return check(space.parameters, params)
