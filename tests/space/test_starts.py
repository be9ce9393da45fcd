"""What a space tries first: each source as it is, the uniform merge, published settings."""

from __future__ import annotations

import pytest
import torch

from evomerge.merging.engine import Engine
from evomerge.methods import METHODS
from evomerge.recipe import InputModel, Path, Recipe
from evomerge.sources import open_source
from evomerge.space import load_space
from evomerge.space.parameters import check
from evomerge.space.starts import start_of
from tests.space import spaces
from tests.space.pools import bound, compact

SOURCES = {r: open_source(r, None) for r in ("zoo:base", *spaces.SOURCES)}


def merged(recipe):
    return dict(Engine(SOURCES).tensors(recipe))


def close(one, other):
    return one.keys() == other.keys() and all(torch.allclose(one[n].float(), other[n].float(), atol=1e-6) for n in one)


@pytest.mark.parametrize("method", ["linear", "task_arithmetic", "dare_ties"])
def test_starts_are_the_sources_and_their_average(method):
    data = {"weight": spaces.WEIGHT}
    if method == "dare_ties":
        data["density"] = spaces.DENSITY
    space = spaces.make(method=method, parameters=data, dtype="float32").bind(4)
    starts = {s.name: s.params for s in space.starts()}
    assert list(starts)[:2] == ["source maths", "source kovesh"]
    for name, reference in zip(("maths", "kovesh"), spaces.SOURCES, strict=True):
        plain = Recipe(merge_method="linear", models=[InputModel(model=reference, parameters={"weight": 1.0})],
                       dtype="float32")  # fmt: skip
        assert close(merged(space.decode(starts[f"source {name}"])), merged(plain))
    if method != "dare_ties":  # sign election is no average
        equal = [InputModel(model=m, parameters={"weight": 1.0}) for m in spaces.SOURCES]
        average = Recipe(merge_method="linear", models=equal, dtype="float32")
        assert close(merged(space.decode(starts["uniform"])), merged(average))


def test_published_settings_of_every_method_that_has_some():
    told = {m.name: m.published for m in METHODS.values() if m.published}
    assert told["ties"] == {"weight": 1.0, "density": 0.2, "lambda": 1.0}
    for name, published in told.items():
        space = spaces.of_method(name, "layers x modules").bind(4)
        found = next((s for s in space.starts() if s.name == f"published {name}"), None)
        assert found is not None, name
        for parameter, value in published.items():
            genes = [v for n, v in found.params.items() if n.partition(".")[0] == parameter]
            assert all(v == value for v in genes), (name, parameter)
        check(space.parameters, found.params)


def test_of_several_methods_each_source_comes_once_and_each_method_has_its_published_settings():
    space = spaces.gene().bind(4)
    names = [s.name for s in space.starts()]
    assert len(set(names)) == len(names)
    assert sum(n.startswith("source ") for n in names) == len(space.names)
    assert {n.removeprefix("published ") for n in names if n.startswith("published ")} == {
        m for m in space.config.method if METHODS[m].published
    }


def test_what_the_bounds_leave_out_is_left_out():
    weight = {"low": 0.1, "high": 0.45, "init": 0.3}
    space = spaces.make(method="task_arithmetic", parameters={"weight": weight}).bind(4)
    assert [s.name for s in space.starts()] == ["published task_arithmetic"]  # no 0, no 1, no 1/2
    fixed = spaces.make(method="ties", parameters={"weight": 1.0, "density": spaces.DENSITY}).bind(4)
    assert all(not s.name.startswith("source") for s in fixed.starts())


@pytest.mark.parametrize(
    ("method", "weight", "more"),
    [
        # Normalised, any equal weights are the average: the nearest that the space has.
        ("linear", {"low": 0.75, "high": 1.5, "init": 1.0}, {}),
        ("task_arithmetic", {"low": 0.1, "high": 0.4, "init": 0.3}, {"normalize": True}),
        # A fixed factor of all is made up for.
        ("task_arithmetic", spaces.WEIGHT, {"lambda": 0.4}),
    ],
)
def test_the_uniform_merge_comes_wherever_the_space_can_express_it(method, weight, more):
    space = spaces.make(method=method, parameters={"weight": weight, **more}, dtype="float32").bind(4)
    start = next(s.params for s in space.starts() if s.name == "uniform")
    equal = [InputModel(model=m, parameters={"weight": 1.0}) for m in spaces.SOURCES]
    average = Recipe(merge_method="linear", models=equal, dtype="float32")
    assert close(merged(space.decode(start)), merged(average))


def test_where_no_weight_gives_the_uniform_merge_there_is_none():
    for weight, more in (
        ({"low": 0.75, "high": 1.5, "init": 1.0}, {}),  # not normalised: out of bounds
        (spaces.WEIGHT, {"normalize": True, "lambda": 0.4}),
        ({"low": -2.0, "high": -0.5, "init": -1.0}, {"normalize": True}),
    ):
        space = spaces.make(method="task_arithmetic", parameters={"weight": weight, **more}).bind(4)
        assert all(s.name != "uniform" for s in space.starts())


def test_one_weight_for_all_sources_has_no_single_source():
    weight = {**spaces.WEIGHT, "per": "layers"}
    space = spaces.make(method="task_arithmetic", parameters={"weight": weight}).bind(4)
    assert [s.name for s in space.starts()] == ["uniform", "published task_arithmetic"]


def test_paths_start_from_each_source_as_it_is():
    for space in (compact((4, 3)), bound((4, 3), encoding="slots", repetitions=2)):
        starts = {s.name: s.params for s in space.starts()}
        assert list(starts) == ["source a", "source b"]
        for name, depth in (("a", 4), ("b", 3)):
            path = Path.read(space.decode(starts[f"source {name}"]))
            assert path is not None
            assert [(h.model, h.layer) for h in path.hops] == [(name, i) for i in range(depth)]
            assert path.embeddings == name and all(s == 1 for s in path.scales)
    only = compact((4, 3), depth={"low": 4, "high": 6})
    assert [s.name for s in only.starts()] == ["source a"]  # the other is too short


@pytest.mark.parametrize("name", ["quickstart", "linear", "ties_dare_layerwise", "task_arithmetic_layerwise"])
def test_presets_have_starts(name):
    space = load_space(name).bind(4)
    names = [s.name for s in space.starts()]
    assert names[:3] == ["source maths", "source kovesh", "source sorting"] and len(names) >= 4


def test_a_winner_that_is_a_start_is_called_by_its_name():
    starts = spaces.of_method("ties", "layers x modules").bind(4).starts()
    names = {s.name: start_of(starts, dict(s.params)).words for s in starts}
    assert names["source maths"] == "maths as it is" and names["published ties"] == "ties with its published settings"
    other = {n: 0.123 for n in starts[0].params}
    assert start_of(starts, other) is None
