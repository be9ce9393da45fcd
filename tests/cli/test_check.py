"""`evomerge check`: which kind of file it is, and what is wrong with it."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import save_file

from evomerge import presets, zoo
from evomerge.header import read_header
from evomerge.sources import open_source

RECIPE = """
merge_method: task_arithmetic
base_model: zoo:base
models:
  - {model: zoo:maths, parameters: {weight: 0.8}}
dtype: bfloat16
"""


def test_a_recipe(command: Callable, tmp_path: Path) -> None:
    (tmp_path / "r.yaml").write_text(RECIPE)
    data = command("check", tmp_path / "r.yaml", "--json").json
    assert (data["kind"], data["ok"], data["method"]) == ("recipe", True, "task_arithmetic")
    assert data["models"] == ["zoo:maths", "zoo:base"] and data["plan"]
    text = command("check", tmp_path / "r.yaml").out
    assert "recipe, in order" in text
    assert "task_arithmetic of maths (weight 0.8) on base, lambda 1, normalize false" in text
    assert "task_arithmetic: 4 layers, 38 tensors, 456,096 parameters; configuration of zoo:base" in text
    assert "tokenizer: of zoo:base" in text and "chat template: none" in text


CHAIN = """
name: first
merge_method: ties
base_model: zoo:base
models:
- {model: zoo:maths, parameters: {weight: [0.2, 0.8], density: 0.5}}
- {model: zoo:kovesh, parameters: {weight: 0.5}}
tokenizer_source: union
---
name: idle
merge_method: linear
models: [{model: zoo:maths, parameters: {weight: 1}}]
---
merge_method: slerp
base_model: first
models: [{model: zoo:sorting}]
parameters: {t: [{filter: mlp, value: 0.3}, {value: 0.5}]}
chat_template: chatml
out_dtype: float32
"""


def test_a_chain(command: Callable, tmp_path: Path) -> None:
    (tmp_path / "r.yaml").write_text(CHAIN)
    data = command("check", tmp_path / "r.yaml", "--json").json
    assert (data["method"], data["unused"], len(data["steps"])) == ("slerp", ["idle"], 1)
    first, final = data["steps"][0], data["plan"]
    assert first["name"] == "first" and first["tokenizer"]["tokens"] == first["tokenizer"]["rows"] == 134
    assert (final["tokenizer_of"], final["chat_template"]["from"]) == ("first", "chatml")
    assert final["bytes_written"] == 2 * first["bytes_written"] == 4 * final["parameters"]
    assert data["bytes_written"] == first["bytes_written"] + final["bytes_written"]
    assert [g["parameters"]["t"] for g in final["groups"]] == [0.5, 0.3]
    assert sum(g["tensors"] for g in final["groups"]) == final["tensors"] == 38
    text = command("check", tmp_path / "r.yaml").out
    assert 'step "first"' in text and "the final recipe" in text and "altogether" in text
    assert "maths (weight 0.2 to 0.8, density 0.5)" in text
    assert "slerp of sorting on first, t 0.3" in text and 'not built: "idle"' in text
    assert "12 tensors, 294,912 parameters: mlp.down_proj, mlp.gate_proj, mlp.up_proj" in text


@pytest.mark.parametrize("text", [RECIPE, CHAIN, RECIPE + "tokenizer: {pad_to_multiple_of: 64}\n"])
def test_what_it_says_of_bytes_is_what_merge_writes(text: str, command: Callable, tmp_path: Path) -> None:
    (tmp_path / "r.yaml").write_text(text)
    said = command("check", tmp_path / "r.yaml", "--json").json
    done = command("merge", tmp_path / "r.yaml", tmp_path / "out", "--json").json
    assert said["output_bytes"] == done["bytes"] == (tmp_path / "out" / "model.safetensors").stat().st_size
    header = read_header(tmp_path / "out" / "model.safetensors")
    assert said["plan"]["bytes_written"] == sum(t.end - t.start for t in header.values())
    assert said["plan"]["parameters"] == sum(t.elements for t in header.values())


def test_adapters_and_statistics_are_listed(command: Callable, tmp_path: Path) -> None:
    adapter = tmp_path / "lora"
    adapter.mkdir()
    config = {"peft_type": "LORA", "r": 3, "lora_alpha": 6, "target_modules": ["up_proj"], "bias": "none"}
    (adapter / "adapter_config.json").write_text(json.dumps(config))
    rows, columns = read_header(zoo.path("base") / "model.safetensors")["model.layers.0.mlp.up_proj.weight"].shape
    name = "base_model.model.model.layers.{}.mlp.up_proj.lora_{}.weight"
    tensors = {name.format(i, "A"): np.ones((3, columns), np.float32) for i in range(2)}
    tensors |= {name.format(i, "B"): np.ones((rows, 3), np.float32) for i in range(2)}
    save_file(tensors, adapter / "adapter_model.safetensors")
    (tmp_path / "text.txt").write_text("drevin kunt 5 nesh\n")
    for model in ("zoo:maths", "zoo:base+./lora"):
        folder = tmp_path / model.replace("/", "")
        path = model.replace("./", f"{tmp_path}/")
        assert command("statistics", path, tmp_path / "text.txt", "--kind", "fisher", "--out", folder).code == 0
    (tmp_path / "r.yaml").write_text(
        "merge_method: fisher\nmodels: [{model: zoo:maths}, {model: zoo:base+./lora}]\n"
        "evomerge: {statistics: {zoo:maths: zoo:maths, zoo:base+./lora: zoo:base+.lora}}\n"
    )
    data = command("check", tmp_path / "r.yaml", "--json").json["plan"]
    assert data["adapters"] == [
        {"adapter": "./lora", "model": "zoo:base", "ranks": [3], "tensors": 2, "replaced": 0}
    ]  # fmt: skip
    assert [(s["model"], s["kind"], s["samples"]) for s in data["statistics"]] == [
        ("zoo:maths", "fisher", 1), ("zoo:base+./lora", "fisher", 1),
    ]  # fmt: skip
    text = command("check", tmp_path / "r.yaml").out
    assert "adapter ./lora on zoo:base: rank 3, changes 2 tensors" in text
    assert "fisher statistics of zoo:maths: " in text and "(1 document" in text


def test_every_problem_is_found(command: Callable, tmp_path: Path) -> None:
    """Of the file, of its models, and of every step."""
    (tmp_path / "r.yaml").write_text(
        "merge_method: linear\nmodls: []\ndtype: half\nmodels: [{model: zoo:math}, {model: ./nowhere/x+./lora}]\n"
    )
    lines = command("check", tmp_path / "r.yaml").error.splitlines()
    assert len(lines) == 4
    for words in ('did you mean "models"', "dtype = 'half'", "zoo:math", "./nowhere/x"):
        assert any(words in line for line in lines), words
    (tmp_path / "r.yaml").write_text(
        "name: one\nmerge_method: slerp\nbase_model: zoo:base\nmodels: [{model: zoo:maths}]\n---\n"
        "name: two\nmerge_method: ties\nbase_model: zoo:base\nmodels: [{model: zoo:maths}, {model: zoo:kovesh}]\n---\n"
        "merge_method: linear\nmodels: [{model: one}, {model: two}]\n"
    )
    lines = command("check", tmp_path / "r.yaml").error.splitlines()
    assert len(lines) == 3
    for line, words in zip(lines, (('"one"', '"t"'), ('"two"', "zoo:maths"), ('"weight"', "zoo:kovesh")), strict=True):
        assert all(w in line for w in words)


LACKING = "merge_method: linear\nmodels: [{model: zoo:maths}, {model: zoo:kovesh}]\nchat_template: nope\n"


@pytest.mark.parametrize(
    ("text", "words"),
    [
        (LACKING, ["chat_template", '"weight", and "zoo:maths"', '"weight", and "zoo:kovesh"']),
        (
            f"{LACKING}tokenizer_source: ./nonsense\n",
            [
                'tokenizer_source: "./nonsense"',
                "chat_template",
                '"weight", and "zoo:maths"',
                '"weight", and "zoo:kovesh"',
            ],
        ),
        (
            LACKING.replace("zoo:maths", "./gone"),
            ['model "./gone": no such folder', "chat_template", '"weight", and "./gone"', '"weight", and "zoo:kovesh"'],
        ),
        (
            LACKING.replace("linear", "fisher").replace("}]", "}]\nparameters: {weight: 1}"),
            ["chat_template", 'needs statistics of "zoo:maths"', 'needs statistics of "zoo:kovesh"'],
        ),
        (
            "merge_method: slerp\nbase_model: ./gone\nmodels: [{model: zoo:maths}]\n",
            ['model "./gone": no such folder', 'needs "t", and the recipe has none'],
        ),
        (
            "merge_method: ties\nbase_model: ./gone\nslices:\n- sources: [{model: ./gone, layer_range: [0, 2]}, "
            "{model: zoo:maths, layer_range: [0, 2], parameters: {weight: 1}}, "
            "{model: zoo:kovesh, layer_range: [0, 2]}]\n",
            ['model "./gone": no such folder', '"weight", and "zoo:kovesh" has none'],
        ),
    ],
)
def test_problems_of_every_kind_come_at_once(command: Callable, tmp_path: Path, text: str, words: list[str]) -> None:
    (tmp_path / "r.yaml").write_text(text)
    for done in (command("check", tmp_path / "r.yaml"), command("merge", tmp_path / "r.yaml", tmp_path / "out")):
        lines = done.error.splitlines()
        assert len(lines) == len(words), done.error
        assert all(word in line for word, line in zip(words, lines, strict=True)), done.error


@pytest.mark.parametrize(
    ("text", "words"),
    [
        (  # models that do not fit each other, and numbers that are lacking
            "merge_method: linear\nmodels: [{model: zoo:maths}, {model: ./deep}]\nparameters: {normalize: false}\n",
            ['"./deep" does not fit "zoo:maths": 1 layers against 4', '"zoo:maths" has none', '"./deep" has none'],
        ),
        (  # one that cannot be opened, and others that do not fit
            "merge_method: linear\nmodels: [{model: ./gone}, {model: zoo:maths}, {model: ./deep}]\n"
            "parameters: {weight: 1}\n",
            ['model "./gone": no such folder', '"./deep" does not fit "zoo:maths"'],
        ),
        (  # a file that is no recipe
            "merge_method: ties\nbase_model: zoo:base\nmodels: [{model: ./gone, parameters: {wieght: 1}}, "
            "{model: ./deep}]\nlamda: 1\ntokenizer_source: ./lost\nchat_template: '{% if %}'\n",
            [
                'unknown key "lamda"',
                'no parameter "wieght"; did you mean "weight"',
                'model "./gone": no such folder',
                'tokenizer_source: model "./lost": no such folder',
                '"zoo:base" does not fit "./deep"',
                'chat_template = "{% if %}": expected the text of a Jinja template; line 1: Expected an expression',
            ],
        ),
        (  # no references at all
            "merge_method: linear\nmodels: [{model: zoo:maths+}, {model: zoo:maths+}]\nparameters: {weight: 1}\n",
            ['model reference "zoo:maths+": expected path'],
        ),
    ],
)
def test_no_problem_hides_another(command: Callable, tmp_path: Path, text: str, words: list[str]) -> None:
    shutil.copytree(zoo.path("base"), tmp_path / "deep")
    config = json.loads((tmp_path / "deep" / "config.json").read_text())
    (tmp_path / "deep" / "config.json").write_text(json.dumps(config | {"num_hidden_layers": 1}))
    header = read_header(tmp_path / "deep" / "model.safetensors")
    kept = {n: np.zeros(t.shape, np.float32) for n, t in header.items() if "layers" not in n or "layers.0." in n}
    save_file(kept, tmp_path / "deep" / "model.safetensors")
    (tmp_path / "r.yaml").write_text(text)
    lines = command("check", tmp_path / "r.yaml").error.splitlines()
    assert len(lines) == len(words), lines
    assert all(word in line for word, line in zip(words, lines, strict=True)), lines


CANCEL = """
merge_method: {}
models:
- {{model: zoo:maths, parameters: {{weight: {}}}}}
- {{model: zoo:kovesh, parameters: {{weight: {}}}}}
"""


@pytest.mark.parametrize(
    ("text", "words"),
    [
        (CANCEL.format("linear", 1, -1), 'tensor "model.embed_tokens.weight": the weights [1.0, -1.0] sum to 0'),
        (CANCEL.format("linear", "[1, -1]", "[-2, -1, 0.33333333333333, 4]"), 'tensor "model.layers.2.'),
        (CANCEL.format("multislerp", 0.1, -0.1), "set `normalize_weights: false` or other weights"),
        (CANCEL.format("linear", 0, "{filter: mlp.up, value: 1}") + "parameters: {weight: 0}", "[0.0, 0.0] sum to 0"),
    ],
)
def test_weights_that_no_merge_can_be_made_of(command: Callable, tmp_path: Path, text: str, words: str) -> None:
    """`merge` refuses them too, and as early: nothing is read."""
    (tmp_path / "r.yaml").write_text(text)
    for done in (command("check", tmp_path / "r.yaml"), command("merge", tmp_path / "r.yaml", tmp_path / "out")):
        (line,) = done.error.splitlines()
        assert done.code == 2 and words in line and line.startswith(f'{tmp_path / "r.yaml"}: merge_method "')
    (tmp_path / "r.yaml").write_text(re.sub(r"(?<=[ \[])-(?=\d)", "", text).replace("{weight: 0}", "{weight: 1}"))
    assert command("check", tmp_path / "r.yaml").code == 0


def test_a_filter_that_is_in_no_name_is_said(command: Callable, tmp_path: Path) -> None:
    weight = "[{filter: slf_attn, value: 0.3}, {filter: mlp, value: 0.4}, {filter: '*', value: 1}]"
    text = f"merge_method: linear\nmodels: [{{model: zoo:maths, parameters: {{weight: {weight}}}}}]\n"
    (tmp_path / "r.yaml").write_text(text)
    assert command("check", tmp_path / "r.yaml", "--json").json["plan"]["idle_filters"] == ["slf_attn"]
    assert '\nfilter "slf_attn": in the name of no tensor\n' in command("check", tmp_path / "r.yaml").out


def test_what_has_no_effect_is_said(command: Callable, tmp_path: Path) -> None:
    """mergekit takes it without a word, so it is no error."""
    text = "merge_method: ties\nbase_model: zoo:base\nmodels: [{model: zoo:maths, parameters: {weight: 1%s}}]\n"
    words = 'models.0.parameters: "lambda" has no effect for one source ("zoo:maths"): ties has one lambda for all'
    (tmp_path / "plain.yaml").write_text(text % "")
    (tmp_path / "r.yaml").write_text(text % ", lambda: 0.3")
    assert f"\nignored: {words}" in command("check", tmp_path / "r.yaml").out
    assert [line.startswith(words) for line in command("check", tmp_path / "r.yaml", "--json").json["ignored"]] == [
        True
    ]
    assert command("check", tmp_path / "plain.yaml", "--json").json["ignored"] == []
    assert f"ignored: {words}" in command("merge", tmp_path / "r.yaml", tmp_path / "a").err
    assert "ignored" not in command("merge", tmp_path / "plain.yaml", tmp_path / "b").err
    a, b = ((tmp_path / x / "model.safetensors").read_bytes() for x in "ab")
    assert a == b
    sliced = (
        "merge_method: slerp\nbase_model: zoo:base\nslices:\n- parameters: {t: 0.5}\n  sources:\n"
        "  - {model: zoo:base, layer_range: [0, 4]}\n"
        "  - {model: zoo:maths, layer_range: [0, 4], parameters: {t: 0.9}}\n"
    )
    final = "merge_method: passthrough\nmodels: [{model: first}]\n"
    (tmp_path / "r.yaml").write_text(f"name: first\n{sliced}---\n{final}")
    (line,) = command("check", tmp_path / "r.yaml", "--json").json["ignored"]
    assert line.startswith('"first": slices.0.sources.1.parameters: "t" has no effect for one source ("zoo:maths")')


def test_models_that_are_not_those_of_the_recipe(command: Callable, tmp_path: Path) -> None:
    """Together with what else is wrong; and nothing is said where they are the same."""
    base, maths = (open_source(f"zoo:{name}").content_hash() for name in ("base", "maths"))
    recipe = f"{RECIPE}evomerge: {{sources: {{zoo:maths: '{'0' * 64}', zoo:base: '{base}'}}}}\n"
    (tmp_path / "r.yaml").write_text(recipe.replace("{weight: 0.8}", "{}"))
    lines = command("check", tmp_path / "r.yaml").error.splitlines()
    assert len(lines) == 2 and 'needs "weight"' in lines[0]
    assert 'model "zoo:maths": its content is not what the recipe was made with' in lines[1]
    (tmp_path / "r.yaml").write_text(recipe.replace("0" * 64, maths))
    assert command("check", tmp_path / "r.yaml").code == 0


def test_nothing_is_built_and_torch_stays_out(tmp_path: Path) -> None:
    """In a process of its own: planning reads headers and tokenizers."""
    (tmp_path / "r.yaml").write_text(CHAIN)
    script = (
        "import sys; from evomerge.cli import main; assert main(['check', sys.argv[1]]) == 0; "
        "assert 'torch' not in sys.modules"
    )
    done = subprocess.run([sys.executable, "-c", script, str(tmp_path / "r.yaml")], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert [p.name for p in tmp_path.iterdir()] == ["r.yaml"]


@pytest.mark.parametrize("name", presets.names("search_spaces"))
def test_every_preset_space(command: Callable, name: str) -> None:
    data = command("check", f"search_spaces/{name}.yaml", "--json").json
    assert data["kind"] == "space" and data["parameters"] and data["layers"] == 4


# MGSM in Japanese is on the Hub: its own tests put a local file in its place.
@pytest.mark.parametrize("name", [n for n in presets.names("evaluators") if n != "mgsm_ja"])
def test_every_preset_evaluator(command: Callable, name: str) -> None:
    data = command("check", f"evaluators/{name}", "--json").json
    assert data["kind"] == "evaluator" and set(data["items"]) == {"search", "select", "test"}


def test_mergekit_evolves_configuration_is_a_space(command: Callable, tmp_path: Path) -> None:
    (tmp_path / "evolve.yaml").write_text(
        "genome:\n  models: [zoo:maths, zoo:kovesh]\n  base_model: zoo:base\n  merge_method: task_arithmetic\n"
        "  layer_granularity: 2\ntasks:\n  - {name: kovesh_problems, weight: 1.0}\n"
    )
    assert command("check", tmp_path / "evolve.yaml", "--json").json["kind"] == "space"


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("merge_method: tise\nmodels: [{model: zoo:maths}]\n", 'did you mean "ties"'),
        ("merge_method: linear\nmodels: [{model: zoo:math, parameters: {weight: 1}}]\n", "zoo:math"),
        ("merge_method: linear\nmodls: []\n", 'did you mean "models"'),
        ("a: [1\n", "YAML syntax error"),
        ("colour: blue\n", "neither a recipe, a space, a fusion nor an evaluator"),
        ("method: linear\nsouces: [zoo:maths]\n", 'did you mean "sources"?'),
        ("", "expected a mapping"),
        ("kind: python\ntasks: [x]\nfunction: none.py:f\n", "none.py"),
        ("tasks: [x]\nsplit_sed: 3\n", 'did you mean "split_seed"'),
    ],
)
def test_what_is_wrong_is_one_message(command: Callable, tmp_path: Path, text: str, words: str) -> None:
    (tmp_path / "f.yaml").write_text(text)
    assert words in command("check", tmp_path / "f.yaml").error


def test_low_above_high(command: Callable, tmp_path: Path) -> None:
    command("init", tmp_path)
    text = (tmp_path / "space.yaml").read_text().replace("low: 0.0, high: 1.5", "low: 1.5, high: 0.2")
    (tmp_path / "space.yaml").write_text(text)
    error = command("check", tmp_path / "space.yaml").error
    assert "low = 1.5" in error and "space.yaml:" in error


def test_a_missing_file_names_the_nearest(command: Callable, tmp_path: Path) -> None:
    (tmp_path / "space.yaml").write_text("")
    assert f'did you mean "{tmp_path / "space.yaml"}"' in command("check", tmp_path / "spac.yaml").error
