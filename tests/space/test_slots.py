"""Paths as in Evolutionary Model Merge: an indicator per slot, a scale per transition."""

from __future__ import annotations

import pickle
from typing import Any

import pytest

from evomerge.errors import SpaceError
from evomerge.optimizers import make_optimizer
from evomerge.recipe import Path
from evomerge.space import Float
from tests.space import pools

SPACES: dict[str, dict[str, Any]] = {
    "plain": {},
    "once": {"repetitions": 1},
    "untied, three sources": {"sources": ["a", "b", "c"], "depths": (3, 2, 4), "tied": False, "repetitions": 2},
    "one source": {"sources": ["a"], "depths": (4,)},
    "no scales": {"scale": 1},
    "bounds": {"repetitions": 1, "depth": {"low": 3, "high": 4}},
}


def test_the_size_of_the_papers_space() -> None:
    """T = M r slots; W has an entry for every pair, or every pair in order where all layers stand once."""
    space = pools.slots((32, 32))
    assert len(space.slots) == 192
    assert len(space.indicators) == 192
    assert len(space.scales) == 64 * 64
    once = pools.slots((32, 32), repetitions=1)
    assert len(once.slots) == 64
    assert len(once.scales) == 64 * 63 // 2


def test_names_and_start() -> None:
    space = pools.slots(repetitions=2)
    by_name = {p.name: p for p in space.parameters}
    assert by_name["slot.1.a.3"] == Float("slot.1.a.3", -1.0, 1.0, 2 / 3)
    assert by_name["slot.1.b.0"] == Float("slot.1.b.0", -1.0, 1.0, -2 / 3)
    assert by_name["slot.2.a.3"] == Float("slot.2.a.3", -1.0, 1.0, -2 / 3)
    assert by_name["scale.a.3>b.0"] == Float("scale.a.3>b.0", 0.5, 1.5, 1.0, step=0.1)
    assert by_name["scale.b.0>a.3"] == Float("scale.b.0>a.3", 0.5, 1.5, 1.0)
    assert by_name["embeddings.b"] == Float("embeddings.b", -1.0, 1.0, -2 / 3)
    # Plain CMA-ES takes it all, its first step being 1/6 of each range: the start is two of them from 0.
    assert space.sampler == "cma"
    assert make_optimizer(space.sampler, space.parameters, seed=0).name == "cma"
    assert pools.slots(depth={"objective": True}).sampler == "evolution"


def test_admissible_transitions() -> None:
    once = pools.slots((2, 1), repetitions=1)
    assert list(once.scales) == [(("a", 0), ("a", 1)), (("a", 0), ("b", 0)), (("a", 1), ("b", 0))]
    assert len(pools.slots((2, 1), repetitions=2).scales) == 9  # a layer may follow itself


def test_decodes() -> None:
    space = pools.slots(repetitions=2)
    changes = {"slot.1.a.0": 0.0, "slot.1.b.1": 0.01, "slot.2.a.0": 1.0,
               "scale.a.3>b.1": 0.8, "scale.b.1>a.0": 1.3, "embeddings.b": 0.7}  # fmt: skip
    recipe = space.decode(space.initial() | changes)
    assert pools.hops(recipe) == "a1 a2 a3 b1 a0"
    assert pools.path(recipe).scales == pytest.approx((1, 1, 1, 0.8, 1.3))
    assert pools.path(recipe).embeddings == "b"


class TestIndicators:
    """Vectors given as they are."""

    def test_a_vector_of_zeros_and_ones(self) -> None:
        space = pools.slots((2, 1), repetitions=2)
        assert pools.hops(space.decode_indicators([0, 1, 1, 1, 0, 0])) == "a1 b0 a0"
        found = space.decode_indicators([1, 0, 0, 0, 1, 0], {"scale.a.0>a.1": 0.5}, seed=4)
        assert pools.path(found).scales == pytest.approx((1, 0.5))
        assert found.evomerge.seed == 4

    @pytest.mark.parametrize("length", [0, 5, 7])
    def test_of_the_wrong_length(self, length: int) -> None:
        space = pools.slots((2, 1), repetitions=2)
        with pytest.raises(SpaceError) as caught:
            space.decode_indicators([1.0] * length)
        assert str(caught.value) == f"indicators: expected 6 (3 layers x 2 repetitions), got {length}"

    def test_out_of_bounds(self) -> None:
        with pytest.raises(SpaceError, match=r"slot\.1\.a\.1 = 3\.0: outside \[-1, 1\]"):
            pools.slots((2, 1), repetitions=1).decode_indicators([1, 3, 0])
        with pytest.raises(SpaceError, match=r"slot\.1\.a\.1 = nan: expected a number"):
            pools.slots((2, 1), repetitions=1).decode_indicators([1, float("nan"), 0])

    def test_depth_by_repair(self) -> None:
        space = pools.slots((3, 3), repetitions=1, depth={"low": 2, "high": 3})
        assert space.select([0.9, 0.1, 0.5, 0.7, -1, -1]) == (0, 2, 3)  # the lowest goes
        assert space.select([-0.9, -0.1, -0.5, -0.7, -1, -0.3]) == (1, 5)  # the highest come in
        assert space.select([0.5] * 6) == (0, 1, 2)  # of equal ones the later go
        assert space.select([-1] * 6) == (0, 1)
        assert space.select([-1, -1, 1, 1, -1, -1]) == (2, 3)

    def test_a_path_is_never_empty(self) -> None:
        space = pools.slots((2, 1), repetitions=1)
        assert pools.hops(space.decode_indicators([-1, -0.5, -0.7])) == "a1"


@pytest.mark.parametrize("name", SPACES)
def test_round_trip(name: str) -> None:
    space = pools.slots(**SPACES[name])
    depth = space.config.depth
    for params in pools.draws(space, 40):
        recipe = space.decode(params, seed=3)
        assert depth.low <= len(pools.path(recipe).hops) <= (depth.high or len(space.slots))
        found = space.encode(recipe)
        assert list(found) == [p.name for p in space.parameters]
        pools.assert_same_path(space.decode(found, seed=3), recipe)


@pytest.mark.parametrize(
    ("layers", "scales", "message"),
    [
        ("a1 a0 a1 a0", None, "hop 3 of the recipe's path (a.0) needs more than the space's 2 repetitions"),
        ("a0 a1", (0.5, 1), "the recipe's first hop has scale 0.5; in this encoding it is 1"),
        ("a0 a1", (1, 2), "the recipe's transition a.0 > a.1 has scale 2; the space's scales are from 0.5 to 1.5"),
        ("a0 b0 a0 b0", (1, 0.5, 1, 0.6), "a.0 > b.0 has scales 0.5 and 0.6; the space has one for both"),
    ],
)
def test_what_cannot_be_expressed(layers: str, scales: tuple[float, ...] | None, message: str) -> None:
    hops = [(word[0], int(word[1:])) for word in layers.split()]
    recipe = Path.scaled(hops, scales).recipe(pools.WRITERS)
    with pytest.raises(SpaceError) as caught:
        pools.slots((2, 1), repetitions=2).encode(recipe)
    assert message in str(caught.value)


def test_more_layers_than_slots() -> None:
    with pytest.raises(SpaceError, match=r"depth\.low = 7: there are 6 slots"):
        pools.slots((2, 1), repetitions=2, depth={"low": 7})


def test_pickles_and_describes() -> None:
    space = pools.slots(repetitions=2)
    assert pickle.loads(pickle.dumps(space)).parameters == space.parameters
    assert space.describe() == (
        "paths of 1 or more layers over a (4 layers), b (3 layers); 65 parameters: slot 14 (7 layers x 2), scale 49, "
        "embeddings 2"
    )
