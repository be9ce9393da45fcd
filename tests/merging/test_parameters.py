"""Parameters of the methods in recipes: what is refused before any work, and what is accepted without an effect."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from evomerge.errors import RecipeError
from evomerge.merging.engine import Engine
from evomerge.methods import METHODS
from evomerge.recipe import Recipe, parse_recipe
from evomerge.sources import open_sources

Family = tuple[str, str, str]


def recipe_of(family: Family, method: str, parameters: str, models: int = 2) -> Recipe:
    base, *sources = family
    listed = ", ".join(f"{{model: {s}}}" for s in sources[:models])
    return parse_recipe(f"merge_method: {method}\nbase_model: {base}\nparameters: {parameters}\nmodels: [{listed}]")


@pytest.mark.parametrize(
    ("method", "parameters", "message"),
    [
        ("nearswap", "{t: -0.1}", "parameters.t = -0.1: expected a number of at least 0"),
        ("ram", "{epsilon: -1e-5}", "parameters.epsilon = '-1e-5': expected a number of at least 0"),
        ("breadcrumbs", "{weight: 1, gamma: 1.5}", "parameters.gamma = 1.5: expected a number from 0 to 1"),
        ("della", "{weight: 1, epsilon: 0.6}", "parameters.epsilon = 0.6: expected a number from 0 to 0.5"),
        ("sce", "{select_topk: 2}", "parameters.select_topk = 2: expected a number from 0 to 1"),
        ("sce", "{weight: 1}", 'merge_method "sce" has no parameter "weight"'),
        ("karcher", "{max_iter: 2.5}", "parameters.max_iter = 2.5: expected a whole number from 0 to 1000"),
        ("karcher", "{max_iter: many}", "parameters.max_iter = 'many': expected a number"),
        ("varm", "{unit: [layer, block]}", "parameters.unit = 'block': Valid: model, layer, matrix, element"),
        ("varm", "{unit: 3}", "parameters.unit = 3: Valid: model, layer, matrix, element"),
        ("model_stock", "{filter_wise: 2}", "parameters.filter_wise = 2: expected true or false"),
        ("linear", "{weight: 1, density: 0.5}", 'merge_method "linear" has no parameter "density"'),
    ],
)
def test_refused_when_the_recipe_is_read(method: str, parameters: str, message: str, family: Family) -> None:
    with pytest.raises(RecipeError) as e:
        recipe_of(family, method, parameters)
    assert message in str(e.value)


@pytest.mark.parametrize(
    ("method", "parameters", "models", "message"),
    [
        ("della", "{weight: 1, density: 0.9}", 2, 'tensor "model.embed_tokens.weight": density 0.9 with epsilon 0.15'),
        ("della_linear", "{weight: 1, density: [0.5, 0.9]}", 2, "here epsilon must be less than 0.1"),
        ("model_stock", "{}", 1, 'merge_method "model_stock" takes at least 2 model(s) beside the base_model; got 1'),
        ("nearswap", "{t: 0.1}", 2, 'merge_method "nearswap" takes 1 model(s) beside the base_model; got 2'),
        ("nuslerp", "{weight: 1}", 1, 'merge_method "nuslerp" takes 2 model(s) beside the base_model; got 1'),
    ],
)
def test_refused_before_any_work(method: str, parameters: str, models: int, message: str, family: Family) -> None:
    recipe = recipe_of(family, method, parameters, models)
    with pytest.raises(RecipeError) as e:
        Engine(open_sources(list(family))).plan(recipe)
    assert message in str(e.value)
    assert len(str(e.value).splitlines()) <= 2, "one line for each problem, not for each tensor"


def test_what_mergekit_takes_and_ignores_changes_nothing(family: Family) -> None:
    engine = Engine(open_sources(list(family)))
    for method, plain, more in (
        ("task_arithmetic", "{weight: 0.4}", "{weight: 0.4, density: 0.5, rescale: true, int8_mask: true}"),
        ("multislerp", "{weight: 0.4}", "{weight: 0.4, eps: 1e-3}"),
    ):
        one, two = (dict(engine.tensors(recipe_of(family, method, p))) for p in (plain, more))
        assert all(torch.equal(one[name], two[name]) for name in one)


def test_a_base_is_apart_a_member_or_nothing(family: Family) -> None:
    plans = {
        method: Engine(open_sources(list(family))).plan(recipe_of(family, method, parameters)).tensors[0]
        for method, parameters in (("nuslerp", "{weight: 1}"), ("karcher", "{}"), ("linear", "{weight: 1}"))
    }
    assert plans["nuslerp"].base is not None and len(plans["nuslerp"].inputs) == 2
    for method in ("karcher", "linear"):
        assert plans[method].base is None and [i.model for i in plans[method].inputs] == [*family[1:], family[0]]


def test_the_reference_page_has_every_method_with_its_parameters() -> None:
    page = (Path(__file__).parents[2] / "docs" / "methods.md").read_text()
    shared: list[str] = []
    seen = []
    for part in page.split("\n### ")[1:]:
        name, _, text = part.partition("\n## ")[0].partition("\n")
        seen.append(name)
        if not text.strip():  # two methods of one text
            shared.append(name)
            continue
        for method in (METHODS[n] for n in (*shared, name)):
            rows = [[c.strip() for c in line.split("|")[1:4]] for line in text.splitlines() if line.startswith("| `")]
            assert [r[0] for r in rows] == [f"`{p.name}`" for p in method.parameters], method.name
            for (_, default, words), p in zip(rows, method.parameters, strict=True):
                own = default.split(" / ")[[*shared, name].index(method.name)] if " / " in default else default
                assert own == written(p.default), f"{method.name}.{p.name}"
                assert ("per source" in words) == p.per_source, f"{method.name}.{p.name}"
                for bound in (p.low, p.high):
                    assert bound is None or p.kind == "bool" or f" {bound:g}" in words, f"{method.name}.{p.name}"
            assert f"Base: {method.base}" in " ".join(text.split()), method.name
        shared = []
    assert sorted(seen) == sorted(METHODS)


def written(default: object) -> str:
    """A default as the page writes it."""
    if default is None:
        return "required"
    if isinstance(default, bool):
        return str(default).lower()
    return f"{default:g}" if isinstance(default, int | float) else str(default)
