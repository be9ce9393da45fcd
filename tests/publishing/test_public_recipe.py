"""Recipes as they are published: without anybody's folders, and with the hash that they have."""

from __future__ import annotations

from dataclasses import replace

from evomerge.publishing.sections import public
from evomerge.recipe import Chain, Recipe, parse_chain, parse_recipe

MERGE = """
merge_method: regmean
base_model: /disk/base
models: [{model: /disk/one/maths}, {model: /disk/two/maths}]
evomerge:
  sources:
    /disk/base: b
    /disk/one/maths: m1
    /disk/two/maths: m2
    /s/one/stats: s1
    /s/two/stats: s2
    /s/maths: s0
  statistics: {/disk/one/maths: /s/one/stats, /disk/two/maths: /s/two/stats, /disk/base: /s/maths}
"""


def check(recipe: Recipe | Chain, *parts: str) -> Recipe | Chain:
    shown = public(recipe)
    text = shown.to_yaml()
    assert "/" not in text.replace("\n", "") and all(part in text for part in parts), text
    assert shown.hash() == recipe.hash()
    return shown


def test_folders_of_one_name_stay_two() -> None:
    shown = check(parse_recipe(MERGE))
    assert isinstance(shown, Recipe)
    assert shown.evomerge.sources == {
        "base": "b", "maths": "m1", "maths-2": "m2", "stats": "s1", "stats-2": "s2", "maths-3": "s0"
    }  # fmt: skip
    assert shown.evomerge.statistics == {"maths": "stats", "maths-2": "stats-2", "base": "maths-3"}
    one = parse_recipe(MERGE.replace("/s/two/stats: s2", "/s/two/stats: other"))
    assert public(one).hash() != shown.hash()  # the second folder's content counts


def test_an_old_name_may_be_another_s_new_one() -> None:
    """`stats` is a folder here already, and the last part of a model's."""
    text = MERGE.replace("/disk/one/maths", "/disk/stats").replace("/s/one/stats", "stats")
    shown = check(parse_recipe(text))
    assert isinstance(shown, Recipe)
    assert shown.evomerge.sources["stats"] == "m1" and shown.evomerge.sources["stats-2"] == "s1"


def test_a_folder_that_is_a_model_s_keeps_its_one_name() -> None:
    text = MERGE.replace("/s/maths: s0", "").replace("/disk/base: /s/maths", "/disk/base: /disk/one/maths")
    shown = check(parse_recipe(text))
    assert isinstance(shown, Recipe) and shown.evomerge.statistics["base"] == "maths"


def test_steps_of_a_chain_share_names_and_keep_theirs() -> None:
    """A model whose folder is called as a step is not that step."""
    first = f"name: first\n{MERGE.strip()}\n"
    last = """merge_method: linear
models: [{model: first, parameters: {weight: 1}}, {model: /disk/first, parameters: {weight: 1}}]
evomerge: {sources: {/disk/first: f}}
"""
    chain = parse_chain(f"{first}---\n{last}")
    assert isinstance(chain, Chain)
    shown = check(chain, "stats-2: s2", "model: first-2")
    assert isinstance(shown, Chain) and shown.names == ["first"]
    assert public(replace(chain)).to_yaml() == shown.to_yaml()


def test_models_of_the_hub_keep_their_revision() -> None:
    """Two revisions of one model are two, and both can be fetched again."""
    text = (
        "merge_method: linear\nmodels: [{model: org/m@v1, parameters: {weight: 1}}, "
        "{model: org/m@v2+org/lora@main, parameters: {weight: 1}}, {model: zoo:maths, parameters: {weight: 1}}]\n"
        "evomerge: {sources: {org/m@v1: a, org/m@v2+org/lora@main: b, zoo:maths: c}}"
    )
    recipe = parse_recipe(text)
    assert public(recipe) == recipe
