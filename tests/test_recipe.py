"""Recipes: mergekit's YAML in and out, and a hash of what it means."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from evomerge.errors import RecipeError
from evomerge.methods import METHODS
from evomerge.recipe import ModelReference, Recipe, load_recipe, number, parse_chain, parse_recipe, resolve

TIES = """
models:
  - model: org/base
  - model: org/a@v1
    parameters:
      density: [1, 0.7, 0.1] # density gradient
      weight: 1.0
  - model: ./b
    parameters:
      density: 0.5
      weight: [0, 0.3, 0.7, 1] # weight gradient
  - model: zoo:c
    parameters:
      weight:
        - filter: mlp
          value: 0.5
        - value: 0
merge_method: ties
base_model: org/base
parameters:
  normalize: true
  int8_mask: true
dtype: float16
tokenizer_source: union
"""
SLICES = """
slices:
  - sources:
      - model: a
        layer_range: [0, 32]
      - model: b
        layer_range: [0, 32]
merge_method: slerp
base_model: a
parameters:
  t:
    - filter: self_attn
      value: [0, 0.5, 0.3, 0.7, 1]
    - filter: mlp
      value: [1, 0.5, 0.7, 0.3, 0]
    - value: 0.5
dtype: bfloat16
"""
STACK = """
slices:
- sources: [{model: a, layer_range: [0, 24]}]
- sources: [{model: b, layer_range: [8, 32], parameters: {scale: [{filter: o_proj, value: 0.0}, {value: 1.0}]}}]
merge_method: passthrough
"""


# ---- reading


def test_mergekits_published_examples() -> None:
    ties = parse_recipe(TIES)
    assert ties.references() == ["org/base", "org/a@v1", "./b", "zoo:c"]
    assert ties.models is not None and ties.models[2].parameters == {"density": 0.5, "weight": [0, 0.3, 0.7, 1]}
    slerp = parse_recipe(SLICES)
    assert slerp.slices is not None and slerp.slices[0].sources[1].layer_range == (0, 32)
    assert slerp.method is METHODS["slerp"] and slerp.references() == ["a", "b"]
    assert parse_recipe(STACK).references() == ["a", "b"]


@pytest.mark.parametrize("text", [TIES, SLICES, STACK])
def test_what_is_written_reads_back_equal(text: str) -> None:
    recipe = parse_recipe(text)
    recipe = recipe.with_extras(seed=3, sources={recipe.references()[0]: "00"}, provenance={"study": "s"})
    assert parse_recipe(recipe.to_yaml()) == recipe
    assert parse_recipe(recipe.to_yaml()).hash() == recipe.hash()
    plain = yaml.safe_load(parse_recipe(text).to_yaml())
    assert "evomerge" not in plain, "a plain recipe stays mergekit's"


@pytest.mark.parametrize("text", [TIES, SLICES, STACK])
def test_mergekit_reads_what_we_write(text: str) -> None:
    config = pytest.importorskip("mergekit.config")
    ours = parse_recipe(text).to_yaml()
    assert config.MergeConfiguration.model_validate(yaml.safe_load(ours)) == config.MergeConfiguration.model_validate(
        yaml.safe_load(text)
    )


def test_from_a_file(tmp_path: Path) -> None:
    (tmp_path / "recipe.yaml").write_text(TIES)
    assert load_recipe(tmp_path / "recipe.yaml") == parse_recipe(TIES)
    with pytest.raises(RecipeError, match=r'recipes.yaml: no such file; did you mean ".*recipe.yaml"'):
        load_recipe(tmp_path / "recipes.yaml")


BAD = {
    'unknown merge method; did you mean "ties"?': TIES.replace("merge_method: ties", "merge_method: tise"),
    'unknown key "base_modle"; did you mean "base_model"?': TIES.replace("base_model:", "base_modle:"),
    'r:6: unknown key "models.1.wieght"': "merge_method: ties\nbase_model: a\nmodels:\n- model: a\n- model: b\n"
    "  wieght: 1\n",
    'has no parameter "wieght"; did you mean "weight"?': TIES.replace("weight: 1.0", "wieght: 1.0"),
    "density = 1.5: expected a number from 0 to 1": TIES.replace("density: 0.5", "density: 1.5"),
    "weight = nan: expected a finite number": TIES.replace("weight: 1.0", "weight: .nan"),
    "weight = 'much': expected a number": TIES.replace("weight: 1.0", "weight: much"),
    "normalize = 'perhaps': expected true or false": TIES.replace("normalize: true", "normalize: perhaps"),
    'merge_method "ties" needs a base_model': TIES.replace("base_model: org/base", ""),
    'expected exactly one of "models", "slices" and "modules", got none': "merge_method: linear",
    "got ['models', 'slices']": TIES + "slices: [{sources: [{model: a, layer_range: [0, 1]}]}]",
    "layer_range = [32, 8]: expected [first, end], two whole": STACK.replace("[8, 32]", "[32, 8]"),
    "equally many layers, got [32, 31]": SLICES.replace("b\n        layer_range: [0,", "b\n        layer_range: [1,"),
    "\"tokenizer_source\" and \"tokenizer\" cannot both": TIES + "tokenizer: {source: base}",
    "dtype = 'float8': expected 'float32'": TIES.replace("dtype: float16", "dtype: float8"),
    "is given twice": TIES + "dtype: float32",
    "YAML syntax error": "models: [",
    "expected a mapping": "- a",
    'key "merge_method" is missing': "models: [{model: a}]",
}  # fmt: skip


@pytest.mark.parametrize("words", BAD)
def test_refused(words: str) -> None:
    with pytest.raises(RecipeError) as e:
        parse_recipe(BAD[words], "r")
    assert words in str(e.value) and str(e.value).startswith("r") and e.value.exit_code == 2


VALUE = "a number, a word, true or false"
WRONG = {
    "{weight: null}": f"weight = nothing (empty): expected {VALUE}, a gradient (a list of them), or a list of {{filter",
    "{weight: {x: 1}}": "weight = {'x': 1}: expected a number",
    "{weight: []}": "weight = []: expected a number",
    "{weight: [1, null]}": f"weight.1 = nothing (empty): expected {VALUE}",
    "{weight: [[1]]}": f"weight.0 = [1]: expected {VALUE}",
    "{weight: [0.1, {filter: mlp, value: 1}]}": "weight.0 = 0.1: expected a mapping",
    "{weight: [{filter: mlp, value: []}]}": f"value = []: expected {VALUE}, or a gradient (a list of them)",
    "{weight: {filter: mlp, value: {value: 1}}}": f"value = {{'value': 1}}: expected {VALUE}, or a gradient",
    "{weight: [{filter: 3, value: 1}]}": "weight.0.filter = 3: expected a valid string",
    "{weight: {filter: mlp}}": 'key "models.0.parameters.weight.value" is missing',
    "{weight: 2020-01-01}": "weight = datetime.date(2020, 1, 1): expected a number",
    "{normalise: [true, false]}": 'normalise = [True, False]: merge_method "linear" has no parameter "normalise"',
}


@pytest.mark.parametrize("parameters", WRONG)
def test_one_wrong_value_has_one_message(parameters: str) -> None:
    with pytest.raises(RecipeError) as e:
        parse_recipe(f"merge_method: linear\nmodels:\n- {{model: a, parameters: {parameters}}}\n", "r")
    (line,) = str(e.value).splitlines()
    assert WRONG[parameters] in line and line.startswith("r:3: ")


@pytest.mark.parametrize(
    ("source", "words"),
    [
        ("{kind: what}", "x.source = {'kind': 'what'}: expected a model, {kind: zero}, or {kind: model_token"),
        ("{kind: [zero]}", "x.source = {'kind': ['zero']}: expected a model"),
        ("5", "x.source = 5: expected a model"),
        ("{kind: zero, token: a}", 'unknown key "tokenizer.tokens.x.source.token"'),
        ("{kind: model_token, token: a}", 'key "tokenizer.tokens.x.source.model" is missing'),
        ("{kind: model_token, model: a}", "'model': 'a'}: expected exactly one of \"token\" and \"token_id\""),
    ],
)
def test_one_wrong_source_of_a_token_has_one_message(source: str, words: str) -> None:
    with pytest.raises(RecipeError) as e:
        parse_recipe(f"{LINEAR}tokenizer: {{tokens: {{x: {{source: {source}}}}}}}\n", "r")
    (line,) = str(e.value).splitlines()
    assert words in line and line.startswith("r:4: ")


LINEAR = "merge_method: linear\nmodels: [{model: a}, {model: b}]\nparameters: {weight: 1}\n"


@pytest.mark.parametrize("given", ["[0, 1, 2]", "3", "[a, b]", "[2, 1]", "[0.5, 2]", "{a: 1}", "[-1, 2]", "null"])
def test_a_wrong_layer_range_has_one_message(given: str) -> None:
    with pytest.raises(RecipeError) as e:
        parse_recipe(f"merge_method: passthrough\nslices: [{{sources: [{{model: a, layer_range: {given}}}]}}]\n", "r")
    assert str(e.value).startswith("r:2: slices.0.sources.0.layer_range = ") and "\n" not in str(e.value)
    assert str(e.value).endswith("expected [first, end], two whole numbers with 0 <= first < end")


def test_a_wrong_field_hides_nothing_of_the_rest() -> None:
    """What pydantic looks at only once every field is right: parameters, the base, one of `models` and `slices`."""
    with pytest.raises(RecipeError) as e:
        parse_recipe(
            "merge_method: slerp\n"
            "dtype: half\n"
            "slices:\n"
            "- parameters: {tt: 1}\n"
            "  sources:\n"
            "  - {model: a, layer_range: [0, 2], parameters: {t: 0.5, s: 1}}\n"
            "  - {model: b, layer_range: [0, 3]}\n"
            "models: [{model: a}]\n"
            "parameters: {t: [0.5, much]}\n"
            "evomerge: {seed: -1, sources: {aa: x}}\n",
            "r",
        )
    lines = str(e.value).splitlines()
    expected = (
        "r:2: dtype = 'half'",
        "r:10: evomerge.seed = -1",
        "equally many layers, got [2, 3]",
        "r: expected exactly one of",
        'r: merge_method "slerp" needs a base_model',
        "r:9: parameters.t = 'much': expected a number",
        "r:4: slices.0.parameters.tt = 1: merge_method",
        "r:6: slices.0.sources.0.parameters.s = 1: merge_method",
        'r:10: evomerge.sources.aa = \'x\': the recipe names no model "aa"; did you mean "a"?',
    )
    for words in expected:
        assert sum(words in line for line in lines) == 1, (words, lines)
    assert len(lines) == len(expected)


@pytest.mark.parametrize("rest", ["", "tokenizer_source: c\n", "tokenizer: {source: c}\n"])
def test_content_hashes_of_models_that_the_recipe_does_not_name(rest: str) -> None:
    with pytest.raises(RecipeError) as e:
        parse_recipe(f"{LINEAR}{rest}evomerge: {{sources: {{b: x, zoo:c: y}}}}\n", "r")
    (line,) = str(e.value).splitlines()
    assert "evomerge.sources.zoo:c = 'y': the recipe names no model \"zoo:c\"" in line
    assert ("Valid: a, b, c" in line) == bool(rest)
    long = LINEAR.replace("{model: a}", "{model: {model: {path: a, revision: v1}, lora: l}}")
    read = parse_recipe(f"{long}{rest}evomerge: {{sources: {{a@v1+l: x, b: y}}}}\n", "r")
    assert read.evomerge.sources == {"a@v1+l": "x", "b": "y"}
    fisher = "merge_method: fisher\nmodels: [{model: a}]\nevomerge: {statistics: {a: ./f}, sources: {a: x, ./f: y}}"
    assert parse_recipe(fisher).evomerge.sources == {"a": "x", "./f": "y"}


def test_every_problem_of_a_file_comes_at_once() -> None:
    with pytest.raises(RecipeError) as e:
        parse_recipe("merge_method: ties\nmodels: [{modle: a}]\ndtype: x\nbase: b", "r")
    assert len(str(e.value).splitlines()) == 5


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("org/m", ModelReference("org/m")),
        ("org/m@v1", ModelReference("org/m", "v1")),
        ("org/m@v1+l@v2", ModelReference("org/m", "v1", "l", "v2")),
        ("zoo:base+l", ModelReference("zoo:base", None, "l")),
    ],
)
def test_references(text: str, expected: ModelReference) -> None:
    assert ModelReference.parse(text) == expected and str(expected) == text


@pytest.mark.parametrize("text", ["", "@v1", "a@", "a+", "a+@v", "a+l@"])
def test_references_with_empty_parts(text: str) -> None:
    with pytest.raises(RecipeError, match="expected path"):
        ModelReference.parse(text)


# ---- values


def test_resolve() -> None:
    assert resolve(0.5, "w", 0.3) == 0.5 and resolve(None, "w", 0.3) is None and resolve([], "w", 0.3) is None
    assert [resolve([0, 1, 4], "w", t) for t in (0, 0.25, 0.5, 0.75, 1.0)] == [0, 0.5, 1, 2.5, 4]
    assert resolve([7], "w", 0.4) == 7
    assert [resolve([True, False], "w", t) for t in (0.0, 0.99, 1.0)] == [True, True, False]
    assert resolve(["1e-1", "3e-1"], "w", 0.5) == pytest.approx(0.2)
    assert number("1e-3") == 0.001
    conditions = parse_recipe(SLICES).parameters["t"]  # type: ignore[index]
    assert resolve(conditions, "model.layers.3.self_attn.q_proj.weight", 0.25) == 0.5
    assert resolve(conditions, "model.layers.3.mlp.up_proj.weight", 1.0) == 0
    assert resolve(conditions, "model.norm.weight", 1.0) == 0.5
    only = parse_recipe(SLICES.replace("    - value: 0.5\n", "")).parameters["t"]  # type: ignore[index]
    assert resolve(only, "model.norm.weight", 1.0) is None


@given(
    st.lists(st.floats(-10, 10), min_size=1, max_size=6), st.floats(0, 1)
)  # numpy's interpolation as the oracle, on any gradient
def test_gradients_interpolate_linearly(values: list[float], t: float) -> None:
    import numpy as np

    expected = float(np.interp(t * (len(values) - 1), range(len(values)), values))
    assert resolve(list(values), "w", t) == pytest.approx(expected, abs=1e-9)


# ---- hash


def test_the_hash_covers_what_a_recipe_means() -> None:
    recipe = parse_recipe(TIES)
    same = [
        recipe.with_extras(provenance={"study": "x"}),
        recipe.with_extras(seed=9),  # ties draws nothing
        parse_recipe(TIES.replace("weight: 1.0", "weight: 1")),
        parse_recipe(yaml.safe_dump(yaml.safe_load(TIES), sort_keys=True)),
    ]
    assert {r.hash() for r in same} == {recipe.hash()}
    changes = [("weight: 1.0", "weight: 1.001"), ("0.7, 0.1", "0.7, 0.2"), ("filter: mlp", "filter: mlp."),
               ("dtype: float16", "dtype: float32"), ("normalize: true", "normalize: false"), ("./b", "./c"),
               ("merge_method: ties", "merge_method: dare_ties"), ("tokenizer_source: union", "")]  # fmt: skip
    hashes = {parse_recipe(TIES.replace(*c)).hash() for c in changes}
    assert len(hashes) == len(changes) and recipe.hash() not in hashes


def test_the_hash_covers_the_seed_where_masks_are_drawn() -> None:
    recipe = parse_recipe(TIES.replace("merge_method: ties", "merge_method: dare_ties"))
    assert recipe.with_extras(seed=1).hash() != recipe.hash()


def test_the_hash_covers_content_not_paths() -> None:
    def of(base: str, other: str, contents: dict[str, str] | None = None, **extras: Any) -> str:
        text = (f"{{merge_method: slerp, base_model: {base}, models: [{{model: {other}}}], parameters: {{t: 0.5}}, "
                f"tokenizer: {{source: {other}}}}}")  # fmt: skip
        return parse_recipe(text).with_extras(**extras).hash(contents)

    here = of("a", "b", {"a": "0" * 64, "b": "1" * 64})
    assert of("/x/a", "./y/b", {"/x/a": "0" * 64, "./y/b": "1" * 64}) == here
    assert of("a", "b", sources={"a": "0" * 64, "b": "1" * 64}) == here
    assert of("a", "b", {"a": "0" * 64, "b": "2" * 64}) != here
    assert of("a", "b", {"b": "0" * 64, "a": "1" * 64}) != here


def test_the_hash_is_the_same_in_a_fresh_process() -> None:
    code = "import sys; from evomerge.recipe import parse_recipe; print(parse_recipe(sys.stdin.read()).hash())"
    out = subprocess.run([sys.executable, "-c", code], input=TIES, capture_output=True, text=True, check=True)
    assert out.stdout.strip() == parse_recipe(TIES).hash()


def test_the_hash_of_old_recipes_stays() -> None:
    # Written in studies and model cards: a change here would make them strangers.
    assert parse_recipe(STACK).hash() == GOLDEN


GOLDEN = "867c41af989f15f9ecf7122d2adfc7d95c7f5f0045d753e7e71e817505bd5567"

names = st.sampled_from(["org/a", "./b", "zoo:c", "d@v1"])
scalar = st.one_of(st.floats(-3, 3, allow_nan=False), st.integers(-2, 2))
setting = st.one_of(
    scalar,
    st.lists(scalar, min_size=1, max_size=4),
    st.lists(
        st.fixed_dictionaries({"value": st.one_of(scalar, st.lists(scalar, min_size=1, max_size=3))},
                              optional={"filter": st.sampled_from(["mlp", "*", "norm"])}),
        min_size=1, max_size=3,
    ),
)  # fmt: skip


@given(
    st.lists(st.tuples(names, setting), min_size=1, max_size=3),
    st.sampled_from(["linear", "task_arithmetic"]),
    st.sampled_from([None, "float32", "bfloat16"]),
    st.integers(0, 5),
)
def test_round_trip(models: list[tuple[str, Any]], method: str, dtype: str | None, seed: int) -> None:
    data = {
        "merge_method": method,
        "base_model": "base",
        "models": [{"model": m, "parameters": {"weight": s}} for m, s in models],
        "dtype": dtype,
        "evomerge": {"seed": seed},
    }
    recipe = Recipe.model_validate(data)
    again = parse_recipe(recipe.to_yaml())
    assert again == recipe and again.hash() == recipe.hash()
    assert Recipe.model_validate(json.loads(json.dumps(recipe.to_dict()))) == recipe


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("merge_method: linear\nmodels: [{model: a, parameters: {weight: [0.1, 0.9]}}]", "models.0.parameters.weight:"),
        ("merge_method: linear\nmodels: [{model: a}]\nparameters: {weight: [{value: [0.1, 0.9]}]}", "first, 0.1"),
        ("merge_method: dare_ties\nbase_model: b\nmodels: [{model: a}]\nparameters: {weight: 1}", "random masks"),
        ("merge_method: linear\nmodels: [{model: a, parameters: {weight: [0.1, 0.9, 0.1]}}]", ""),
        (
            "merge_method: linear\nmodels: [{model: a}]\nparameters: "
            "{weight: [{filter: mlp, value: [0.1, 0.9]}, {value: 1}]}",
            "",
        ),
        ("merge_method: linear\nmodels: [{model: a, parameters: {weight: [0, 1]}}]\nevomerge: {seed: 0}", ""),
    ],
)
def test_what_mergekit_builds_in_another_way_is_told(text: str, words: str) -> None:
    said = parse_chain(text).unlike_mergekit()
    assert len(said) == bool(words) and all(words in line for line in said)
