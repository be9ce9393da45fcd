"""Files of data-flow spaces: what is refused and how, defaults, other models."""

from __future__ import annotations

import json
import pickle

import pytest

from evomerge.errors import SpaceError
from evomerge.recipe import parse_recipe
from evomerge.space import Categorical, DataflowConfig, Shape, parse_space, stored_space
from tests.space import pools

GOOD = """\
kind: dataflow
sources: [zoo:maths, zoo:kovesh]
depth: {low: 3, high: 6}
scale: {low: 0.5, high: 1.5}
"""


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("low: 3", "low: 0", "s.yaml:3: depth.low = 0: a path has at least 1 layer"),
        ("high: 6", "high: 0", "s.yaml:3: depth.high = 0: a path has at least 1 layer"),
        ("low: 3", "low: 7", "s.yaml:3: depth.low = 7: low = 7 is above high = 6"),
        ("low: 3", "lwo: 3", 's.yaml:3: unknown key "depth.lwo"; did you mean "low"?'),
        ("low: 3", "low: 2.5", "s.yaml:3: depth.low = 2.5: expected a valid integer"),
        ("low: 0.5", "low: 0", "s.yaml:4: scale.low = 0.0: expected a scale above 0"),
        ("low: 0.5", "low: -1", "s.yaml:4: scale.low = -1.0: expected a scale above 0"),
        ("low: 0.5", "low: 1.5", "scale.low = 1.5: low = 1.5 must be below high = 1.5; to leave scales out write scal"),
        ("low: 0.5", "low: .nan", "s.yaml:4: scale.low = nan: expected a finite number"),
        ("low: 0.5", "low: 1.1", "init = 1 is outside [1.1, 1.5]"),
        ("low: 0.5", "low: 0.45", "scale.step = 0.1: high = 1.5 is not 0.45 (low) plus a multiple of 0.1"),
        ("high: 1.5", "high: 1.5, step: 0", "scale.step = 0.0: expected a number above 0, or null for none"),
        ("high: 1.5", "high: 1.5, early: 1.5", "scale.early = 1.5: expected a share of the layers, from 0 to 1"),
        ("{low: 0.5, high: 1.5}", "0.9", "scale = 0.9: expected {low, high}, or 1 (the residual stream as it is)"),
        ("{low: 0.5, high: 1.5}", "true", "scale = True: expected a mapping of keys to values"),
        ("{low: 0.5, high: 1.5}", "0", "scale = 0.0: expected {low, high}, or 1 (the residual stream as it is)"),
        ("{low: 0.5, high: 1.5}", "{value: 1, low: 0.5}", "a fixed value has no bounds"),
        ("scale:", "embeddings: [base]\nscale:", 'no source is named "base"; Valid: maths, kovesh'),
        ("scale:", "head: koves\nscale:", 'no source is named "koves"; did you mean "kovesh"?'),
        ("scale:", "head: [maths, maths]\nscale:", "names a source twice"),
        ("scale:", "embeddings: []\nscale:", "embeddings = []: expected at least 1"),
        ("scale:", "encoding: slot\nscale:", "expected 'compact' or 'slots'"),
        ("scale:", "repetitions: 2\nscale:", 'repetitions = 2: is a key of encoding "slots"; this space has "compact"'),
        (
            "scale:",
            "encoding: slots\ninsertions: 1\nscale:",
            'insertions = 1: is a key of encoding "compact"; this space has "slots"',
        ),
        ("scale:", "encoding: slots\nrepetitions: 0\nscale:", "repetitions = 0: expected greater than or equal to 1"),
        ("scale:", "repeats: 0\nscale:", "repeats = 0: expected greater than or equal to 1"),
        ("scale:", "insertions: -1\nscale:", "insertions = -1: expected greater than or equal to 0"),
        ("scale:", "layer_groups: 2\nlayers_per_group: 2\nscale:", "cannot both be given"),
        ("scale:", "method: ties\nscale:", 's.yaml:4: unknown key "method"; known here: base_model, depth'),
        ("zoo:kovesh", "zoo:maths/", "s.yaml:2: sources.1 = 'zoo:maths': is given twice (as source 1 too)"),
        ("[zoo:maths, zoo:kovesh]", "[]", "sources = []: expected at least 1"),
        ("kind: dataflow", "kind: dataflaw", "kind = 'dataflaw': did you mean \"dataflow\"? Valid: parameter, data"),
    ],
)
def test_refused_with_the_key(old: str, new: str, message: str) -> None:
    assert old in GOOD
    with pytest.raises(SpaceError) as caught:
        parse_space(GOOD.replace(old, new, 1), "s.yaml")
    assert message in str(caught.value)
    assert all(line.startswith("s.yaml") for line in str(caught.value).splitlines())


def test_all_problems_at_once() -> None:
    with pytest.raises(SpaceError) as caught:
        parse_space(GOOD.replace("low: 3", "low: 0").replace("high: 1.5", "high: 1.5, early: 2"), "s.yaml")
    assert [line.split(" = ")[0] for line in str(caught.value).splitlines()] == [
        "s.yaml:4: scale.early", "s.yaml:3: depth.low",
    ]  # fmt: skip


def test_defaults() -> None:
    config = pools.config()
    assert (config.encoding, config.repeats, config.insertions) == ("compact", 2, 2)
    assert (config.scale.low, config.scale.high, config.scale.init) == (0.5, 1.5, 1.0)
    assert (config.depth.low, config.depth.high) == (1, None)
    assert config.references() == ["a", "b"]
    assert pools.config(base_model="c").references() == ["c", "a", "b"]
    assert pools.config(encoding="slots").repetitions == 3


def test_other_models_and_other_places() -> None:
    config = pools.config(repeats=3, base_model="c").with_sources(["x/m", "y/m"], "z")
    assert [s.name for s in config.sources] == ["x_m", "y_m"]
    assert (config.repeats, config.base_model) == (3, "z")
    placed = config.placed({"x/m": "/full/x/m", "z": "/full/z"})
    assert [(s.name, s.model) for s in placed.sources] == [("x_m", "/full/x/m"), ("y_m", "y/m")]
    assert placed.base_model == "/full/z"
    with pytest.raises(SpaceError, match=r'space \(--models/--base\).*no source is named "b"'):
        pools.config(embeddings="b").with_sources(["x", "y"])


def test_is_kept_with_a_study_and_read_again() -> None:
    for config in (pools.config(embeddings=["b"], layers_per_group=2), pools.config(encoding="slots", scale=1)):
        stored = json.loads(json.dumps(config.model_dump(mode="json", exclude_unset=True) | {"name": config.name}))
        assert stored_space(stored) == config
        assert pickle.loads(pickle.dumps(config)) == config


def test_scales_are_refused_where_they_cannot_be_folded() -> None:
    why = "norms after attention and MLP (gemma2) see the scale"
    shapes = {"a": Shape(4), "b": Shape(4, unscalable=why)}
    for encoding in ("compact", "slots"):
        with pytest.raises(SpaceError) as caught:
            pools.config(encoding=encoding).bind_models(shapes)
        assert str(caught.value) == f'scale: source "b" takes none but 1: {why}; write scale: 1'
        space = pools.config(encoding=encoding, scale=1).bind_models(shapes)
        assert not any(p.name.startswith("scale") for p in space.parameters)


def test_the_head_is_a_gene_where_it_is_not_tied() -> None:
    def genes(tied: bool, **keys: object) -> dict[str, tuple[str, ...]]:
        space = pools.compact(tied=tied, **keys)
        return {p.name: p.choices for p in space.parameters if isinstance(p, Categorical) and "." not in p.name}

    assert genes(True) == {"embeddings": ("a", "b")}
    assert genes(False) == {"embeddings": ("a", "b"), "head": ("a", "b")}
    assert genes(False, embeddings="b", head=["b", "a"]) == {"head": ("b", "a")}
    with pytest.raises(SpaceError, match=r"^head: the output heads of these models are tied to their embeddings"):
        pools.compact(head="b")


@pytest.mark.parametrize("encoding", ["compact", "slots"])
def test_ends_go_into_the_recipe(encoding: str) -> None:
    start = pools.bound(encoding=encoding, embeddings="b").decode(
        pools.bound(encoding=encoding, embeddings="b").initial()
    )
    assert (pools.path(start).embeddings, pools.path(start).head) == ("b", "b")  # tied: the norm goes with them
    loose = pools.bound(encoding=encoding, tied=False, head="b")
    assert (pools.path(loose.decode(loose.initial())).embeddings, pools.path(loose.decode(loose.initial())).head) == (
        "a",
        "b",
    )


@pytest.mark.parametrize("encoding", ["compact", "slots"])
def test_the_start_is_the_first_source(encoding: str) -> None:
    space = pools.bound(encoding=encoding, dtype="float32", out_dtype="bfloat16")
    recipe = space.decode(space.initial(), seed=7)
    assert pools.hops(recipe) == "a0 a1 a2 a3"
    assert pools.path(recipe).scales == (1.0,) * 4
    assert (recipe.dtype, recipe.out_dtype, recipe.evomerge.seed) == ("float32", "bfloat16", 7)
    assert len(recipe.slices or ()) == 1
    again = parse_recipe(recipe.to_yaml(), "recipe.yaml")
    assert again == recipe
    assert space.encode(again) == space.initial()


def test_fingerprints_say_what_differs_and_nothing_else() -> None:
    def print_(**keys: object) -> dict[str, object]:
        return pools.bound(**keys).fingerprint()  # type: ignore[arg-type]

    assert print_() == print_(repeats=2, name="other", embeddings=["a", "b"])
    assert print_(encoding="slots") == print_(encoding="slots", repetitions=3)
    prints = [print_(), print_(repeats=3), print_(embeddings="b"), print_(tied=False), print_(depths=(4, 4)),
              print_(depth={"high": 9}), print_(scale=1), print_(encoding="slots")]  # fmt: skip
    assert len({json.dumps(p) for p in prints}) == len(prints)


@pytest.mark.parametrize(
    ("recipe", "message"),
    [
        ("merge_method: linear\nmodels: [{model: a, parameters: {weight: 1}}]", "merge_method linear) is no path over"),
        (
            "merge_method: passthrough\nslices: [{sources: [{model: c, layer_range: [0, 2]}]}]",
            'the recipe\'s model "c" is not in the space; Valid: a, b',
        ),
        (
            "merge_method: passthrough\nslices: [{sources: [{model: b, layer_range: [0, 4]}]}]",
            'the recipe has layer 3 of "b", which has 3 layers',
        ),
        (
            "merge_method: passthrough\nslices: [{sources: [{model: a, layer_range: [0, 1]}]}]",
            "the recipe's path has 1 layers, the space's have 2 to 6",
        ),
        (
            "merge_method: passthrough\nslices: [{sources: [{model: a, layer_range: [0, 3]}]}, "
            "{sources: [{model: b, layer_range: [0, 0]}]}]",
            'the recipe has the embeddings of "a" and the final norm of "b"; where heads are tied',
        ),
        (
            "merge_method: passthrough\ntokenizer_source: b\nslices: [{sources: [{model: a, layer_range: [0, 4]}]}]",
            "with no tokenizer of their own",
        ),
        (
            "merge_method: passthrough\nslices: [{sources: [{model: a, layer_range: [0, 4], parameters: "
            "{scale: [{filter: q_proj, value: 0.5}, {value: 1}]}}]}]",
            "the recipe scales q_proj; a path's scale is that of o_proj, down_proj",
        ),
    ],
)
@pytest.mark.parametrize("encoding", ["compact", "slots"])
def test_recipes_that_no_path_of_the_space_is(recipe: str, message: str, encoding: str) -> None:
    space = pools.bound(encoding=encoding, depth={"low": 2, "high": 6})
    with pytest.raises(SpaceError) as caught:
        space.encode(parse_recipe(recipe, "r.yaml"))
    assert message in str(caught.value)


def test_choices_that_the_space_leaves_out() -> None:
    space = pools.compact(embeddings="a")
    other = pools.compact()
    with pytest.raises(SpaceError, match='the recipe has the embeddings of "b"; Valid: a'):
        space.encode(other.decode(other.initial() | {"embeddings": "b"}))


def test_a_parameter_space_is_no_dataflow_space() -> None:
    assert isinstance(parse_space(GOOD), DataflowConfig)
    with pytest.raises(SpaceError, match='unknown key "depth"'):
        parse_space(GOOD.replace("kind: dataflow\n", "method: linear\n"))


def test_of_an_unknown_kind_nothing_else_is_told() -> None:
    with pytest.raises(SpaceError) as caught:
        parse_space("kind: dataflows\nsources: [a, b]\n", "s.yaml")
    assert str(caught.value) == (
        "s.yaml:1: kind = 'dataflows': did you mean \"dataflow\"? Valid: parameter, dataflow, hybrid, skills"
    )
