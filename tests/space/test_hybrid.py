"""Spaces of two stages: a merge of weights, then paths that have its winner."""

from __future__ import annotations

import json
import pickle
from pathlib import Path

import pytest
import yaml

from evomerge.errors import SpaceError
from evomerge.space import HybridConfig, Shape, load_space, parse_space, stored_space

GOOD = """\
kind: hybrid
share: 0.4
parameter:
  method: task_arithmetic
  base_model: zoo:base
  sources: [zoo:maths, {model: zoo:kovesh, name: k}]
  parameters: {weight: {low: 0, high: 1}}
  dtype: float32
dataflow:
  depth: {low: 2, high: 6}
  scale: 1
"""


def hybrid(text: str = GOOD) -> HybridConfig:
    found = parse_space(text, "h.yaml")
    assert isinstance(found, HybridConfig)
    return found


def test_the_second_stage_has_the_first_ones_winner_and_sources() -> None:
    config = hybrid()
    assert config.share == 0.4
    assert (config.name, config.base_model, config.dtype) == ("h", "zoo:base", "float32")
    assert config.references() == ["zoo:base", "zoo:maths", "zoo:kovesh"]
    assert [s.name for s in config.sources] == ["maths", "k"]
    second = config.dataflow("/runs/x/model")
    assert [(s.name, s.model) for s in second.sources] == [
        ("merged", "/runs/x/model"), ("maths", "zoo:maths"), ("k", "zoo:kovesh"),
    ]  # fmt: skip
    assert (second.base_model, second.dtype, second.depth.high) == ("zoo:base", "float32", 6)
    space = second.bind_models({s.model: Shape(4) for s in second.sources})
    start = space.decode(space.initial())
    assert start.slices is not None
    assert [(s.model, s.layer_range) for piece in start.slices for s in piece.sources] == [("/runs/x/model", (0, 4))]


def test_sources_of_its_own() -> None:
    text = GOOD + "  sources: [merged, zoo:sorting]\n  embeddings: merged\n  dtype: bfloat16\n"
    config = hybrid(text)
    assert config.references() == ["zoo:base", "zoo:maths", "zoo:kovesh", "zoo:sorting"]
    assert [s.name for s in config.sources] == ["maths", "k", "sorting"]
    second = config.dataflow("m")
    assert [s.name for s in second.sources] == ["merged", "sorting"]
    assert second.embeddings == ("merged",)
    assert second.dtype == "bfloat16"


def test_the_parameter_space_by_name(tmp_path: Path) -> None:
    text = GOOD[: GOOD.index("parameter:")] + "parameter: NAME\n" + GOOD[GOOD.index("dataflow:") :]
    (tmp_path / "first.yaml").write_text("method: linear\nsources: [a, b]\nparameters: {weight: {low: 0, high: 1}}\n")
    for named, sources in (("quickstart", ["maths", "kovesh", "sorting"]), ("first.yaml", ["a", "b"])):
        file = tmp_path / "h.yaml"
        file.write_text(text.replace("NAME", named))
        config = load_space(file)
        assert isinstance(config, HybridConfig)
        assert [s.name for s in config.parameter.sources] == sources
        assert [s.name for s in config.paths.sources] == ["merged", *sources]
    with pytest.raises(SpaceError, match=r"h\.yaml:3: parameter = 'quickstrat': .* did you mean \"quickstart\""):
        parse_space(text.replace("NAME", "quickstrat"), "h.yaml")
    with pytest.raises(SpaceError, match="parameter = 'dataflow': is of kind \"dataflow\", expected a parameter space"):
        parse_space(text.replace("NAME", "dataflow"), "h.yaml")


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("share: 0.4", "share: 0", "h.yaml:2: share = 0: expected greater than 0"),
        ("share: 0.4", "share: 1", "h.yaml:2: share = 1: expected less than 1"),
        ("share: 0.4", "shrae: 0.4", 'h.yaml:2: unknown key "shrae"; did you mean "share"?'),
        ("method: task_arithmetic", "method: tise", "h.yaml:4: parameter.method = 'tise': unknown merge method"),
        ("method: task_arithmetic", "kind: dataflow", "parameter.kind = 'dataflow': expected a parameter space here"),
        ("low: 2", "low: 0", "h.yaml:10: dataflow.depth.low = 0: a path has at least 1 layer"),
        ("scale: 1", "scael: 1", 'h.yaml:11: unknown key "dataflow.scael"; did you mean "scale"?'),
        (
            "scale: 1",
            "sources: [zoo:maths, merged]",
            "dataflow.sources.0 = 'zoo:maths': expected \"merged\" (the parameter stage's winner) as the first source",
        ),
        ("scale: 1", "sources: [merged, zoo:kovesh]", 'is named "kovesh" here and "k" in the parameter stage'),
        ("scale: 1", "sources: [merged, {model: x, name: k}]", '"k" is zoo:kovesh in the parameter stage; rename one'),
        ("name: k", "name: merged", 'two sources are named "merged"'),
        ("scale: 1", "embeddings: base", 'no source is named "base"; Valid: merged, maths, k'),
        ("parameter:", "parameters:", 'key "parameter" is missing'),
        ("dataflow:", "dataflo:", 'unknown key "dataflo"; did you mean "dataflow"?'),
    ],
)
def test_refused_with_the_key(old: str, new: str, message: str) -> None:
    assert old in GOOD
    with pytest.raises(SpaceError) as caught:
        parse_space(GOOD.replace(old, new, 1), "h.yaml")
    assert message in str(caught.value)
    assert all(line.startswith("h.yaml") for line in str(caught.value).splitlines())


def test_the_second_stage_may_be_left_at_its_defaults() -> None:
    config = hybrid(GOOD[: GOOD.index("dataflow:")])
    assert [s.name for s in config.paths.sources] == ["merged", "maths", "k"]


def test_other_models_and_other_places() -> None:
    config = hybrid().with_sources(["org/a", "org/b"], "org/base")
    assert (config.name, config.share) == ("h", 0.4)
    assert [s.model for s in config.paths.sources] == ["merged", "org/a", "org/b"]
    assert config.paths.depth.high == 6
    assert config.references() == ["org/base", "org/a", "org/b"]
    placed = config.placed({"org/a": "/full/a", "org/base": "/full/base"})
    assert placed.references() == ["/full/base", "/full/a", "org/b"]
    assert [s.name for s in placed.dataflow("m").sources] == ["merged", "a", "b"]
    with pytest.raises(SpaceError, match="needs a base_model"):
        hybrid().with_sources(["org/a", "org/b"])


def test_is_kept_with_a_study_and_read_again() -> None:
    for config in (hybrid(), load_space("hybrid")):
        stored = config.model_dump(mode="json", exclude_unset=True) | {"name": config.name}
        assert set(stored) == {"name", "kind", "share", "parameter", "dataflow"}
        assert stored_space(json.loads(json.dumps(stored))) == config
        assert parse_space(yaml.safe_dump(stored)) == config
        assert pickle.loads(pickle.dumps(config)) == config
