"""Files of search spaces: presets, what is refused and how, other models, mergekit-evolve's files."""

from __future__ import annotations

import pickle
import subprocess
import sys
from pathlib import Path

import pytest

from evomerge import presets
from evomerge.errors import SpaceError
from evomerge.space import HybridConfig, Shape, Space, SpaceConfig, load_space, parse_space
from tests.space import spaces

GOOD = """\
method: task_arithmetic
base_model: zoo:base
sources: [zoo:maths, zoo:kovesh]
parameters:
  weight: {low: 0, high: 1}
"""


def refused(text: str) -> list[str]:
    with pytest.raises(SpaceError) as caught:
        parse_space(text, "s.yaml")
    return str(caught.value).splitlines()


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("low: 0", "low: 2", "low = 2 must be below high = 1"),
        ("high: 1", "high: 1, init: 3", "init = 3 is outside [0, 1]"),
        ("high: 1", "high: 1, log: true", "log needs low above 0"),
        ("high: 1", "high: .inf", "high = inf: expected a finite number"),
        ("high: 1", "hgih: 1", 's.yaml:5: unknown key "parameters.weight.hgih"; did you mean "high"?'),
        ("low: 0, high: 1", "value: 1, low: 0", "a fixed value has no bounds"),
        ("{low: 0, high: 1}", "[0, 1]", "expected a mapping"),
        ("{low: 0, high: 1}", "abc", "expected {low, high}, or one fixed number"),
        ("{low: 0, high: 1}", "true", "expected a number or {low, high}"),
        ("task_arithmetic", "task_aritmetic", "s.yaml:1: method = 'task_aritmetic': unknown merge method \"task_ari"),
        ("task_arithmetic", "[ties, ties]", "a method is named twice"),
        ("method: task_arithmetic\n", "", 's.yaml: key "method" is missing'),
        ("base_model: zoo:base\n", "", 'base_model = nothing (empty): method "task_arithmetic" needs a base_model'),
        ("zoo:kovesh", "zoo:maths", "s.yaml:3: sources.1 = 'zoo:maths': is given twice (as source 1 too)"),
        ("zoo:kovesh", "zoo:maths/", "is given twice"),
        ("zoo:kovesh", "zoo:base", "sources.1 = 'zoo:base': is the base_model too"),
        ("zoo:kovesh", "zoo:kovesh@", "expected path[@revision]"),
        ("[zoo:maths, zoo:kovesh]", "[]", "sources = []: expected at least 1"),
        ("[zoo:maths, zoo:kovesh]", "[{model: a, name: x}, {model: b, name: x}]", 'two sources are named "x"'),
        ("[zoo:maths, zoo:kovesh]", "[b, {model: a, name: x y}]", "expected letters, digits"),
        ("parameters:", "kind: hybird\nparameters:", "kind = 'hybird': did you mean \"hybrid\"? Valid: parameter"),
        ("parameters:", "granularty: {}\nparameters:", 'unknown key "granularty"; did you mean "granularity"?'),
        ("parameters:", "granularity: {layer_group: 2}\nparameters:", 'did you mean "layer_groups"?'),
        ("parameters:", "granularity: {layer_groups: 0}\nparameters:", "greater than or equal to 1"),
        (
            "parameters:",
            "granularity: {layer_groups: 2, layers_per_group: 1}\nparameters:",
            '"layer_groups" and "layers_per_group" cannot both be given',
        ),
        ("parameters:", "granularity: {modules: {a: mlp, b: mlp.up}}\nparameters:", '"mlp.up" is never reached'),
        ("parameters:", "granularity: {modules: {a: lm_head}}\nparameters:", '"lm_head" has its own group'),
        ("parameters:", "granularity: {modules: {head: mlp}}\nparameters:", '"head" is no name to take'),
        ("parameters:", "granularity: {modules: {a: ''}}\nparameters:", "an empty filter matches everything"),
        ("parameters:", "dtype: float8\nparameters:", "dtype = 'float8'"),
        ("high: 1}", "high: 1}\n  density: {low: 0, high: 1}", 'has no parameter "density"'),
        ("high: 1}", "high: 1}\n  normalize: {low: 0, high: 1}", "expected true or false"),
        ("high: 1}", "high: 1}\n  lambda: {low: 0, high: 1, per: source}", "has one value for all sources"),
        ("high: 1}", "high: 1}\n  lambda: {low: 0, high: 1, per: sauce}", "'source', 'layers' or 'modules'"),
    ],
)
def test_refused_in_one_line(old: str, new: str, message: str) -> None:
    assert old in GOOD
    lines = refused(GOOD.replace(old, new, 1))
    assert len(lines) == 1
    assert lines[0].startswith("s.yaml")
    assert message in lines[0]


def test_all_problems_at_once() -> None:
    text = GOOD.replace("weight", "wieght").replace("zoo:kovesh", "zoo:base") + "  density: 2\n"
    lines = refused(text)
    assert [line.split(" = ")[0] for line in lines] == [
        "s.yaml:3: sources.1", "s.yaml:4: parameters", "s.yaml:5: parameters.wieght", "s.yaml:6: parameters.density",
    ]  # fmt: skip


def test_bounds_of_the_method_count() -> None:
    text = GOOD.replace("task_arithmetic", "ties") + "  density: {low: 0, high: 1.5}\n"
    assert refused(text) == [
        "s.yaml:6: parameters.density = {'low': 0.0, 'high': 1.5}: 1.5: expected a number from 0 to 1"
    ]


def test_slerp_takes_one_source() -> None:
    text = GOOD.replace("task_arithmetic", "slerp").replace("weight", "t")
    assert "takes exactly 1 source beside the base_model, got 2" in refused(text)[0]
    parse_space(text.replace(", zoo:kovesh", ""))


def test_how_many_sources_a_method_takes() -> None:
    stock = GOOD.replace("task_arithmetic", "model_stock").replace("weight: {low: 0, high: 1}", "filter_wise: true")
    parse_space(stock)
    assert "takes at least 2 sources beside the base_model, got 1" in refused(stock.replace(", zoo:kovesh", ""))[0]
    pair = GOOD.replace("task_arithmetic", "nuslerp")
    parse_space(pair)
    assert "takes exactly 2 sources beside the base_model, got 1" in refused(pair.replace(", zoo:kovesh", ""))[0]
    assert (
        "takes exactly 2 sources, got 1"
        in refused(pair.replace(", zoo:kovesh", "").replace("base_model: zoo:base\n", ""))[0]
    )


def test_spherical_methods_work_on_task_vectors_where_there_is_a_base() -> None:
    for method in ("nuslerp", "multislerp"):
        text = GOOD.replace("task_arithmetic", method)
        with_base = parse_space(text).bind(4)
        assert with_base.decode(with_base.initial()).base_model == "zoo:base"
        without = parse_space(text.replace("base_model: zoo:base\n", "")).bind(4)
        assert without.decode(without.initial()).base_model is None
        with pytest.raises(SpaceError, match="base_model"):
            without.encode(with_base.decode(with_base.initial()))


def test_words_are_given_as_they_are() -> None:
    text = GOOD.replace("task_arithmetic", "varm").replace("weight: {low: 0, high: 1}", "unit: layer")
    space = parse_space(text).bind(4)
    recipe = space.decode({})
    assert recipe.parameters == {"unit": "layer"}
    assert space.encode(recipe) == {}
    assert 'did you mean "layer"? Valid: model' in refused(text.replace("unit: layer", "unit: layers"))[0]
    other = parse_space(text.replace("unit: layer", "unit: element")).bind(4)
    with pytest.raises(SpaceError, match="unit is layer, fixed at element"):
        other.encode(recipe)


def test_della_needs_room_for_its_epsilon() -> None:
    text = GOOD.replace("task_arithmetic", "[ties, della]")
    narrow = text + "  density: {low: 0.2, high: 0.8}\n"
    parse_space(narrow)
    parse_space(narrow + "  epsilon: {low: 0.01, high: 0.19}\n")
    parse_space(text)  # at density 1 nothing is drawn
    for wide in ("density: {low: 0.2, high: 1}", "density: {low: 0.1, high: 0.8}", "density: 0.9"):
        lines = refused(f"{text}  {wide}\n")
        assert len(lines) == 1
        assert 'method "della": density' in lines[0]
        assert "must lie between 0 and 1" in lines[0]
    assert "epsilon must be less than" in refused(narrow + "  epsilon: {low: 0.01, high: 0.2}\n")[0]


def test_methods_that_need_statistics_are_merged_by_recipes() -> None:
    assert "needs collected statistics" in refused(GOOD.replace("task_arithmetic", "fisher"))[0]


def test_linear_may_merge_the_base_where_none_is_named() -> None:
    space = parse_space(GOOD.replace("task_arithmetic", "linear").replace("base_model: zoo:base\n", "")
                        .replace("kovesh", "base")).bind(2)  # fmt: skip
    assert space.names == ("maths", "base_1")  # "base" is what results call the base model


def test_names_are_short_and_unique() -> None:
    models = ["org/model", "other/model/", "./runs/x/model", "zoo:maths", "/data/My Model", "base+adapters/sum"]
    config = spaces.make(method="linear", parameters={"weight": 1}, sources=models, base_model=None)
    assert [s.name for s in config.sources] == ["org_model", "other_model", "x_model", "maths", "My_Model", "sum"]


def test_given_names_win() -> None:
    config = spaces.make(method="linear", parameters={"weight": 1}, sources=[{"model": "a/x", "name": "b"}, "c/b"])
    assert [s.name for s in config.sources] == ["b", "c_b"]


def test_yaml_1_1_numbers() -> None:
    space = parse_space(GOOD.replace("low: 0", "low: 1e-3")).bind(2)
    assert space.parameters[0].low == 1e-3  # type: ignore[union-attr]
    assert parse_space(GOOD.replace("{low: 0, high: 1}", "1e-3")).bind(2).fixed == {"weight": 1e-3}


def test_fixed_values_are_written_and_not_searched() -> None:
    space = parse_space(GOOD.replace("task_arithmetic", "ties") + "  density: 0.5\n").bind(2)
    assert all(p.name.startswith("weight") for p in space.parameters)
    recipe = space.decode(space.initial())
    assert recipe.parameters == {"density": 0.5}


@pytest.mark.parametrize("name", presets.names("search_spaces"))
def test_presets_load_and_say_when_to_use_them(name: str) -> None:
    config = load_space(name)
    assert config.name == name
    stages = (config.parameter, config.dataflow("m")) if isinstance(config, HybridConfig) else (config,)
    for stage in stages:
        assert stage.bind_models({r: Shape(4) for r in stage.references()}).parameters
    file = presets.find("search_spaces", name)
    assert file is not None and file.read_text().startswith("# When to use: ")
    assert load_space(f"search_spaces/{name}.yaml") == config
    assert load_space(file) == config


def test_the_presets_asked_for_are_there() -> None:
    assert {"quickstart", "linear", "dataflow", "hybrid", "ties_dare_layerwise", "task_arithmetic_by_module"} <= set(
        presets.names("search_spaces")
    )


def test_unknown_preset_names_the_nearest(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(
        SpaceError, match='"quickstrat" is neither a file nor a preset space; did you mean "quickstart"'
    ):
        load_space("quickstrat")
    with pytest.raises(SpaceError, match=r"mine\.yaml: no such file"):
        load_space("mine.yaml")


def test_other_models() -> None:
    config = load_space("quickstart").with_sources(["org/a", "org/b"], "org/base")
    assert config.name == "quickstart"
    assert [s.name for s in config.sources] == ["a", "b"]
    assert config.granularity == load_space("quickstart").granularity
    with pytest.raises(SpaceError, match=r'quickstart \(--models/--base\): .*"task_arithmetic" needs a base_model'):
        load_space("quickstart").with_sources(["org/a", "org/b"])


def test_only_one_source_keeps_its_name() -> None:
    config = load_space("quickstart").with_sources(["x/m", "y/m"], "org/base")
    alone = config.only("y_m").bind(4)
    both = config.bind(4)
    assert [p for p in both.parameters if ".y_m." in p.name] == list(alone.parameters)
    with pytest.raises(SpaceError, match=r'no source "m"; .*x_m, y_m'):
        config.only("m")


def test_configs_and_spaces_pickle() -> None:
    space = load_space("quickstart").bind(4)
    again: Space = pickle.loads(pickle.dumps(space))
    assert again.parameters == space.parameters and again.decode(again.initial()) == space.decode(space.initial())
    config: SpaceConfig = pickle.loads(pickle.dumps(space.config))
    assert config == space.config


def test_no_heavy_imports() -> None:
    heavy = "torch ray optuna transformers scipy pandas matplotlib cma cmaes"
    code = f"import sys, evomerge.space, evomerge.optimizers; print([m for m in '{heavy}'.split() if m in sys.modules])"
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=Path(__file__).parents[2]
    )
    assert done.stdout.strip() == "[]"


class TestMergekitEvolve:
    """mergekit-evolve's files; the meaning of each key is checked on its own recipes where mergekit is installed."""

    FILE = """\
genome:
  models: [org/a, org/b]
  merge_method: dare_ties
  base_model: org/base
  layer_granularity: 2
  filters: [self_attn, mlp]
  tokenizer_source: base
  allow_negative_weights: {negative}
tasks:
  - gsm8k_train
  - {{name: arc_train, weight: 0.5, metric: "acc_norm,none"}}
limit: 100
"""

    def test_reads(self) -> None:
        config = parse_space(self.FILE.format(negative="false"), "evolve.yaml")
        assert config.name == "evolve"
        assert config.migrated is not None
        assert config.migrated.evaluator["tasks"] == [
            {"name": "gsm8k_train", "weight": 1.0, "metric": "acc,none"},
            {"name": "arc_train", "weight": 0.5, "metric": "acc_norm,none"},
        ]
        space = config.bind(4)
        start = space.initial()
        assert len(start) == 2 * 2 * 3 * 2  # groups x sources x (filters + rest) x (weight, density)
        assert {v for n, v in start.items() if n.startswith("weight")} == {0.5}
        assert {v for n, v in start.items() if n.startswith("density")} == {1.0}
        assert space.parameters[0].low == 0  # type: ignore[union-attr]
        negative = parse_space(self.FILE.format(negative="true")).bind(4)
        assert negative.parameters[0].low < 0  # type: ignore[union-attr,operator]

    def test_its_first_recipe(self) -> None:
        space = parse_space(self.FILE.format(negative="false")).bind(4)
        recipe = space.decode(space.initial())
        assert recipe.parameters == {"normalize": True}
        assert recipe.dtype == "bfloat16" and recipe.tokenizer_source == "base"
        assert recipe.slices is not None
        weight = (recipe.slices[1].sources[0].parameters or {})["weight"]
        assert [(c.filter, c.value) for c in weight] == [("self_attn", 0.5), ("mlp", 0.5), (None, 0.5)]  # type: ignore[union-attr]
        assert [s.model for s in recipe.slices[1].sources] == ["org/a", "org/b", "org/base"]

    def test_base_among_the_models(self) -> None:
        text = "genome: {{models: [a, b], base_model: b, merge_method: {}}}\ntasks: []"
        assert [s.name for s in parse_space(text.format("ties")).sources] == ["a"]
        linear = parse_space(text.format("linear"))
        assert [s.name for s in linear.sources] == ["a", "b"] and linear.base_model is None

    def test_slerp_and_smooth(self) -> None:
        slerp = parse_space("genome: {models: [a, b], merge_method: slerp, layer_granularity: 1}").bind(2)
        assert [p.name for p in slerp.parameters] == ["t.layer_0", "t.layer_1"]
        assert slerp.decode(slerp.initial()).base_model == "a"
        smooth = parse_space("genome: {models: [a, b], merge_method: linear, layer_granularity: 1, smooth: true}").bind(
            3
        )
        recipe = smooth.decode(smooth.initial())
        assert recipe.models is not None and recipe.models[0].parameters == {"weight": [0.5, 0.5, 0.5]}

    @pytest.mark.parametrize(
        ("text", "message"),
        [
            ("genome: {models: [a], merge_method: tise}", 'not a method of mergekit-evolve; did you mean "ties"'),
            ("genome: {models: [a], merge_method: ties}", 'method "ties" needs a base_model'),
            ("genome: {models: [a, b, c], merge_method: slerp}", "between exactly two models"),
            ("genome: {models: [a], merge_method: linear, layer_granularty: 1}", 'did you mean "layer_granularity"'),
            ("genome: {merge_method: linear}", 'key "genome.models" is missing'),
            ("genome: {models: [a], merge_method: linear}\ntsaks: []", 'unknown key "tsaks"; did you mean "tasks"'),
        ],
    )
    def test_refused(self, text: str, message: str) -> None:
        (line,) = refused(text)
        assert message in line
