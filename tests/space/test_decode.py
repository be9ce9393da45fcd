"""Which tensor gets which parameter, on the tensor names of real architectures, and the form of the recipes."""

from __future__ import annotations

from typing import Any

import pytest

from evomerge.errors import SpaceError
from evomerge.recipe import Recipe, resolve
from evomerge.space import Categorical, Float, Space, default_space, load_space
from evomerge.zoo import path
from tests.space import spaces

LLAMA = [
    "model.embed_tokens.weight",
    *(
        f"model.layers.{i}.{rest}.weight"
        for i in range(4)
        for rest in (
            "input_layernorm",
            "self_attn.q_proj",
            "self_attn.o_proj",
            "post_attention_layernorm",
            "mlp.up_proj",
        )
    ),
    "model.norm.weight",
    "lm_head.weight",
]
NEOX = [
    "gpt_neox.embed_in.weight",
    *(
        f"gpt_neox.layers.{i}.{rest}"
        for i in range(4)
        for rest in (
            "input_layernorm.bias",
            "attention.dense.weight",
            "post_attention_layernorm.bias",
            "mlp.dense_h_to_4h.bias",
        )
    ),
    "gpt_neox.final_layer_norm.weight",
    "embed_out.weight",
]
GPT2 = [
    "transformer.wte.weight",
    "transformer.wpe.weight",
    *(
        f"transformer.h.{i}.{rest}.weight"
        for i in range(4)
        for rest in ("ln_1", "attn.c_attn", "attn.c_proj", "ln_2", "mlp.c_fc")
    ),
    "transformer.ln_f.weight",
]  # fmt: skip


def layer_of(tensor: str) -> int | None:
    return next((int(p) for p in tensor.split(".") if p.isdigit()), None)


def weight_of(recipe: Recipe, model: str, tensor: str, layers: int = 4) -> Any:
    """What a recipe says about one tensor, by mergekit's rules: first slice embeddings, last slice the head."""
    layer = layer_of(tensor)
    if recipe.models:
        found = next(m for m in recipe.models if m.model == model)
        return resolve((found.parameters or {})["weight"], tensor, (layer or 0) / (layers - 1))
    assert recipe.slices
    if layer is None:
        piece = recipe.slices[0 if any(w in tensor for w in ("embed_in", "embed_tokens", "wte", "wpe")) else -1]
    else:
        piece = next(s for s in recipe.slices if s.sources[0].layer_range[0] <= layer < s.sources[0].layer_range[1])
    source = next(s for s in piece.sources if s.model == model)
    return resolve((source.parameters or {})["weight"], tensor, 0.0)


def numbered(space: Space) -> dict[str, Any]:
    """Every parameter a value of its own."""
    return {p.name: p.low + (p.high - p.low) * (i + 1) / 100 for i, p in enumerate(space.parameters)}  # type: ignore[union-attr]


@pytest.mark.parametrize("pruned", [False, True])
@pytest.mark.parametrize("tensors", [LLAMA, NEOX, GPT2], ids=["llama", "gpt_neox", "gpt2"])
@pytest.mark.parametrize("name", ["quickstart", "task_arithmetic_by_module", "ties_dare_layerwise"])
def test_every_tensor_gets_its_own_parameter(name: str, tensors: list[str], pruned: bool) -> None:
    config = load_space(name)
    space = config.bind(4, tensors if pruned else None)
    params = numbered(space)
    recipe = space.decode(params)

    def module(tensor: str) -> str:
        if ".mlp." in tensor:
            return "mlp"
        attention = "self_attn." in tensor or ".attn." in tensor or ".attention." in tensor
        return "attention" if attention else "mlp" if name == "quickstart" else "other"

    for source in ("maths", "kovesh", "sorting"):
        for tensor in tensors:
            layer = layer_of(tensor)
            if layer is None:
                first = any(w in tensor for w in ("embed_in", "embed_tokens", "wte", "wpe"))
                place = "embeddings" if first or name == "quickstart" else "head"
            else:
                place = {
                    "quickstart": f"layers_{'0-1' if layer < 2 else '2-3'}.{module(tensor)}",
                    "task_arithmetic_by_module": module(tensor),
                    "ties_dare_layerwise": f"layer_{layer}",
                }[name]
            assert weight_of(recipe, f"zoo:{source}", tensor) == params[f"weight.{source}.{place}"], tensor


def test_pruned_filters_are_only_the_ones_that_hit() -> None:
    recipe = load_space("quickstart").bind(4, LLAMA).decode(load_space("quickstart").bind(4).initial())
    text = recipe.to_yaml()
    assert "wte" not in text and "attention." not in text and "ln_f" not in text
    assert text.count("filter: embed") == 3 and text.count("filter: lm_head") == 3


def test_a_module_without_tensors_is_refused() -> None:
    space = spaces.make(
        method="linear", parameters={"weight": spaces.WEIGHT}, granularity={"modules": {"a": "self_attn"}}
    )
    with pytest.raises(SpaceError, match=r'granularity\.modules\.a: no tensor .* "self_attn"'):
        space.bind(4, GPT2)


def test_a_head_without_known_names_goes_with_the_last_layers() -> None:
    tensors = [t.replace("model.norm", "model.ln_out") for t in LLAMA if "lm_head" not in t]
    space = load_space("ties_dare_layerwise").bind(4, tensors)
    assert not any("head" in p.name for p in space.parameters)
    params = numbered(space)
    recipe = space.decode(params)
    assert weight_of(recipe, "zoo:maths", "model.ln_out.weight") == params["weight.maths.layer_3"]
    assert space.encode(recipe) == params


def test_the_engine_reads_recipes_alike() -> None:
    """The planner, which knows the zoo's real tensors, gives each the weight that the filters say."""
    from evomerge.merging.planner import Planner
    from evomerge.sources import open_sources

    sources = open_sources(["zoo:base", "zoo:maths", "zoo:kovesh", "zoo:sorting"])
    planner = Planner(sources)
    for name in ("quickstart", "task_arithmetic_by_module", "ties_dare_layerwise"):
        space = load_space(name).bind(4, sources["zoo:base"].tensors)
        recipe = space.decode(numbered(space))
        plan = planner.plan(recipe)
        assert len(plan.tensors) > 30
        for tensor in plan.tensors:
            expected = tuple(weight_of(recipe, f"zoo:{s}", tensor.name) for s in ("maths", "kovesh", "sorting"))
            assert tensor.parameters["weight"] == expected, tensor.name


def test_zoo_presets_bind_to_the_zoo() -> None:
    from safetensors import safe_open

    with safe_open(path("base") / "model.safetensors", "np") as f:
        names = list(f.keys())
    for name in ("quickstart", "linear", "ties_dare_layerwise", "task_arithmetic_by_module"):
        assert load_space(name).bind(4, names).parameters == load_space(name).bind(4).parameters


def test_whole_model_granularity_is_the_models_form() -> None:
    recipe = load_space("linear").bind(4).decode({"weight.maths": 0.25, "weight.kovesh": 0.5, "weight.sorting": 0.0})
    assert recipe.to_dict() == {
        "merge_method": "linear",
        "models": [
            {"model": "zoo:maths", "parameters": {"weight": 0.25}},
            {"model": "zoo:kovesh", "parameters": {"weight": 0.5}},
            {"model": "zoo:sorting", "parameters": {"weight": 0.0}},
        ],
        "parameters": {"normalize": True},
        "dtype": "float32",
        "out_dtype": "bfloat16",
    }


def test_slices_form_lists_the_base_last() -> None:
    space = spaces.make(method="task_arithmetic", parameters={"weight": spaces.WEIGHT},
                        granularity={"layer_groups": 2, "embeddings": "layers"}).bind(5)  # fmt: skip
    recipe = space.decode(numbered(space))
    assert recipe.base_model == "zoo:base"
    assert recipe.slices is not None
    assert [[(s.model, s.layer_range) for s in piece.sources] for piece in recipe.slices] == [
        [("zoo:maths", (0, 2)), ("zoo:kovesh", (0, 2)), ("zoo:base", (0, 2))],
        [("zoo:maths", (2, 5)), ("zoo:kovesh", (2, 5)), ("zoo:base", (2, 5))],
    ]
    assert recipe.slices[0].sources[-1].parameters is None


def test_linear_leaves_the_base_out() -> None:
    space = spaces.of_method("linear", "groups").bind(6)
    recipe = space.decode(space.initial())
    assert recipe.base_model is None
    assert recipe.references() == spaces.SOURCES


def test_slerp_has_its_t_per_slice() -> None:
    space = spaces.of_method("slerp", "groups").bind(6)
    recipe = space.decode({"t.layers_0-1": 0.1, "t.layers_2-3": 0.2, "t.layers_4-5": 0.3})
    assert recipe.slices is not None
    assert [s.parameters for s in recipe.slices] == [{"t": 0.1}, {"t": 0.2}, {"t": 0.3}]


def test_smooth_writes_gradients() -> None:
    space = spaces.of_method("linear", "smooth, bare").bind(6)
    names = [p.name for p in space.parameters if ".maths." in p.name]
    recipe = space.decode(space.initial() | dict(zip(names, [0.0, 0.1, 0.2, 0.3], strict=True)))
    assert recipe.models is not None
    assert recipe.models[0].parameters == {"weight": [0.0, 0.1, 0.2, 0.3]}


def test_coarser_axes() -> None:
    space = spaces.make(
        method="dare_ties", granularity={"layer_groups": 2, "modules": {"mlp": "mlp"}},
        parameters={"weight": {**spaces.WEIGHT, "per": "source"}, "density": {**spaces.DENSITY, "per": ["layers"]},
                    "lambda": {"low": 0.5, "high": 2}},
    ).bind(4)  # fmt: skip
    assert [p.name for p in space.parameters] == [
        "weight.maths", "weight.kovesh",
        "density.embeddings", "density.layers_0-1", "density.layers_2-3", "density.head",
        "lambda",
    ]  # fmt: skip


def test_the_total_order() -> None:
    space = spaces.make(
        method=["ties", "linear"], granularity={"layers_per_group": 2, "modules": {"mlp": "mlp"}},
        parameters={"density": {**spaces.DENSITY, "per": "global"}, "weight": spaces.WEIGHT},
    ).bind(3)  # fmt: skip
    places = ["embeddings", "layers_0-1.mlp", "layers_0-1.other", "layer_2.mlp", "layer_2.other", "head"]
    assert [p.name for p in space.parameters] == [
        "method", *(f"weight.{s}.{p}" for s in ("maths", "kovesh") for p in places), "density",
    ]  # fmt: skip
    assert space.parameters[0] == Categorical("method", ("ties", "linear"), "ties")


def test_starts_in_the_middle_of_the_range_or_of_its_logarithm() -> None:
    space = spaces.make(method="task_arithmetic", parameters={
        "weight": {"low": 0, "high": 3, "per": "global"},
        "lambda": {"low": 0.01, "high": 1, "log": True},
    }).bind(2)  # fmt: skip
    assert space.parameters == (Float("weight", 0, 3, 1.5), Float("lambda", 0.01, 1, pytest.approx(0.1), True))


def test_bad_params_in_one_message() -> None:
    space = load_space("linear").bind(4)
    with pytest.raises(SpaceError) as caught:
        space.decode({"weight.maths": 2.0, "weight.kovish": 0.1, "weight.sorting": float("nan")})
    assert str(caught.value).splitlines() == [
        'unknown parameter "weight.kovish"; did you mean "weight.kovesh"? '
        "Valid: weight.maths, weight.kovesh, weight.sorting",
        "weight.maths = 2.0: outside [0, 1]",
        'parameter "weight.kovesh" has no value',
        "weight.sorting = nan: expected a number from 0 to 1",
    ]


def test_more_groups_than_layers() -> None:
    with pytest.raises(SpaceError, match=r"layer_groups = 2: the models have only 1 layers"):
        load_space("quickstart").bind(1)


def test_fingerprint_says_what_matters() -> None:
    import json

    space = load_space("quickstart")
    print_ = space.bind(4).fingerprint()
    assert json.loads(json.dumps(print_)) == print_
    assert print_ == load_space("quickstart").bind(4).fingerprint()
    assert print_ != space.bind(5).fingerprint()
    assert print_ != space.only("maths").bind(4).fingerprint()
    renamed = space.model_copy(update={"name": "other"})
    assert print_ == renamed.bind(4).fingerprint()


def test_describe() -> None:
    assert load_space("quickstart").bind(4).describe() == (
        "task_arithmetic of maths, kovesh, sorting on zoo:base; 15 parameters: weight 3 sources x 5 places "
        "(embeddings, layers_0-1.attention, layers_0-1.mlp, layers_2-3.attention, layers_2-3.mlp)"
    )
    assert "method (1 of 3)" in spaces.gene().bind(4).describe()


def test_default_space() -> None:
    based = default_space(["org/a", "other/b"], "org/base").bind(2)
    assert based.config.method == ("task_arithmetic",) and based.names == ("a", "b")
    free = default_space(["org/a", "other/a"]).bind(2)
    assert free.config.method == ("linear",) and free.config.base_model is None
    assert [p.name for p in free.parameters] == ["weight.org_a", "weight.other_a"]
