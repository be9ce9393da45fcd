"""Chains: several documents in one file, in the order of need, and what is refused."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml

from evomerge.errors import RecipeError
from evomerge.recipe import Chain, Recipe, Step, load_chain, load_recipe, parse_chain, parse_recipe

CHAIN = """
merge_method: slerp
base_model: first
models: [{model: second}]
parameters: {t: 0.5}
---
name: second
merge_method: ties
base_model: org/base
models: [{model: first+adapters/x}, {model: org/b@v2}]
parameters: {weight: 1, density: 0.5}
evomerge: {seed: 3}
---
name: first
merge_method: linear
models: [{model: org/a}, {model: ./c}]
parameters: {weight: 1}
"""
ONE = "merge_method: linear\nmodels: [{model: %s}]\nparameters: {weight: 1}\n"


def test_in_the_order_of_need() -> None:
    chain = parse_chain(CHAIN)
    assert [step.name for step in chain.steps] == ["first", "second", None]
    assert chain.final.merge_method == "slerp" and chain.names == ["first", "second"]
    assert chain.references() == ["org/a", "./c", "org/b@v2", "org/base"]
    assert (chain.used("first"), chain.used("first+x"), chain.used("org/a")) == ("first", "first", None)


def test_what_is_written_reads_back_equal() -> None:
    chain = parse_chain(CHAIN)
    again = parse_chain(chain.to_yaml())
    assert again == chain and again.hash() == chain.hash()
    hashes = {"org/a": "11", "./c": "22", "org/b@v2": "33", "org/base": "44"}
    held = chain.with_hashes(hashes)
    assert held.steps[0].recipe.evomerge.sources == {"org/a": "11", "./c": "22"}
    assert held.steps[2].recipe.evomerge.sources == {} and parse_chain(held.to_yaml()) == held


def test_mergekit_multi_reads_what_we_write() -> None:
    multimerge = pytest.importorskip("mergekit.scripts.multimerge")
    found = [multimerge.load_config(text, "parts") for text in (CHAIN, parse_chain(CHAIN).to_yaml())]
    assert found[0] == found[1]
    assert found[1][1] == {None: {"first", "second"}, "second": {"first"}, "first": set()}


def test_a_chain_of_one_is_a_recipe(tmp_path: Path) -> None:
    file = tmp_path / "recipe.yaml"
    for name in ("", "name: alone\n"):
        file.write_text(f"---\n{name}{ONE % 'a'}---\n")
        chain = load_chain(file)
        assert chain.final == load_recipe(file) == parse_recipe(ONE % "a")
        assert chain.to_yaml() == chain.final.to_yaml() and chain.hash({"a": "1"}) == chain.final.hash({"a": "1"})
    with pytest.raises(RecipeError, match="is a chain of 3 recipes, expected one"):
        parse_recipe(CHAIN)


def test_renaming_keeps_the_names_of_steps() -> None:
    names = {"first": "FIRST", "org/a": "/full/a", "first+adapters/x": "first+/full/x", "org/base": "/base"}
    chain = parse_chain(CHAIN).with_references(names)
    assert chain.names == ["first", "second"]
    assert chain.references() == ["/full/a", "./c", "org/b@v2", "/base"]
    assert chain.steps[1].recipe.references() == ["first+/full/x", "org/b@v2", "/base"]


def test_the_hash_is_of_what_is_meant() -> None:
    chain = parse_chain(CHAIN)
    contents = {r: str(i) for i, r in enumerate(chain.references())}
    renamed = parse_chain(CHAIN.replace("first", "one").replace("second", "two"))
    assert renamed.hash(contents) != ""
    assert parse_chain(CHAIN.replace("second", "two")).hash(contents) == chain.hash(contents)
    for old, new in (("weight: 1}", "weight: 2}"), ("t: 0.5", "t: 0.6"), ("model: ./c", "model: org/a")):
        assert parse_chain(CHAIN.replace(old, new)).hash(contents) != chain.hash(contents)
    assert chain.hash({**contents, "org/a": "other"}) != chain.hash(contents)
    # Only the method's own seed counts: linear and slerp draw nothing.
    assert chain.with_extras(seed=9).hash(contents) == chain.hash(contents)
    dare = CHAIN.replace("ties", "dare_ties")
    assert parse_chain(dare).with_extras(seed=9).hash(contents) != parse_chain(dare).hash(contents)


def test_steps_that_nothing_uses_are_left_out() -> None:
    chain = parse_chain(CHAIN + "---\nname: idle\n" + ONE % "first")
    assert chain.unused == ("idle",) and len(chain.steps) == 3


def test_where_every_document_has_a_name_the_last_in_need_is_final() -> None:
    chain = parse_chain("name: b\n" + ONE % "a" + "---\nname: a\n" + ONE % "org/x")
    assert [s.name for s in chain.steps] == ["a", "b"] and chain.names == ["a"]
    assert [d.get("name") for d in yaml.safe_load_all(chain.to_yaml())] == ["a", None]
    assert parse_chain(chain.to_yaml()).hash() == chain.hash()


BAD = {
    "use each other in a circle: a > b > a": f"name: a\n{ONE % 'b'}---\nname: b\n{ONE % 'a'}---\n{ONE % 'a'}",
    "in a circle: a > a": "name: a\n" + ONE % "a+lora" + "---\n" + ONE % "a",
    'two documents have the name "a"': "name: a\n" + ONE % "x" + "---\nname: a\n" + ONE % "y" + "---\n" + ONE % "a",
    "one final document, which has no `name:`; 2 have none": ONE % "x" + "---\n" + ONE % "y",
    "one final document, which has no `name:`; 2 could be it": "name: a\n" + ONE % "x" + "---\nname: b\n" + ONE % "y",
    'name "a+b": expected a name without "@" and "+"': "name: a+b\n" + ONE % "x" + "---\n" + ONE % "y",
    "name = 7: expected a text": "name: 7\n" + ONE % "x",
    "<recipe>:8: merge_method = 'liner'": f"name: a\n{ONE % 'x'}---\n# two\n\n{ONE.replace('linear', 'liner') % 'a'}",
    "expected a mapping of keys to values, got [1]": ONE % "x" + "---\n[1]\n",
    "expected a mapping of keys to values, got nothing": "---\n---\n",
}  # fmt: skip


@pytest.mark.parametrize("message", BAD)
def test_refused_in_one_message(message: str) -> None:
    with pytest.raises(RecipeError) as e:
        parse_chain(BAD[message])
    assert message in str(e.value) and str(e.value).startswith("<recipe>")


def test_every_problem_of_every_document_comes_at_once() -> None:
    bad = (ONE % "x").replace("weight", "wieght")
    with pytest.raises(RecipeError) as e:
        parse_chain(f"name: a\n{bad}---\nname: a\n{bad}")
    assert len(str(e.value).splitlines()) == 2


def test_a_long_chain_needs_no_deep_stack() -> None:
    recipes = [Step(f"s{i}", parse_recipe(ONE % (f"s{i - 1}" if i else "x"))) for i in range(400)]
    chain = Chain.of([Step(None, parse_recipe(ONE % "s399")), *reversed(recipes)])
    assert chain.names == [f"s{i}" for i in range(400)] and isinstance(chain.final, Recipe)
