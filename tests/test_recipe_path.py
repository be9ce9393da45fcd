"""Paths of data-flow space as plain recipes: there and back, and what is no path."""

from __future__ import annotations

import math
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from evomerge.errors import RecipeError
from evomerge.recipe import Hop, Path, parse_recipe

WRITERS = ("o_proj.", "down_proj.")
MODELS = st.sampled_from(["a", "b", "org/c@v1"])
SCALES = st.floats(0.125, 8.0)
LAYERS = st.lists(st.tuples(MODELS, st.integers(0, 5)), min_size=1, max_size=12)


@st.composite
def paths(draw: st.DrawFn) -> Path:
    layers = draw(LAYERS)
    some = st.lists(SCALES | st.just(1.0), min_size=len(layers), max_size=len(layers))
    return Path.scaled(layers, draw(st.none() | some), draw(st.none() | MODELS), draw(st.none() | MODELS))


@given(paths())
def test_a_path_is_its_recipe(path: Path) -> None:
    recipe = path.recipe(WRITERS, dtype="float32", seed=3)
    assert Path.read(recipe) == path
    assert Path.read(parse_recipe(recipe.to_yaml())) == path
    assert (recipe.dtype, recipe.evomerge.seed) == ("float32", 3)
    # The tokenizer and configuration are those of the first model named; the last slice gives norm and head.
    assert recipe.slices is not None
    assert recipe.references()[0] == path.embeddings and recipe.slices[-1].sources[0].model == path.head
    assert set(recipe.references()) == set(path.models)


@given(LAYERS, st.data())
def test_factors_are_those_of_the_papers_scales(layers: list[tuple[str, int]], data: st.DataObject) -> None:
    scales = data.draw(st.lists(SCALES, min_size=len(layers), max_size=len(layers)))
    path = Path.scaled(layers, scales)
    assert [(hop.model, hop.layer) for hop in path.hops] == layers
    for t, hop in enumerate(path.hops):
        assert hop.factor == pytest.approx(1 / math.prod(scales[: t + 1]), rel=1e-12)
    assert path.scales == pytest.approx(scales, rel=1e-12)


def test_what_a_recipe_looks_like() -> None:
    path = Path.scaled(
        [("a", 0), ("a", 1), ("b", 2), ("b", 3), ("b", 3), ("a", 3)], [1, 1, 0.5, 1, 2, 1], embeddings="b", head="c"
    )
    assert path.recipe(WRITERS).to_dict() == {
        "merge_method": "passthrough",
        "slices": [
            {"sources": [{"model": "b", "layer_range": [0, 0]}]},
            {"sources": [{"model": "a", "layer_range": [0, 2]}]},
            {"sources": [{"model": "b", "layer_range": [2, 4], "parameters": {"scale": [
                {"filter": "o_proj.", "value": 2.0}, {"filter": "down_proj.", "value": 2.0}, {"value": 1.0},
            ]}}]},
            {"sources": [{"model": "b", "layer_range": [3, 4]}]},
            {"sources": [{"model": "a", "layer_range": [3, 4]}]},
            {"sources": [{"model": "c", "layer_range": [0, 0]}]},
        ],
    }  # fmt: skip


def test_ends_that_are_not_named() -> None:
    path = Path.scaled([("a", 0), ("b", 1)])
    assert (path.embeddings, path.head) == ("a", "a")
    path = Path.scaled([("a", 0), ("b", 1)], embeddings="c")
    assert (path.embeddings, path.head, path.models) == ("c", "c", ["c", "a", "b"])


PASS = "merge_method: passthrough\n"
SLICE = "{sources: [{model: a, layer_range: [0, 2]}]}"
NO_PATHS = {
    "another method": "merge_method: linear\nparameters: {weight: 1}\nslices: [<SLICE>]",
    "models": PASS + "models: [{model: a}]",
    "a scale of the recipe": PASS + "parameters: {scale: 2}\nslices: [<SLICE>]",
    "a scale of the slice": PASS + "slices: [{sources: [{model: a, layer_range: [0, 2]}], parameters: {scale: 2}}]",
    "a scale of everything": PASS + "slices: [<scale: 2>]",
    "a gradient": PASS + "slices: [<scale: [1, 2]>]",
    "a rest that is scaled": PASS + "slices: [<scale: [{filter: x, value: 2}, {value: 2}]>]",
    "no rest": PASS + "slices: [<scale: [{filter: x, value: 2}]>]",
    "two scales": PASS + "slices: [<scale: [{filter: x, value: 2}, {filter: y, value: 3}, {value: 1}]>]",
    "a scale that is a gradient": PASS + "slices: [<scale: [{filter: x, value: [2, 3]}, {value: 1}]>]",
    "scale 0": PASS + "slices: [<scale: [{filter: x, value: 0}, {value: 1}]>]",
    "a negative scale": PASS + "slices: [<scale: [{filter: x, value: -1}, {value: 1}]>]",
    "another tokenizer": PASS + "tokenizer_source: union\nslices: [<SLICE>]",
    "new tokens": PASS + "tokenizer: {source: a}\nslices: [<SLICE>]",
    "a base": PASS + "base_model: b\nslices: [<SLICE>]",
    "modules": PASS + "modules: {text_decoder: {slices: [<SLICE>]}}",
}


@pytest.mark.parametrize("name", NO_PATHS)
def test_recipes_that_are_no_paths(name: str) -> None:
    text = NO_PATHS[name].replace("<SLICE>", SLICE)
    text = text.replace("<scale", "{sources: [{model: a, layer_range: [0, 2], parameters: {scale").replace(
        ">]", "}}]}]"
    )
    assert Path.read(parse_recipe(text)) is None


def test_a_stack_is_a_path() -> None:
    assert Path.read(parse_recipe(PASS + f"slices: [{SLICE}]")) == Path((Hop("a", 0), Hop("a", 1)), "a", "a")


LAYER = [("a", 0)]
BAD: dict[str, Any] = {
    "the path is empty: expected at least one layer": lambda: Path.scaled([]),
    "hop 0: scale 0: expected a positive finite number": lambda: Path.scaled(LAYER, [0.0]),
    "hop 1: scale -1: expected a positive finite number": lambda: Path.scaled(LAYER * 2, [1.0, -1.0]),
    "hop 0: scale nan: expected a positive finite number": lambda: Path.scaled(LAYER, [math.nan]),
    "hop 0: scale inf: expected a positive finite number": lambda: Path.scaled(LAYER, [math.inf]),
    "2 scales for 1 hops: expected one for each": lambda: Path.scaled(LAYER, [1.0, 1.0]),
    "hop 1: scale leads to inf: expected a positive finite number": lambda: Path.scaled(LAYER * 2, [1e-200, 1e-200]),
    "hop 1: scale leads to 0: expected a positive finite number": lambda: Path.scaled(LAYER * 2, [1e200, 1e200]),
    "hop 0: layer -1 of 'a': expected 0 or more": lambda: Path.scaled([("a", -1)]),
    "hop 0: scale leads to nan: expected a positive finite number": lambda: Path((Hop("a", 0, math.nan),), "a", "a"),
    "hop 0: scale leads to -2: expected a positive finite number": lambda: Path((Hop("a", 0, -2.0),), "a", "a"),
    "hop 1: scale 2: expected 1, for it is not known which tensors of 'b' write to the residual stream": lambda: (
        Path.scaled([("a", 0), ("b", 0), ("b", 1)], [1, 2, 1]).recipe(())
    ),
}


@pytest.mark.parametrize("words", BAD)
def test_bad_paths(words: str) -> None:
    with pytest.raises(RecipeError) as e:
        BAD[words]()
    assert str(e.value) == words and e.value.exit_code == 2


def test_every_problem_of_a_path_at_once() -> None:
    with pytest.raises(RecipeError) as e:
        Path((Hop("a", -1), Hop("a", 0, 0.0), Hop("b", -2)), "a", "a")
    assert [line.split(":")[0] for line in str(e.value).splitlines()] == ["hop 0", "hop 1", "hop 2"]


def test_a_path_of_unknown_writers_without_scales() -> None:
    path = Path.scaled([("a", 0), ("b", 0)])
    assert Path.read(path.recipe(())) == path


EMPTY_PATH = "0.sources.0.layer_range = [0, 0]: the path is empty: expected at least one layer"
EMPTY = [
    (["a:0"], EMPTY_PATH),
    (["a:0", "b:0"], EMPTY_PATH),
    (
        ["a:2", "b:0", "a:2"],
        "1.sources.0.layer_range = [0, 0]: a slice of no layers gives the embeddings, or norm and head: "
        "expected it to be the first or the last",
    ),
    (["a:0 b:0", "a:2"], "0.sources.0.layer_range = [0, 0]: a slice of no layers names one source, got 2"),
    (["a:2-2"], "0.sources.0.layer_range = [2, 2]: expected [first, end], two whole numbers with 0 <= first < end"),
]


def of(slices: list[str], method: str = "passthrough", more: str = "") -> str:
    """A recipe from "MODEL:LAYERS" of each slice's sources."""

    def source(text: str) -> str:
        model, _, layers = text.partition(":")
        return f"{{model: {model}, layer_range: [{layers.replace('-', ', ') if '-' in layers else f'0, {layers}'}]}}"

    lines = [f"- {{sources: [{', '.join(map(source, piece.split()))}]}}" for piece in slices]
    return f"merge_method: {method}\n{more}slices:\n" + "\n".join(lines)


@pytest.mark.parametrize(("slices", "words"), EMPTY)
@pytest.mark.parametrize("in_a_module", [False, True])
def test_slices_of_no_layers_that_mean_nothing(slices: list[str], words: str, in_a_module: bool) -> None:
    text = of(slices)
    if in_a_module:
        method, *rest = text.splitlines()
        text = "\n".join([method, "modules:", "  text_decoder:", *("    " + line for line in rest)])
    with pytest.raises(RecipeError) as e:
        parse_recipe(text, "r")
    (line,) = str(e.value).splitlines()
    assert line.endswith(f"slices.{words}"), line


@pytest.mark.parametrize(("method", "more"), [("linear", "parameters: {weight: 1}\n"), ("slerp", "base_model: a\n")])
def test_slices_of_no_layers_in_a_merge(method: str, more: str) -> None:
    with pytest.raises(RecipeError) as e:
        parse_recipe(of(["a:0", "a:2"], method, more), "r")
    assert str(e.value).endswith(
        "slices.0.sources.0.layer_range = [0, 0]: expected [first, end] with first < end; "
        "only passthrough takes slices of no layers"
    )


def test_slices_of_no_layers_are_told_with_the_rest() -> None:
    with pytest.raises(RecipeError) as e:
        parse_recipe(of(["a:2", "b:0", "a:2"], more="dtype: half\n"), "r")
    lines = str(e.value).splitlines()
    assert len(lines) == 2 and "dtype = 'half'" in lines[0] and "a slice of no layers gives" in lines[1]


def test_where_they_mean_something() -> None:
    recipe = parse_recipe(of(["b:0", "a:0-2", "c:0"]))
    path = Path.read(recipe)
    assert path == Path((Hop("a", 0), Hop("a", 1)), "b", "c") and recipe.references() == ["b", "a", "c"]
