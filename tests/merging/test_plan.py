"""Gradients, filters, precedence, the base, the place of a tensor: what a recipe means, tensor by tensor."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from evomerge.errors import InputError, RecipeError, SourceError
from evomerge.merging.engine import Engine
from evomerge.merging.plan import Plan
from evomerge.recipe import parse_recipe
from evomerge.sources import open_sources

Family = tuple[str, str, str]


def plan(text: str, family: Family, **names: str) -> Plan:
    base, a, b = family
    for short, folder in {"BASE": base, "A": a, "B": b, **names}.items():
        text = text.replace(f"<{short}>", folder)
    recipe = parse_recipe(text)
    return Engine(open_sources(recipe.references())).plan(recipe)


def weights(p: Plan, parameter: str = "weight") -> dict[str, Any]:
    return {t.name: t.parameters[parameter] for t in p.tensors}


def test_gradient_runs_over_the_layers_and_takes_its_ends_before_and_after(family: Family) -> None:
    w = weights(plan("""
merge_method: task_arithmetic
base_model: <BASE>
models:
  - {model: <A>, parameters: {weight: [0.0, 1.0]}}
  - {model: <B>, parameters: {weight: [1, 0, 4]}}
""", family))  # fmt: skip
    assert w["model.embed_tokens.weight"] == (0.0, 1.0)
    assert [w[f"model.layers.{i}.mlp.up_proj.weight"] for i in range(3)] == [(0.0, 1.0), (0.5, 0.0), (1.0, 4.0)]
    # mergekit gives the first value to what comes after the layers; here it is the last.
    assert w["model.norm.weight"] == w["lm_head.weight"] == (1.0, 4.0)


def test_a_single_layer_slice_has_t_1(family: Family) -> None:
    w = weights(plan("""
merge_method: slerp
base_model: <BASE>
slices:
  - sources: [{model: <BASE>, layer_range: [0, 1]}, {model: <A>, layer_range: [0, 1]}]
  - sources: [{model: <BASE>, layer_range: [1, 3]}, {model: <A>, layer_range: [1, 3]}]
parameters: {t: [0.2, 0.6]}
""", family), "t")  # fmt: skip
    assert w["model.embed_tokens.weight"] == pytest.approx(0.2)
    got = [w[f"model.layers.{i}.mlp.up_proj.weight"] for i in range(3)]
    assert got == pytest.approx([0.6, 0.2, 0.6])
    assert w["model.norm.weight"] == pytest.approx(0.6)


def test_filters_and_precedence(family: Family) -> None:
    p = plan("""
merge_method: ties
base_model: <BASE>
slices:
  - sources:
      - model: <BASE>
        layer_range: [0, 2]
      - model: <A>
        layer_range: [0, 2]
        parameters:
          weight: [{filter: self_attn, value: 1.0}, {filter: mlp, value: [2.0, 3.0]}]
      - model: <B>
        layer_range: [0, 2]
    parameters:
      weight: 4.0
      density: 0.5
  - sources:
      - {model: <A>, layer_range: [2, 3], parameters: {weight: "7e-1"}}
      - {model: <B>, layer_range: [2, 3]}
parameters:
  weight: [{filter: norm, value: 8}, {filter: "*", value: 9}]
  lambda: 0.5
  normalize: false
  int8_mask: true
""", family)  # fmt: skip
    w, d = weights(p), weights(p, "density")
    layer = "model.layers.{}.{}.weight".format
    assert w[layer(0, "self_attn.q_proj")] == (1.0, 4.0)  # source before slice, by the first filter that hits
    assert [w[layer(i, "mlp.up_proj")] for i in (0, 1)] == [(2.0, 4.0), (3.0, 4.0)]  # a gradient inside a filter
    assert w[layer(0, "input_layernorm")] == (4.0, 4.0)  # no filter of the source hits: the slice is asked
    assert w[layer(2, "mlp.up_proj")] == (0.7, 9.0)  # the second slice has no own value: the recipe's
    assert w[layer(2, "input_layernorm")] == (0.7, 8.0)
    assert (d[layer(1, "mlp.up_proj")], d[layer(2, "mlp.up_proj")]) == ((0.5, 0.5), (1.0, 1.0))
    for t in p.tensors:
        assert (t.parameters["lambda_"], t.parameters["normalize"]) == (0.5, False)
        assert t.base is not None and t.base.model == family[0] and len(t.inputs) == 2


def test_filters_of_a_source_see_the_names_of_its_own_layers(family: Family) -> None:
    w = weights(plan("""
merge_method: passthrough
slices:
  - {sources: [{model: <A>, layer_range: [0, 2]}]}
  - sources:
      - {model: <B>, layer_range: [1, 3], parameters: {scale: [{filter: layers.1., value: 5.0}]}}
""", family), "scale")  # fmt: skip
    assert [w[f"model.layers.{i}.mlp.up_proj.weight"] for i in range(4)] == [(1.0,), (1.0,), (5.0,), (1.0,)]


def test_a_base_that_is_not_listed_is_added(family: Family) -> None:
    given = plan("{merge_method: linear, base_model: <BASE>, models: [{model: <A>}], parameters: {weight: 2}}", family)
    assert [i.model for i in given.tensors[0].inputs] == [family[1], family[0]]  # linear averages it too, as mergekit
    listed = """
merge_method: slerp
slices: [{base_model: <BASE>, sources: [{model: <A>, layer_range: [0, 3]}]}]
parameters: {t: 0.5}
"""
    assert plan(listed, family).tensors[5].base is not None


def test_output_types(family: Family) -> None:
    text = "{merge_method: linear, models: [{model: <A>}], parameters: {weight: 1}, %s}"
    for extra, dtype in (("", "BF16"), ("dtype: float32", "F32"), ("dtype: float32, out_dtype: float16", "F16")):
        assert {t.dtype for t in plan(text % extra, family).tensors} == {dtype}


def test_summary(family: Family) -> None:
    p = plan("""
merge_method: task_arithmetic
base_model: <BASE>
models: [{model: <A>, parameters: {weight: [{filter: mlp, value: 1}, {value: 2}]}}]
dtype: float32
""", family)  # fmt: skip
    s = p.summary()
    assert s["tensors"] == 3 * 9 + 3
    assert s["bytes_written"] == 4 * s["parameters"] and s["bytes_read"] == 2 * 2 * s["parameters"]
    others, mlp = s["groups"]
    assert (mlp["tensors"], mlp["parameters"]["weight"], mlp["first"]) == (
        9,
        [1.0],
        "model.layers.0.mlp.down_proj.weight",
    )
    assert mlp["kinds"] == [f"mlp.{kind}_proj.weight" for kind in ("down", "gate", "up")]
    assert (others["tensors"], others["parameters"]["weight"]) == (21, [2.0])
    assert sum(g["elements"] for g in s["groups"]) == s["parameters"]
    a, base = (Path(folder).name for folder in (family[1], family[0]))
    assert mlp["words"] == f"task_arithmetic of {a} (weight 1) on {base}, lambda 1, normalize false"


def test_summary_of_gradients_and_slices(family: Family) -> None:
    s = plan("""
merge_method: linear
slices:
- sources: [{model: <A>, layer_range: [0, 3], parameters: {weight: [0.5, 1.5]}}, {model: <B>, layer_range: [0, 3]}]
- sources: [{model: <B>, layer_range: [1, 2]}]
parameters: {weight: 1, normalize: [{filter: mlp, value: false}]}
""", family).summary()  # fmt: skip
    a, b = (Path(folder).name for folder in family[1:])
    words = {g["kinds"][0]: g["words"] for g in s["groups"]}
    assert words["mlp.down_proj.weight"] == (
        f"linear of {a} (weight 0.5 to 1.5) and {b} (weight 1), normalize false; linear of {b} (weight 1), "
        "normalize false"
    )
    assert words["embed_tokens.weight"] == f"linear of {a} (weight 0.5) and {b} (weight 1), normalize true"
    assert words["lm_head.weight"] == f"linear of {b} (weight 1), normalize true"
    assert sum(g["tensors"] for g in s["groups"]) == s["tensors"] == 4 * 9 + 3


def test_modules_of_a_text_model(family: Family) -> None:
    p = plan("""
merge_method: linear
modules:
  default: {models: [{model: <A>}, {model: <B>}], parameters: {weight: 3}}
parameters: {weight: 5, normalize: false}
""", family)  # fmt: skip
    assert p.tensors[0].parameters == {"weight": (3.0, 3.0), "normalize": False}


ONE = "models: [{model: <A>, parameters: {weight: 1}}]"
BAD = {
    'needs "weight", and "<B>" has none': "{merge_method: linear, models: [{model: <A>, parameters: {weight: 1}}, "
    "{model: <B>}]}",
    'needs "t", and the recipe has none': "{merge_method: slerp, base_model: <BASE>, models: [{model: <A>}]}",
    "takes 1 model(s) beside the base_model; got 2": "{merge_method: slerp, base_model: <BASE>, parameters: {t: 0.5}, "
    "models: [{model: <A>}, {model: <B>}]}",
    "takes 1 model(s); got 2": "{merge_method: passthrough, models: [{model: <A>}, {model: <B>}]}",
    'layer_range [1, 4] of "<A>": the model has 3 layers': "{merge_method: passthrough, "
    "slices: [{sources: [{model: <A>, layer_range: [1, 4]}]}]}",
    "whose layer ranges differ": "{merge_method: ties, base_model: <BASE>, parameters: {weight: 1}, slices: "
    "[{sources: [{model: <A>, layer_range: [0, 2]}, {model: <B>, layer_range: [1, 3]}]}]}",
    "is listed 2 times": "{merge_method: ties, base_model: <BASE>, parameters: {weight: 1}, models: [{model: <BASE>}, "
    "{model: <BASE>}, {model: <A>}]}",
    "slices[1]: merge_method \"ties\" needs a base_model": "{merge_method: ties, parameters: {weight: 1}, slices: "
    "[{base_model: <BASE>, sources: [{model: <A>, layer_range: [0, 2]}]}, {sources: [{model: <A>, "
    "layer_range: [2, 3]}]}]}",
    'unknown module "txt"': "{merge_method: linear, modules: {txt: {models: [{model: <A>}]}}, parameters: {weight: 1}}",
    '"text_decoder" and "default" are both the text_decoder; name it once': "{merge_method: linear, modules: {default: "
    "{models: [{model: <A>}]}, text_decoder: {models: [{model: <A>}]}}, parameters: {weight: 1}}",
    'tokenizer.tokens.x.source: "a" is not merged here': "{merge_method: linear, tokenizer: {source: base, "
    "tokens: {x: {source: a}}}, " + ONE + "}",
    'did you mean "alpaca"?': "{merge_method: linear, chat_template: alpacca, " + ONE + "}",
}  # fmt: skip


@pytest.mark.parametrize("message", BAD)
def test_refused_before_any_work(message: str, family: Family) -> None:
    with pytest.raises(RecipeError) as e:
        plan(BAD[message], family)
    for short, folder in zip(("<BASE>", "<A>", "<B>"), family, strict=True):
        message = message.replace(short, folder)
    assert message in str(e.value)
    assert len(str(e.value).splitlines()) == 1 and e.value.exit_code == 2


EVERYTHING = """
merge_method: linear
models: [{model: <A>}, {model: <B>}]
tokenizer: {source: base, tokens: {x: {source: a}}}
chat_template: nope
"""


def test_problems_of_every_kind_come_at_once(family: Family) -> None:
    with pytest.raises(RecipeError) as e:
        plan(EVERYTHING, family)
    words = (
        "chat_template",
        "tokenizer.tokens.x.source",
        f'"weight", and "{family[1]}"',
        f'"weight", and "{family[2]}"',
    )
    lines = str(e.value).splitlines()
    assert len(lines) == 4 and all(word in line for word, line in zip(words, lines, strict=True))
    with pytest.raises(RecipeError) as e:
        plan("{merge_method: fisher, models: [{model: <A>}, {model: <B>}], chat_template: nope}", family)
    lines = str(e.value).splitlines()
    assert "chat_template" in lines[0] and any("needs statistics" in line for line in lines[1:])


def test_models_that_do_not_fit_hide_nothing_of_the_tokenizer(family: Family, make: Any) -> None:
    text = "{merge_method: linear, models: [{model: <A>}, {model: <C>}], parameters: {weight: 1}, chat_template: nope}"
    with pytest.raises(RecipeError) as e:
        plan(text, family, C=str(make(seed=5, layers=2)))
    assert "chat_template" in str(e.value) and "2 layers against 3" in str(e.value)


def test_all_problems_come_at_once(family: Family) -> None:
    with pytest.raises(RecipeError) as e:
        plan("{merge_method: ties, base_model: <BASE>, models: [{model: <A>}, {model: <B>}]}", family)
    assert len(str(e.value).splitlines()) == 2  # one line for each source, not for each tensor


def test_sources_that_do_not_fit(family: Family, make: Any) -> None:
    text = "{merge_method: linear, models: [{model: <A>}, {model: <C>}], parameters: {weight: 1}}"
    with pytest.raises(SourceError, match=r"2 layers against 3 \(use `slices:`"):
        plan(text, family, C=str(make(seed=5, layers=2)))
    with pytest.raises(SourceError, match="architecture GPTNeoXForCausalLM against LlamaForCausalLM"):
        plan(text, family, C=str(make("gpt_neox", seed=5)))
    with pytest.raises(SourceError, match="has no output head of its own"):
        plan(text, family, C=str(make(seed=5, tied=True)))


def test_a_model_that_is_not_open(family: Family) -> None:
    recipe = parse_recipe(f"{{merge_method: linear, models: [{{model: {family[1]}}}], parameters: {{weight: 1}}}}")
    with pytest.raises(InputError, match="is not open"):
        Engine({}).plan(recipe)
