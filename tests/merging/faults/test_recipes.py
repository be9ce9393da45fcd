"""Recipe files that are wrong, or made to harm: one message with every problem, exit code 2, nothing left behind."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path

import pytest

Refused = Callable[..., str]

BOMB = "a: &a [x, x, x, x, x, x, x, x, x]\n" + "".join(
    f"{new}: &{new} [{', '.join([f'*{old}'] * 9)}]\n" for old, new in zip("abcdefghi", "bcdefghij", strict=True)
)
ONE = "models: [{model: ./a, parameters: {weight: 1}}]"
LINEAR = f"merge_method: linear\n{ONE}"


@pytest.mark.parametrize(
    ("text", "words"),
    [
        (BOMB, "unfolds into more than"),
        (f"{LINEAR}\nevomerge: {{provenance: {{{BOMB.replace(chr(10), ', ')}}}}}\n", "unfolds into more"),
        ("a: &a [*a]\n", "an alias refers to what contains it"),
        ("[" * 200_000, "YAML cannot be read"),
        ("{a: " * 20_000, "YAML cannot be read"),
        ("- " * 50_000 + "x", "YAML cannot be read"),
        ("# comment\n" * 2_000_000 + f"merge_method: linear\n{ONE}\n", "expected at most"),
        ("!!python/object/apply:os.system ['touch hacked']", "could not determine a constructor"),
        ("merge_method: !!python/name:os.system linear\n", "could not determine a constructor"),
        (b"\xff\xfe\x00merge_method: linear", "not a text file (byte 0 is not UTF-8)"),
        ("merge_method: linear\n\x00models: []", "YAML syntax error"),
        ("", "expected a mapping of keys to values, got nothing"),
        ("[1, 2]", "expected a mapping of keys to values"),
        ("merge_method: linear\nmodels: [\n", "YAML syntax error"),
    ],
)
def test_files_made_to_harm(text: str | bytes, words: str, models: Path, refused: Refused) -> None:
    start = time.monotonic()
    message = refused(text, words=("recipe.yaml", words))
    assert time.monotonic() - start < 20
    assert len(message.splitlines()) == 1 and len(message) < 2000
    assert not Path("hacked").exists()


@pytest.mark.parametrize(
    ("text", "words"),
    [
        (f"merge_method: linear\nmerge_method: ties\n{ONE}", ["recipe.yaml:2:1", 'key "merge_method" is given twice']),
        (
            "merge_method: linear\nmodels: [{model: ./a, parameters: {weight: 1, weight: 2}}]",
            ['key "weight" is given twice'],
        ),
        (
            f"merge_methd: linear\n{ONE}",
            ['unknown key "merge_methd"; did you mean "merge_method"', 'key "merge_method" is missing'],
        ),
        (f"merge_method: linear\n{ONE}\nevomerge: {{sed: 1}}", ['unknown key "evomerge.sed"; did you mean "seed"']),
        (f"merge_method: liner\n{ONE}", ["recipe.yaml:1", 'did you mean "linear"']),
        (
            "merge_method: linear\nmodels: [{model: ./a, parameters: {wieght: 1}}]",
            ['has no parameter "wieght"; did you mean "weight"'],
        ),
        (
            "merge_method: linear\nmodels: [{model: ./a, parameters: {weight: heavy}}]",
            ["recipe.yaml:2: models.0.parameters.weight = 'heavy': expected a number"],
        ),
        ("merge_method: linear\nmodels: [{model: ./a, parameters: {weight: .nan}}]", ["expected a finite number"]),
        (f"merge_method: linear\n{ONE}\ndtype: bf16", ["recipe.yaml:3: dtype = 'bf16'", "bfloat16"]),
        (f"merge_method: linear\n{ONE}\nout_dtype: int8", ["out_dtype = 'int8'"]),
        ("merge_method: linear\nmodels: ./a", ["recipe.yaml:2: models = './a'", "expected a valid list"]),
        ("merge_method: linear\nmodels: [3]", ["models.0 = 3: expected a mapping"]),
        ("merge_method: linear\nmodels: [{model: [./a]}]", ["models.0.model"]),
        ("merge_method: linear\nmodels: [{model: }]", ["models.0.model"]),
        ("merge_method: linear\nmodels: []", ['expected exactly one of "models", "slices" and "modules"']),
        (
            "merge_method: passthrough\nslices: [{sources: [{model: ./a, layer_range: [3, 1]}]}]",
            ["expected [first, end], two whole numbers with 0 <= first < end"],
        ),
        (
            "merge_method: passthrough\nslices: [{sources: [{model: ./a, layer_range: [0, 99]}]}]",
            ["layer_range [0, 99]", "the model has 4 layers"],
        ),
        (f"merge_method: linear\n{ONE}\nevomerge: {{seed: -1}}", ["evomerge.seed = -1"]),
        (
            "{merge_method: ties, base_model: ./base, models: [{model: ./a, parameters: {weight: 1, density: 1.5}}]}",
            ["density = 1.5: expected a number from 0 to 1"],
        ),
        (
            "merge_method: ties\nmodels: [{model: ./a, parameters: {weight: 1}}]",
            ['merge_method "ties" needs a base_model'],
        ),
        (
            "merge_method: linear\nmodels: [{model: ./aa, parameters: {weight: 1}}]",
            ['model "./aa": no such folder', "did you mean"],
        ),
        ("merge_method: linear\nmodels: [{model: zoo:mathss, parameters: {weight: 1}}]", ['did you mean "maths"']),
        (f"merge_method: linear\n{ONE}\nchat_template: chatmll", ['did you mean "chatml"']),
        (f"merge_method: linear\n{ONE}\ntokenizer_source: ./c", ['tokenizer_source: "./c"']),
        (f"name: x\n{LINEAR}\n---\nname: x\n{LINEAR}", ['two documents have the name "x"']),
        (f"name: ../x\n{LINEAR}\n---\n{LINEAR.replace('./a', '../y')}", ['model "../y": no such folder']),
    ],
)
def test_mistakes(text: str, words: list[str], models: Path, refused: Refused) -> None:
    refused(text, words=tuple(words))


def test_every_problem_at_once(models: Path, refused: Refused) -> None:
    text = (
        "merge_method: linear\ndtype: half\nmodels: [{modl: ./a}, {model: ./b, color: red, parameters: {weight: 1}}]\n"
    )
    lines = refused(text).splitlines()
    assert len(lines) == 4 and all("recipe.yaml:" in line for line in lines)


def test_weights_that_cancel_out(models: Path, refused: Refused) -> None:
    text = f"{LINEAR.removesuffix(']')}, {{model: ./b, parameters: {{weight: -1}}}}]\n"
    assert len(refused(text, words=("sum to 0",)).splitlines()) == 1


def test_a_recipe_for_other_sources(models: Path, refused: Refused) -> None:
    text = f"merge_method: linear\n{ONE}\nevomerge: {{sources: {{./a: '{'0' * 64}'}}}}\n"
    refused(text, words=("its content is not what the recipe was made with",))
