"""Split points as genes: segments whose layers are searched."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from evomerge.errors import SpaceError
from evomerge.optimizers import make_optimizer
from evomerge.recipe import parse_recipe
from evomerge.score import Value
from evomerge.space import Integer, Space
from evomerge.space.splits import SplitSpace
from tests.space import spaces

LAYERS = 6
KINDS: dict[str, dict[str, Any]] = {
    "bare": {"splits": 2},
    "modules": {"splits": 1, "modules": {"attention": "attn", "mlp": "mlp"}},
    "together": {"splits": 2, "embeddings": "together"},
}


def bound(method: str, kind: str = "bare") -> Space:
    base = spaces.of_method(method, "whole")
    return type(base).model_validate(base.model_dump(exclude_unset=True) | {"granularity": KINDS[kind]}).bind(LAYERS)


def weights(space: Space, *splits: int) -> dict[str, Value]:
    """Each weight another: maths .1, .2, .3 in segments 1 to 3, the other source .6, .7, .8."""
    params = dict(space.initial())
    params |= {f"split.{k}": s for k, s in enumerate(splits, start=1)}
    for k in (1, 2, 3):
        params[f"weight.maths.segment_{k}"] = k / 10
        params[f"weight.kovesh.segment_{k}"] = k / 10 + 0.5
    return params


def test_parameters_and_start() -> None:
    space = bound("linear")
    assert isinstance(space, SplitSpace)
    names = [f"weight.{s}.segment_{k}" for s in ("maths", "kovesh") for k in (1, 2, 3)]
    assert [p.name for p in space.parameters] == ["split.1", "split.2", *names]
    assert space.parameters[0] == Integer("split.1", 0, 6, 2) and space.initial()["split.2"] == 4
    places = [p.place for p in space.parameters[2:5]]
    assert places == sorted(places, key=lambda p: p or 0.0) and None not in places
    assert "split (2 points), weight 2 sources x 3 places (segment_1, segment_2, segment_3)" in space.describe()


def test_segments_become_slices() -> None:
    recipe = bound("linear").decode(weights(bound("linear"), 1, 4))
    assert recipe.slices is not None
    read = [(s.sources[0].layer_range, s.sources[0].parameters, s.sources[1].parameters) for s in recipe.slices]
    assert read == [
        ((0, 1), {"weight": 0.1}, {"weight": 0.6}),
        ((1, 4), {"weight": 0.2}, {"weight": 0.7}),
        ((4, 6), {"weight": 0.3}, {"weight": 0.8}),
    ]


def test_the_order_of_split_points_does_not_matter() -> None:
    space = bound("linear")
    assert space.decode(weights(space, 1, 4)) == space.decode(weights(space, 4, 1))


@pytest.mark.parametrize(("splits", "left"), [((0, 4), (2, 3)), ((3, 3), (1, 3)), ((2, 6), (1, 2))])
def test_an_empty_segment_changes_nothing(splits: tuple[int, int], left: tuple[int, int]) -> None:
    space = bound("linear")
    recipe = space.decode(weights(space, *splits))
    assert recipe.slices is not None
    assert [s.sources[0].parameters for s in recipe.slices] == [{"weight": k / 10} for k in left]
    gone = next(k for k in (1, 2, 3) if k not in left)
    assert space.decode(weights(space, *splits) | {f"weight.maths.segment_{gone}": 1.4}) == recipe


def test_one_segment_is_a_whole_merge() -> None:
    space = bound("linear")
    recipe = space.decode(weights(space, 6, 6))
    assert recipe.slices is None and recipe.models is not None
    assert [m.parameters for m in recipe.models] == [{"weight": 0.1}, {"weight": 0.6}]
    found = space.encode(recipe)
    assert (found["split.1"], found["split.2"]) == (6, 6)
    assert space.decode(found) == recipe


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("method", spaces.METHODS)
def test_round_trip(method: str, kind: str) -> None:
    """Whatever the split points, decode(encode(recipe)) is the recipe; and in order, all parameters come back."""
    space = bound(method, kind)
    for params in make_optimizer("m2n2", space.parameters, 1, population=6).ask(6):  # the start, and uniform draws
        recipe = parse_recipe(space.decode(params, seed=3).to_yaml())
        found = space.encode(recipe)
        assert list(found) == [p.name for p in space.parameters]
        assert space.decode(found, seed=3) == recipe
        points = [int(params[p.name]) for p in space.parameters if p.name.startswith("split.")]
        if sorted({0, *points, LAYERS}) == [0, *points, LAYERS]:
            assert found == params
    assert space.encode(space.decode(space.initial())) == space.initial()


def test_what_does_not_fit() -> None:
    fine = spaces.of_method("linear", "layers x modules").bind(LAYERS)
    space = bound("linear")
    with pytest.raises(SpaceError, match="the recipe has 6 slices; with 2 split points there are at most 3"):
        space.encode(fine.decode(fine.initial()))
    with pytest.raises(SpaceError, match=r"granularity\.splits = 2: the models have only 2 layers"):
        space.config.bind(2)
    with pytest.raises(SpaceError, match='"splits" and "layer_groups" cannot both be given'):
        spaces.make(method="linear", sources=spaces.SOURCES, granularity={"splits": 2, "layer_groups": 2},
                    parameters={"weight": spaces.WEIGHT})  # fmt: skip


def test_fingerprints_without_split_points_stay() -> None:
    assert "splits" not in spaces.of_method("linear", "whole").bind(LAYERS).fingerprint()["granularity"]
    assert bound("linear").fingerprint()["granularity"]["splits"] == 2


def test_m2n2_finds_the_depth_at_which_sources_change() -> None:
    """Items ask each layer's weights; the best merge changes its source after layer 4, and the search finds that."""
    from evomerge.optimizers.protocol import Behaviour

    space = bound("linear")
    best = space.decode(space.initial() | {
        "split.1": 4, "split.2": 6, "weight.maths.segment_1": 1.0, "weight.kovesh.segment_1": 0.0,
        "weight.maths.segment_2": 0.0, "weight.kovesh.segment_2": 1.0,
    })  # fmt: skip

    def layers(recipe: Any) -> list[list[float]]:
        if recipe.slices is None:
            return [[m.parameters["weight"] for m in recipe.models]] * LAYERS
        out = []
        for piece in recipe.slices:
            first, end = piece.sources[0].layer_range
            out += [[s.parameters["weight"] for s in piece.sources]] * (end - first)
        return out

    wanted = np.array(layers(best))
    optimizer: Any = make_optimizer("m2n2", space.parameters, 1)
    found = []
    for _ in range(60):
        asked = optimizer.ask(8)
        away = [np.abs(np.array(layers(space.decode(p))) - wanted).ravel() for p in asked]
        items = [np.concatenate([a < limit for limit in (0.1, 0.2, 0.4, 0.8)]).astype(np.float32) for a in away]
        optimizer.tell(asked, [float(i.mean()) for i in items], [Behaviour((float(i.mean()),), i) for i in items])
        found += [(float(i.mean()), space.decode(p)) for i, p in zip(items, asked, strict=True)]
    score, recipe = max(found, key=lambda f: f[0])
    assert score > 0.9 and recipe.slices is not None
    assert 4 in [s.sources[0].layer_range[0] for s in recipe.slices]
