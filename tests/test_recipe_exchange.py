"""mergekit's YAML in, mergekit's YAML out: any recipe means the same to mergekit before and after."""

from __future__ import annotations

import json
from typing import Any

import pytest
import yaml
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from evomerge.methods import IGNORED_PARAMETERS, METHODS, Method, Parameter
from evomerge.recipe import parse_chain, parse_recipe

config = pytest.importorskip("mergekit.config")

Data = dict[str, Any]
MODELS = ["org/a", "org/b@main", "./c", "zoo:d", "org/e+org/lora", "f@v1+./lora@v2", "union", "a folder/g"]
TOKENS = ["<|im_end|>", "Ġthe", "source", "tokenizer", "1", "a: b", "naïve", "null"]
FILTERS = ["mlp", "self_attn", "*", "embed_tokens", "layernorm: x"]


def named(reference: str) -> st.SearchStrategy[Any]:
    """A reference as it is, or in mergekit's long form."""
    model, _, lora = reference.partition("+")
    paths = [dict(zip(("path", "revision"), part.split("@"), strict=False)) for part in (model, lora) if part]
    long = dict(zip(("model", "lora"), paths, strict=False))
    return st.sampled_from([reference, reference, {**long}, {"model": model, **({"lora": lora} if lora else {})}])


references = st.sampled_from(MODELS).flatmap(named)
# Where mergekit takes words beside models, a model cannot bear one of them, nor two revisions (its parser stops there).
models_or_words = st.sampled_from([m for m in MODELS if m != "union" and m.count("@") < 2]).flatmap(named)


def scalar(parameter: Parameter) -> st.SearchStrategy[Any]:
    if parameter.kind == "bool":
        return st.booleans() | st.sampled_from([0, 1])
    if parameter.kind == "choice":
        return st.sampled_from(parameter.choices)
    low = parameter.low if parameter.low is not None else -3.0
    high = parameter.high if parameter.high is not None else 9.0
    if parameter.kind == "int":
        return st.integers(int(low), int(high))
    return st.floats(low, high, allow_nan=False) | st.integers(int(-(-low // 1)), int(high))


def setting(parameter: Parameter) -> st.SearchStrategy[Any]:
    plain = scalar(parameter)
    gradient = st.lists(plain, min_size=1, max_size=4)
    condition = st.fixed_dictionaries({"value": plain | gradient}, optional={"filter": st.sampled_from(FILTERS)})
    return plain | gradient | st.lists(condition, min_size=1, max_size=3) | condition


def parameters(method: Method) -> st.SearchStrategy[Data]:
    known = {p.name: setting(p) for p in method.parameters}
    return st.fixed_dictionaries({}, optional={**known, **{name: st.booleans() for name in sorted(IGNORED_PARAMETERS)}})


def inputs(method: Method) -> st.SearchStrategy[list[Data]]:
    one = st.fixed_dictionaries({"model": references}, optional={"parameters": parameters(method)})
    return st.lists(one, min_size=1, max_size=3)


@st.composite
def slices(draw: st.DrawFn, method: Method) -> Data:
    length = draw(st.integers(1, 9))
    sources = []
    for entry in draw(inputs(method)):
        first = draw(st.integers(0, 9))
        sources.append({**entry, "layer_range": [first, first + length]})
    optional = {"base_model": references, "parameters": parameters(method), "residual_weight": st.floats(0, 1)}
    return {"sources": sources, **draw(st.fixed_dictionaries({}, optional=optional))}


def token() -> st.SearchStrategy[Data]:
    other = st.fixed_dictionaries({"kind": st.just("model_token"), "model": models_or_words})
    by = st.sampled_from([{"token": t} for t in TOKENS]) | st.builds(lambda i: {"token_id": i}, st.integers(0, 9))
    source = st.builds(lambda a, b: {**a, **b}, other, by) | st.just({"kind": "zero"}) | models_or_words
    return st.fixed_dictionaries({"source": source}, optional={"force": st.booleans()})


tokenizers = st.fixed_dictionaries(
    {},
    optional={
        "source": st.sampled_from(["union", "base"]) | models_or_words,
        "tokens": st.dictionaries(st.sampled_from(TOKENS), token(), max_size=3),
        "pad_to_multiple_of": st.integers(1, 128),
    },
)


@st.composite
def recipes(draw: st.DrawFn) -> Data:
    method = METHODS[draw(st.sampled_from(sorted(METHODS)))]
    body = inputs(method), st.lists(slices(method), min_size=1, max_size=2)
    which = draw(st.sampled_from(["models", "slices", "modules"]))
    data: Data = {"merge_method": method.name}
    if which == "modules":
        module = st.fixed_dictionaries({"models": body[0]}) | st.fixed_dictionaries({"slices": body[1]})
        optional = {"parameters": parameters(method)}
        full = st.builds(lambda a, b: {**a, **b}, module, st.fixed_dictionaries({}, optional=optional))
        data["modules"] = draw(st.dictionaries(st.sampled_from(["text_decoder", "vision_tower"]), full, min_size=1))
    else:
        data[which] = draw(body[which == "slices"])
    if method.base == "required" or draw(st.booleans()):
        data["base_model"] = draw(references)
    types = st.sampled_from(["float32", "float16", "bfloat16", "float64"])
    templates = st.sampled_from(["auto", "chatml", "{% for m in messages %}\n  {{ m.content }}\n\n{% endfor %}\n"])
    optional = {"parameters": parameters(method), "dtype": types, "out_dtype": types, "chat_template": templates}
    data.update(draw(st.fixed_dictionaries({}, optional=optional)))
    words = draw(st.sampled_from(["none", "tokenizer_source", "tokenizer"]))
    if words == "tokenizer_source":
        data[words] = draw(st.sampled_from(["union", "base"]) | models_or_words)
    elif words == "tokenizer":
        data[words] = draw(tokenizers)
    return data


@settings(max_examples=120, deadline=None, suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large])
@given(data=recipes(), flow=st.booleans())
def test_mergekit_reads_ours_as_it_read_the_original(data: Data, flow: bool) -> None:
    text = json.dumps(data) if flow else yaml.safe_dump(data, allow_unicode=True)
    recipe = parse_recipe(text)
    written = recipe.to_yaml()
    theirs = config.MergeConfiguration.model_validate(yaml.safe_load(text))
    assert config.MergeConfiguration.model_validate(yaml.safe_load(written)) == theirs
    assert parse_recipe(written) == recipe and parse_recipe(written).hash() == recipe.hash()
    # What mergekit writes is read as the same recipe, too. It cannot write names with spaces, and it sorts the tokens,
    # whose order is that of their numbers.
    if "a folder" not in text and len((data.get("tokenizer") or {}).get("tokens") or ()) < 2:
        assert parse_recipe(theirs.to_yaml()).hash() == recipe.hash()


@settings(max_examples=30, deadline=None, suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large])
@given(documents=st.lists(recipes(), min_size=1, max_size=3))
def test_so_it_does_with_chains(documents: list[Data]) -> None:
    for i, document in enumerate(documents[:-1]):
        document["name"] = f"step{i}"
        last = documents[-1]
        (last.get("models") or [s["sources"][0] for s in last.get("slices") or []] or [{}])[0]["model"] = f"step{i}"
    chain = parse_chain(yaml.safe_dump_all(documents))
    again = parse_chain(chain.to_yaml())
    assert again.steps == chain.steps and again.hash() == chain.hash()


@pytest.mark.parametrize(
    ("reference", "message"),
    [
        ({"model": "a", "override_architecture": "X"}, "override_architecture is not supported"),
        ({"path": "a"}, r"expected path\[@revision\]"),
        ({"model": {"path": 3}}, "expected a path, or"),
    ],
)
def test_a_wrong_long_form(reference: Data, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        parse_recipe(json.dumps({"merge_method": "linear", "models": [{"model": reference}]}))
