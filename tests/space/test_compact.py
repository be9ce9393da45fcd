"""Paths as departures from one source's own path."""

from __future__ import annotations

import pickle
from typing import Any

import pytest

from evomerge.errors import SpaceError
from evomerge.recipe import Path
from evomerge.space import Categorical, Float, Integer
from tests.space import pools

SPACES: dict[str, dict[str, Any]] = {
    "plain": {},
    "one source": {"depths": (4,), "sources": ["a"]},
    "longer second": {"depths": (2, 5), "insertions": 1, "repeats": 3},
    "groups": {"depths": (5, 8), "layers_per_group": 2, "depth": {"low": 3, "high": 7}},
    "one group": {"depths": (4, 4), "layer_groups": 1},
    "even groups": {"depths": (7, 3), "layer_groups": 3},
    "no scales": {"scale": 1, "depth": {"low": 3, "high": 4}},
    "all on a grid": {"scale": {"low": 0.8, "high": 1.2, "early": 1}},
    "none on a grid": {"scale": {"low": 0.83, "high": 1.21, "step": None}},
    "untied": {"tied": False, "insertions": 0},
    "narrow": {"depth": {"low": 4, "high": 4}},
}


def test_names_and_choices() -> None:
    space = pools.compact()
    assert [p.name for p in space.parameters] == [
        "source.0", "source.1", "source.2",  # b has no layer 3
        "times.0", "times.1", "times.2", "times.3",
        "scale.0", "scale.1", "scale.2", "scale.3",
        "insertion.1.after", "insertion.1.layer", "insertion.2.after", "insertion.2.layer",
        "embeddings",
    ]  # fmt: skip
    by_name = {p.name: p for p in space.parameters}
    assert by_name["source.1"] == Categorical("source.1", ("a", "b"), "a")
    assert by_name["times.1"] == Integer("times.1", 0, 2, 1)
    assert by_name["scale.1"] == Float("scale.1", 0.5, 1.5, 1.0, step=0.1)
    assert by_name["scale.2"] == Float("scale.2", 0.5, 1.5, 1.0)
    assert by_name["insertion.1.layer"] == Categorical(
        "insertion.1.layer", ("none", "a:0", "a:1", "a:2", "a:3", "b:0", "b:1", "b:2"), "none"
    )
    assert space.sampler == "evolution"


def test_names_of_groups() -> None:
    names = [p.name for p in pools.compact(**SPACES["groups"]).parameters]
    assert names[:6] == ["source.0-1", "source.2-3", "source.4", "times.0-1", "times.2-3", "times.4"]
    assert list(pools.compact(**SPACES["groups"]).insertable) == [
        "a:0-1", "a:2-3", "a:4", "b:0-1", "b:2-3", "b:4", "b:5-6", "b:7",
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("changes", "hops"),
    [
        ({"source.1": "b"}, "a0 b1 a2 a3"),
        ({"times.1": 0, "times.2": 2}, "a0 a2 a2 a3"),
        ({"source.2": "b", "times.2": 2}, "a0 a1 b2 b2 a3"),
        ({"insertion.1.after": 3, "insertion.1.layer": "b:0"}, "a0 a1 a2 a3 b0"),
        ({"insertion.1.layer": "b:0", "insertion.2.layer": "a:3", "insertion.1.after": 0, "insertion.2.after": 0},
         "a0 b0 a3 a1 a2 a3"),
        ({"times.0": 0, "insertion.2.after": 0, "insertion.2.layer": "b:1"}, "b1 a1 a2 a3"),
    ],
)  # fmt: skip
def test_decodes(changes: dict[str, Any], hops: str) -> None:
    space = pools.compact()
    assert pools.hops(space.decode(space.initial() | changes)) == hops


def test_a_scale_is_that_of_the_positions_first_hop() -> None:
    space = pools.compact()
    changes = {"times.1": 2, "scale.0": 0.5, "scale.1": 0.8, "scale.3": 1.25,
               "insertion.1.after": 1, "insertion.1.layer": "b:2"}  # fmt: skip
    path = pools.path(space.decode(space.initial() | changes))
    assert path.scales == pytest.approx((0.5, 0.8, 1.0, 1.0, 1.0, 1.25))
    assert [h.factor for h in path.hops] == pytest.approx([2, 2.5, 2.5, 2.5, 2.5, 2])


def test_equal_beginnings_are_equal_to_the_bit() -> None:
    """What prefix reuse lives on: the same early genes give the same early hops, factors included."""
    space = pools.compact(insertions=0)
    start = space.initial() | {"scale.0": 0.7, "scale.1": 0.9}
    one, two = (pools.path(space.decode(start | {"scale.2": w, "source.2": s})) for w, s in ((1.01, "a"), (0.77, "b")))
    assert one.hops[:2] == two.hops[:2]
    drawn = list(pools.draws(space, 200))
    assert {p["scale.0"] for p in drawn} <= {0.5, 0.6, 0.7, 0.8, 0.9, 1.0, 1.1, 1.2, 1.3, 1.4, 1.5}
    assert len({p["scale.2"] for p in drawn}) == 200


class TestDepth:
    """Bounds are kept by repair, in the order that the class says."""

    def hops(self, depth: dict[str, int], changes: dict[str, Any], **keys: Any) -> str:
        space = pools.compact((5, 5), depth=depth, **keys)
        return pools.hops(space.decode(space.initial() | changes))

    def test_too_deep(self) -> None:
        both = {"insertion.1.layer": "b:0", "insertion.1.after": 0, "insertion.2.layer": "b:1", "insertion.2.after": 4}
        more = {**both, "times.4": 2, "times.1": 2}
        assert self.hops({"high": 8}, more) == "a0 b0 a1 a1 a2 a3 a4 a4"  # the last insertion goes
        assert self.hops({"high": 7}, more) == "a0 a1 a1 a2 a3 a4 a4"
        assert self.hops({"high": 6}, more) == "a0 a1 a2 a3 a4 a4"  # of the repeats the inner one
        assert self.hops({"high": 5}, more) == "a0 a1 a2 a3 a4"
        assert self.hops({"high": 4}, more) == "a0 a1 a3 a4"  # from the middle outwards
        assert self.hops({"high": 3}, more) == "a0 a1 a4"
        assert self.hops({"high": 1}, more) == "a0"

    def test_too_shallow(self) -> None:
        none = {f"times.{p}": 0 for p in range(5)}
        assert self.hops({"low": 1}, none) == "a0"
        assert self.hops({"low": 2}, none) == "a0 a4"  # from the ends inwards
        assert self.hops({"low": 4}, none) == "a0 a1 a3 a4"
        assert self.hops({"low": 6}, none) == "a0 a1 a2 a2 a3 a4"  # then repeats, from the middle outwards
        assert self.hops({"low": 10}, none) == "a0 a0 a1 a1 a2 a2 a3 a3 a4 a4"
        put_in = {**none, "insertion.1.layer": "b:3"}
        assert self.hops({"low": 1}, put_in) == "b3"

    @pytest.mark.parametrize("name", SPACES)
    def test_always_within(self, name: str) -> None:
        space = pools.compact(**SPACES[name])
        depth = space.config.depth
        for params in pools.draws(space, 100, seed=3):
            count = len(pools.path(space.decode(params)).hops)
            assert depth.low <= count <= (depth.high or count)

    def test_out_of_reach(self) -> None:
        with pytest.raises(SpaceError, match=r"depth\.low = 9: without insertions a path has at most 8 layers"):
            pools.compact(depth={"low": 9})
        with pytest.raises(SpaceError, match=r"depth = 5 to 5: leaves no room for groups of 2 layers; .* at least 6"):
            pools.compact(layers_per_group=2, depth={"low": 5, "high": 5})


@pytest.mark.parametrize("name", SPACES)
def test_round_trip(name: str) -> None:
    space = pools.compact(**SPACES[name])
    for params in pools.draws(space, 60):
        recipe = space.decode(params, seed=3)
        found = space.encode(recipe)
        assert list(found) == [p.name for p in space.parameters]
        pools.assert_same_path(space.decode(found, seed=3), recipe)


def test_encoding_departs_as_little_as_can_be() -> None:
    space = pools.compact()
    for changes in ({"source.1": "b"}, {"times.2": 2}, {"times.0": 0}, {"scale.2": 1.25},
                    {"insertion.1.after": 1, "insertion.1.layer": "b:0"}, {"embeddings": "b"}):  # fmt: skip
        params = space.initial() | changes
        found = space.encode(space.decode(params))
        assert found == {n: pytest.approx(v) if isinstance(v, float) else v for n, v in params.items()}


@pytest.mark.parametrize(
    ("layers", "scales", "message"),
    [
        ("a3 a2 a1 a0", None, "hop 3 of the recipe's path (a:0, scale 1) is not in reach of \"a\"'s own path by 2"),
        ("a0 a1 a2 a3 b0 b0 b0", None, "hop 6 of the recipe's path (b:0, scale 1) is not in reach"),
        ("a0 a1 a2 a3", (1, 0.85, 1, 1), "(a:1, scale 0.85) is not in reach"),
        ("a0 a1 a2 a3", (1, 1, 2, 1), "scales from 0.5 to 1.5, in steps of 0.1 in early layers"),
        ("a0 a0 a1 a2 a3", (1, 1.2, 1, 1, 1), "hop 1 of the recipe's path (a:0, scale 1.2) is not in reach"),
    ],
)
def test_what_cannot_be_expressed(layers: str, scales: tuple[float, ...] | None, message: str) -> None:
    hops = [(word[0], int(word[1:])) for word in layers.split()]
    recipe = Path.scaled(hops, scales).recipe(pools.WRITERS)
    with pytest.raises(SpaceError) as caught:
        pools.compact().encode(recipe)
    assert message in str(caught.value)


def test_a_fixed_scale_is_always_one() -> None:
    recipe = Path.scaled([("a", 0), ("a", 1), ("a", 2), ("a", 3)], (1, 1, 1, 0.9)).recipe(pools.WRITERS)
    with pytest.raises(SpaceError, match=r"scale 0\.9\) is not in reach .* and scales always 1"):
        pools.compact(scale=1).encode(recipe)


def test_more_groups_than_layers() -> None:
    with pytest.raises(SpaceError, match=r'^layer_groups = 5: the first source, "a", has 4 layers'):
        pools.compact(layer_groups=5)


def test_deep_models() -> None:
    """80 layers: names stay few, and a path is found again at once."""
    space = pools.compact((80, 80), insertions=3)
    params = space.initial() | {"source.40": "b", "times.70": 2, "insertion.3.after": 79, "insertion.3.layer": "b:0"}
    recipe = space.decode(params)
    pools.assert_same_path(space.decode(space.encode(recipe)), recipe)
    assert len(pools.compact((80, 80), layers_per_group=8).parameters) == 35


def test_wrong_values_are_refused() -> None:
    space = pools.compact()
    with pytest.raises(SpaceError, match=r"times\.0 = 3: outside \[0, 2\]"):
        space.decode(space.initial() | {"times.0": 3})
    with pytest.raises(SpaceError, match=r"insertion\.1\.layer = 'b:7': did you mean"):
        space.decode(space.initial() | {"insertion.1.layer": "b:7"})


def test_pickles_and_describes() -> None:
    space = pools.compact(depth={"low": 2, "high": 6})
    assert pickle.loads(pickle.dumps(space)).parameters == space.parameters
    assert space.describe() == (
        "paths of 2 to 6 layers over a (4 layers), b (3 layers), from a's own (4 positions); 16 parameters: source 3, "
        "times 4, scale 4, insertion 4, embeddings (1 of 2)"
    )
