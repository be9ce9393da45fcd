"""Data-flow spaces that the tests of this folder share."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import yaml

from evomerge.optimizers import make_optimizer
from evomerge.recipe import Path, Recipe
from evomerge.score import Value
from evomerge.space import CompactSpace, DataflowConfig, Shape, SlotSpace, parse_space

WRITERS = ("o_proj", "down_proj")
Hops = list[tuple[str, int]]


def config(**keys: Any) -> DataflowConfig:
    """A space from keys, as if written in a file; over a and b where nothing else is said."""
    found = parse_space(yaml.safe_dump({"kind": "dataflow", "sources": ["a", "b"], **keys}), "space.yaml")
    assert isinstance(found, DataflowConfig)
    return found


def bound(depths: tuple[int, ...] = (4, 3), tied: bool = True, **keys: Any) -> CompactSpace | SlotSpace:
    """The same for models of some depths."""
    made = config(**keys)
    shapes = {s.model: Shape(n, tied=tied, writers=WRITERS) for s, n in zip(made.sources, depths, strict=True)}
    return made.bind_models(shapes)


def compact(depths: tuple[int, ...] = (4, 3), tied: bool = True, **keys: Any) -> CompactSpace:
    """A space of the compact encoding."""
    found = bound(depths, tied, **keys)
    assert isinstance(found, CompactSpace)
    return found


def slots(depths: tuple[int, ...] = (4, 3), tied: bool = True, **keys: Any) -> SlotSpace:
    """A space of the paper's encoding."""
    found = bound(depths, tied, encoding="slots", **keys)
    assert isinstance(found, SlotSpace)
    return found


def path(recipe: Recipe) -> Path:
    """The path that a recipe is."""
    found = Path.read(recipe)
    assert found is not None
    return found


def hops(recipe: Recipe) -> str:
    """The layers of a recipe's path, such as "a0 a1 b2"."""
    return " ".join(f"{hop.model}{hop.layer}" for hop in path(recipe).hops)


def draws(space: CompactSpace | SlotSpace, count: int, seed: int = 0) -> Iterator[dict[str, Value]]:
    """Uniform draws from a space."""
    yield from make_optimizer("random", space.parameters, seed=seed, population=count).ask(count)


def assert_same_path(a: Recipe, b: Recipe) -> None:
    """Equal but for the rounding of scales, which are quotients of a recipe's factors."""
    one, two = path(a), path(b)
    assert hops(a) == hops(b)
    assert (one.embeddings, one.head) == (two.embeddings, two.head)
    assert all(abs(x.factor / y.factor - 1) < 1e-9 for x, y in zip(one.hops, two.hops, strict=True))
