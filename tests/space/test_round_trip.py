"""decode(encode(x)) = x, over every method of the table, every granularity and every preset (hypothesis)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from evomerge import presets
from evomerge.methods import METHODS
from evomerge.recipe import parse_recipe
from evomerge.score import Value
from evomerge.space import Categorical, Integer, Space, SpaceConfig, load_space
from evomerge.space.parameters import Parameter
from tests.space import spaces

BOUND: dict[str, Space] = {
    **{f"{m}, {g}": spaces.of_method(m, g).bind(6) for m in spaces.METHODS for g in spaces.GRANULARITIES},
    **{n: c.bind(5) for n in presets.names("search_spaces") if isinstance(c := load_space(n), SpaceConfig)},
    "gene": spaces.gene().bind(4),
}


def test_every_method_is_tried() -> None:
    assert list(spaces.METHODS) == [name for name, method in METHODS.items() if not method.statistics]


def values(space: Space) -> st.SearchStrategy[dict[str, Value]]:
    def one(p: Any) -> st.SearchStrategy[Any]:
        if isinstance(p, Categorical):
            return st.sampled_from(p.choices)
        if isinstance(p, Integer):
            return st.integers(p.low, p.high)
        return st.floats(p.low, p.high)

    return st.fixed_dictionaries({p.name: one(p) for p in space.parameters})


def used(space: Space, params: Mapping[str, Value]) -> list[str]:
    """The parameters that the chosen method takes."""
    method = space.method_of(params)
    return [n for n in params if n == "method" or method.parameter(n.split(".")[0])]


@settings(deadline=None, max_examples=120)
@given(st.data())
def test_round_trip(data: st.DataObject) -> None:
    space = BOUND[data.draw(st.sampled_from(list(BOUND)))]
    params = data.draw(values(space))
    recipe = space.decode(params, seed=3)
    found = space.encode(recipe)
    names = used(space, params)
    assert {n: found[n] for n in names} == {n: params[n] for n in names}
    unused = [n for n in params if n not in names]
    assert {n: found[n] for n in unused} == {n: space.initial()[n] for n in unused}
    assert list(found) == [p.name for p in space.parameters]
    assert space.decode(found, seed=3) == recipe


@pytest.mark.parametrize("name", BOUND)
def test_initial_round_trip_and_yaml(name: str) -> None:
    space = BOUND[name]
    recipe = space.decode(space.initial(), seed=11)
    again = parse_recipe(recipe.to_yaml(), "recipe.yaml")  # refuses unknown parameters and values out of range
    assert again == recipe
    assert again.hash() == recipe.hash()
    assert again.evomerge.seed == 11
    assert space.encode(again) == space.initial()


@pytest.mark.parametrize("name", BOUND)
def test_numbers_survive_the_file(name: str) -> None:
    space = BOUND[name]

    def value(i: int, p: Parameter) -> Value:
        if isinstance(p, Categorical):
            return p.choices[-1]
        found = p.low + (p.high - p.low) * (i % 7 + 0.1) / 9.7
        return round(found) if isinstance(p, Integer) else found

    params = {p.name: value(i, p) for i, p in enumerate(space.parameters)}
    found = space.encode(parse_recipe(space.decode(params).to_yaml()))
    assert {n: found[n] for n in used(space, params)} == {n: params[n] for n in used(space, params)}


def test_unused_parameters_change_nothing() -> None:
    space = BOUND["gene"]
    params = space.initial() | {"method": "linear"}
    other = params | {p.name: p.low for p in space.parameters if p.name.startswith("density")}
    assert space.decode(params) == space.decode(other)
