"""YAML at the edge: places in messages, and what is refused."""

from __future__ import annotations

import pickle
from pathlib import Path

import pytest
from pydantic import Field

from evomerge.config import MAX_NODES, Frozen, load_yaml, parse_yaml, validate
from evomerge.errors import InputError, RecipeError, SpaceError, choose, nearest


class Inner(Frozen):
    low: float
    high: float = 1.0


class Outer(Frozen):
    name: str
    inner: Inner | None = None
    many: list[Inner] = []
    named: dict[str, Inner] = {}
    short: list[int] = Field(default=[1], min_length=1)


def refused(text: str) -> str:
    with pytest.raises(InputError) as caught:
        validate(Outer, parse_yaml(text, "f.yaml"))
    assert caught.value.exit_code == 2
    return str(caught.value)


def test_reads_a_file(tmp_path: Path) -> None:
    file = tmp_path / "a.yaml"
    file.write_text("name: x\ninner: {low: 1}\n")
    assert validate(Outer, load_yaml(file)) == Outer(name="x", inner=Inner(low=1))


def test_missing_file_names_the_nearest(tmp_path: Path) -> None:
    (tmp_path / "space.yaml").write_text("")
    with pytest.raises(SpaceError, match=r"spcae\.yaml: no such file; did you mean .*space\.yaml"):
        load_yaml(tmp_path / "spcae.yaml", SpaceError)


def test_folder_and_bytes_are_no_yaml(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="is a folder"):
        load_yaml(tmp_path)
    (tmp_path / "b").write_bytes(b"a: \xff\xfe")
    with pytest.raises(InputError, match="not a text file"):
        load_yaml(tmp_path / "b")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("name: [1\nb: 2", "f.yaml:2:2: YAML syntax error"),
        ("name: x\nname: y", 'f.yaml:2:1: key "name" is given twice'),
        ("inner: {low: 1, low: 2}", 'key "low" is given twice'),
        ("a: 1\n---\nb: 2", "holds 2 YAML documents"),
        ("a: !!python/object/apply:os.system [echo]", "YAML syntax error"),
        ("a: &x [*x]", "an alias refers to what contains it"),
        ("- 1", "expected a mapping of keys to values, got [1]"),
        ("", "expected a mapping of keys to values, got nothing (empty)"),
        ("just text", "expected a mapping"),
        ("a: 2020-13-45", "YAML cannot be read"),
    ],
)
def test_refused_with_its_place(text: str, message: str) -> None:
    found = refused(text)
    assert message in found
    assert found.startswith("f.yaml")
    assert "\n" not in found


def test_bomb_is_refused() -> None:
    text = "a0: &a0 [x, x, x, x, x, x, x, x, x, x]\n"
    text += "".join(f"a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * 10)}]\n" for i in range(1, 12))
    assert f"more than {MAX_NODES:,} values" in refused(text)


def test_deep_nesting_is_refused() -> None:
    assert refused("a: " + "[" * 5000 + "]" * 5000).startswith("f.yaml")


def test_every_problem_is_in_the_one_error() -> None:
    lines = refused("nmae: x\ninner: {low: a, hgih: 2}\nmany:\n- {low: 1}\n- {high: 3}\n").splitlines()
    assert lines == [
        'f.yaml: key "name" is missing',
        "f.yaml:2: inner.low = 'a': expected a valid number, unable to parse string as a number",
        'f.yaml:2: unknown key "inner.hgih"; did you mean "high"?',
        'f.yaml:5: key "many.1.low" is missing',
        'f.yaml:1: unknown key "nmae"; did you mean "name"?',
    ]


def test_wrong_shapes_in_words() -> None:
    lines = refused("name: x\ninner: [1]\nnamed: 3\nshort: []").splitlines()
    assert lines == [
        "f.yaml:2: inner = [1]: expected a mapping of keys to values",
        "f.yaml:3: named = 3: expected a mapping of keys to values",
        "f.yaml:4: short = []: expected at least 1",
    ]


def test_unknown_key_below_a_name_of_ones_own() -> None:
    assert refused("name: x\nnamed: {mine: {low: 1, hig: 2}}") == (
        'f.yaml:2: unknown key "named.mine.hig"; did you mean "high"?'
    )


def test_frozen() -> None:
    with pytest.raises(ValueError, match="frozen"):
        Inner(low=1).low = 2  # type: ignore[misc]


def test_an_unchecked_copy_is_what_pydantic_makes() -> None:
    outer = Outer(name="a", inner=Inner(low=0.0), many=[Inner(low=1.0)])
    for values in ({"name": "b"}, {"short": [2]}, {"inner": None, "named": {"x": Inner(low=2.0)}}, {}):
        copy, theirs = outer.unchecked_copy(**values), outer.model_copy(update=values)
        assert copy.__getstate__() == theirs.__getstate__(), "all that a model consists of, in its own words"
        assert copy == theirs and copy.model_dump(exclude_unset=True) == theirs.model_dump(exclude_unset=True)
        assert pickle.loads(pickle.dumps(copy)) == theirs and copy.model_copy() == theirs
    assert outer == Outer(name="a", inner=Inner(low=0.0), many=[Inner(low=1.0)]), "the original is as it was"
    assert outer.model_fields_set == {"name", "inner", "many"}
    with pytest.raises(ValueError, match="frozen"):
        outer.unchecked_copy(name="b").name = "c"


def test_merge_keys_and_aliases_still_work() -> None:
    assert parse_yaml("a: &a {x: 1}\nb: {<<: *a, y: 2}", "f").data["b"] == {"x": 1, "y": 2}


def test_kind_of_error_is_the_callers() -> None:
    with pytest.raises(RecipeError):
        parse_yaml("a: [", "f", RecipeError)


def test_nearest_and_choose() -> None:
    assert nearest("tise", ["ties", "linear"]) == "ties"
    assert nearest("zzz", ["ties", "linear"]) is None
    assert choose("zzz", ["ties", "linear"]) == "Valid: ties, linear"
    assert "(40 in all)" in choose("x", [f"name{i}" for i in range(40)])
