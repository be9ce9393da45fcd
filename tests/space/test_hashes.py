"""What spaces make of their parameters stays the same recipe to the bit: studies that go on refer to its hash."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping

import pytest

from evomerge import presets
from evomerge.recipe import parse_recipe
from evomerge.score import Value
from evomerge.space import Categorical, Integer, SearchSpace, SpaceConfig, load_space
from tests.space import pools, spaces

WEIGHTS = {"weight": spaces.WEIGHT}
SPACES: dict[str, list[SearchSpace]] = {
    **{m: [spaces.of_method(m, g).bind(6) for g in spaces.GRANULARITIES] for m in spaces.METHODS},
    "presets": [c.bind(5) for n in presets.names("search_spaces") if isinstance(c := load_space(n), SpaceConfig)],
    "a method to choose": [spaces.gene().bind(4)],
    "split points": [
        spaces.make(method="linear", granularity={"splits": 2, "modules": {"mlp": "mlp"}}, parameters=WEIGHTS).bind(6)
    ],
    "paths": [pools.compact(), pools.compact(tied=False, insertions=2), pools.slots(), pools.slots(repetitions=2)],
}
# Of the hashes of some recipes of each: written by the version of 2026-11-29, which checked each recipe as a whole.
HASHES: dict[str, str] = {
    "linear": "178490c8b934f677",
    "slerp": "5161a1d2531d18eb",
    "nuslerp": "08dc88cf18baab6a",
    "multislerp": "fc8a4cdb2757ed01",
    "karcher": "65fd57dc15907e64",
    "task_arithmetic": "5f930d4020e50907",
    "ties": "e50154fea998b213",
    "dare_linear": "7765dcc7a9432994",
    "dare_ties": "7ab751c739a529bf",
    "della_linear": "93fd5d4f52bcfc1d",
    "della": "dc710f500fcb6cab",
    "breadcrumbs": "a282f113d37cf9db",
    "breadcrumbs_ties": "e42d7a4087eddf2b",
    "sce": "95938b68af9fcd5b",
    "model_stock": "9126e7c2fd57224f",
    "nearswap": "e89e8e96a295de17",
    "ram": "bce0529a2bea997f",
    "ramplus_tl": "1fc7c122914b8c20",
    "arcee_fusion": "d4f433bfbcd35899",
    "varm": "c39662e7463c1104",
    "tsv": "101c36a70357f1c2",
    "iso_c": "92491718950cbf37",
    "passthrough": "3a2f6a7702394682",
    "presets": "108f75495e1f696e",
    "a method to choose": "07d283c946265c02",
    "split points": "cc8d7ba612da80b1",
    "paths": "5e41f650dba33f77",
}


def some(space: SearchSpace, k: int) -> dict[str, Value]:
    """Values all over the ranges, made by nothing but exact arithmetic."""
    found: dict[str, Value] = {}
    for i, p in enumerate(space.parameters):
        place = (7 * i + 11 * k + 5) % 97
        if isinstance(p, Categorical):
            found[p.name] = p.choices[place % len(p.choices)]
        elif isinstance(p, Integer):
            found[p.name] = p.low + place % (p.high - p.low + 1)
        else:
            value = p.low + (p.high - p.low) * (place / 97)
            found[p.name] = value if p.step is None else p.snap(value)
    return found


def digest(found: list[SearchSpace], contents: Mapping[str, str]) -> str:
    recipes = [space.decode(some(space, k), seed=k) for space in found for k in range(3)]
    return hashlib.sha256(" ".join(r.hash(contents) for r in recipes).encode()).hexdigest()[:16]


@pytest.mark.parametrize("name", SPACES)
def test_hashes_of_decoded_recipes_stay(name: str) -> None:
    assert digest(SPACES[name], {"zoo:base": "0" * 64, "zoo:maths": "1" * 64, "a": "2" * 64}) == HASHES[name]


@pytest.mark.parametrize("name", SPACES)
def test_every_recipe_is_the_one_that_its_file_says(name: str) -> None:
    """The first of a space, and those after it, which are not checked as a whole any more: reading checks them."""
    for space in SPACES[name]:
        for k in range(3):
            recipe = space.decode(some(space, k), seed=k)
            again = parse_recipe(recipe.to_yaml(), "recipe.yaml")
            assert again == recipe and again.to_dict() == recipe.to_dict()
