"""Recipes of other hands: what a space contains, and words for what it does not."""

from __future__ import annotations

from typing import Any

import pytest

from evomerge.errors import SpaceError
from evomerge.recipe import Recipe
from evomerge.space import Space, load_space
from tests.space import spaces

MODELS = ["zoo:maths", "zoo:kovesh", "zoo:sorting"]


def plain(weights: list[float], models: list[str] = MODELS, **keys: Any) -> Recipe:
    """A plain `models:` recipe with one weight each."""
    entries = [{"model": m, "parameters": {"weight": w}} for m, w in zip(models, weights, strict=True)]
    return Recipe.model_validate(
        {"merge_method": "task_arithmetic", "base_model": "zoo:base", "models": entries, **keys}
    )


@pytest.fixture
def quickstart() -> Space:
    return load_space("quickstart").bind(4)


def expect(space: Space, recipe: Recipe, message: str) -> None:
    with pytest.raises(SpaceError, match=message) as caught:
        space.encode(recipe)
    assert "\n" not in str(caught.value)


def test_task_arithmetic_one_one(quickstart: Space) -> None:
    found = quickstart.encode(plain([1, 1, 0]))
    assert {n: v for n, v in found.items() if ".sorting." in n} == dict.fromkeys(
        (n for n in found if ".sorting." in n), 0.0
    )
    assert {v for n, v in found.items() if ".sorting." not in n} == {1.0}


def test_a_source_left_out_has_weight_zero(quickstart: Space) -> None:
    assert quickstart.encode(plain([1], ["zoo:maths"])) == quickstart.encode(plain([1, 0, 0]))
    assert quickstart.encode(plain([1, 1], ["zoo:maths", "zoo:base"])) == quickstart.encode(plain([1, 0, 0]))


def test_a_source_left_out_that_cannot_be_zero() -> None:
    space = spaces.make(method="task_arithmetic", parameters={"weight": {"low": 0.1, "high": 1}}).bind(4)
    expect(space, plain([1], ["zoo:maths"]), r"weight\.kovesh = 0 is outside the space's \[0\.1, 1\]")


def test_uniform_as_task_vectors(quickstart: Space) -> None:
    uniform = plain([1, 1, 1], merge_method="linear", base_model=None)
    found = quickstart.encode(uniform)
    assert list(found.values()) == pytest.approx([1 / 3] * 15)
    half = plain([0.5, 0.5], MODELS[:2], merge_method="linear", base_model=None)
    assert quickstart.encode(half) == quickstart.encode(plain([0.5, 0.5, 0]))
    with_base = plain([1, 1, 2], ["zoo:maths", "zoo:kovesh", "zoo:base"], merge_method="linear", base_model=None)
    assert quickstart.encode(with_base) == quickstart.encode(plain([0.25, 0.25, 0]))


def test_uniform_in_a_linear_space() -> None:
    space = load_space("linear").bind(4)
    assert space.encode(plain([1, 1, 1], merge_method="linear", base_model=None)) == {
        f"weight.{n}": 1.0 for n in ("maths", "kovesh", "sorting")
    }


def test_unnormalised_linear_is_not_task_arithmetic(quickstart: Space) -> None:
    recipe = plain([1, 1, 1], merge_method="linear", base_model=None, parameters={"normalize": False})
    expect(quickstart, recipe, 'merge_method "linear" is not in the space')


def test_filters_of_the_spaces_own(quickstart: Space) -> None:
    setting = [{"filter": "attn", "value": 0.25}, {"value": 0.75}]
    recipe = Recipe.model_validate(
        {
            "merge_method": "task_arithmetic", "base_model": "zoo:base",
            "models": [{"model": m, "parameters": {"weight": setting}} for m in MODELS],
        }
    )  # fmt: skip
    # quickstart reads "attention." beside "attn"; a recipe that tells them apart is finer than it
    expect(quickstart, recipe, r"weight\.maths\.layers_0-1\.attention would be both 0\.25 and 0\.75")
    from tests.space.test_decode import LLAMA

    bound = load_space("quickstart").bind(4, LLAMA)
    found = bound.encode(recipe)
    assert {v for n, v in found.items() if n.endswith("attention")} == {0.25}
    assert {v for n, v in found.items() if not n.endswith("attention")} == {0.75}


def test_slices_cut_otherwise_but_agreeing(quickstart: Space) -> None:
    pieces = [
        {"sources": [{"model": m, "layer_range": r, "parameters": {"weight": 0.5}} for m in MODELS]}
        for r in ([0, 1], [1, 4])
    ]
    recipe = Recipe.model_validate({"merge_method": "task_arithmetic", "base_model": "zoo:base", "slices": pieces})
    assert set(quickstart.encode(recipe).values()) == {0.5}


def test_gradient_is_finer(quickstart: Space) -> None:
    entries = [{"model": m, "parameters": {"weight": [0, 1]}} for m in MODELS]
    recipe = Recipe.model_validate({"merge_method": "task_arithmetic", "base_model": "zoo:base", "models": entries})
    expect(quickstart, recipe, "the recipe is finer than the space")


def test_what_does_not_fit(quickstart: Space) -> None:
    expect(quickstart, plain([1, 2, 0]), r"weight\.kovesh\.embeddings = 2 is outside the space's \[0, 1\.5\]")
    expect(quickstart, plain([1], ["zoo:math"]), r'model "zoo:math" is not in the space; did you mean "zoo:maths"')
    expect(quickstart, plain([1], ["zoo:maths"], base_model="org/b"), r'base_model "org/b" is not .* "zoo:base"')
    expect(quickstart, plain([1, 1, 1], parameters={"normalize": True}), "normalize is True, fixed at False")
    expect(quickstart, plain([1, 1, 1], parameters={"lambda": 0.5}), r"lambda is 0\.5, fixed at 1\.0")
    expect(quickstart, plain([1, 1, 1], tokenizer_source="union"), "tokenizer")
    expect(quickstart, plain([1, 1], ["zoo:maths", "zoo:maths"]), "twice")
    expect(quickstart, plain([1, 1, 1], merge_method="ties"), 'merge_method "ties" is not in the space')
    entries = [{"model": MODELS[0], "parameters": {"weight": [{"filter": "q_proj", "value": 1}, {"value": 0.5}]}}]
    recipe = plain([1], MODELS[:1]).model_dump(exclude_none=True) | {"models": entries}
    expect(quickstart, Recipe.model_validate(recipe), r'filter "q_proj"; the space cuts by: attention\.')


def test_no_weight_at_all(quickstart: Space) -> None:
    recipe = Recipe.model_validate(
        {"merge_method": "task_arithmetic", "base_model": "zoo:base", "models": [{"model": m} for m in MODELS]}
    )
    expect(quickstart, recipe, 'gives no weight for "maths"')


def test_a_path_is_no_parameter_space(quickstart: Space) -> None:
    def piece(a: int, b: int) -> dict[str, Any]:
        return {"sources": [{"model": m, "layer_range": [a, b], "parameters": {"weight": 1}} for m in MODELS]}

    recipe = {"merge_method": "task_arithmetic", "base_model": "zoo:base"}
    expect(quickstart, Recipe.model_validate(recipe | {"slices": [piece(0, 2), piece(1, 4)]}), "path over layers")
    expect(quickstart, Recipe.model_validate(recipe | {"slices": [piece(0, 2)]}), "has 2 layers, the models 4")
    modules = {"modules": {"text": {"models": [{"model": "zoo:maths", "parameters": {"weight": 1}}]}}}
    expect(quickstart, Recipe.model_validate(recipe | modules), "modules")
