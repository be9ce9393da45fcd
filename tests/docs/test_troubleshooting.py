"""Every message of the program, and every one that a test expects, is on the page with what to do about it."""

from __future__ import annotations

import ast
import re
from pathlib import Path

import pytest
import yaml
from _generate import errors, said

from tests.docs.asserted import asserted, found_in

ROOT = Path(__file__).parents[2]
ADD = "tell in docs/_generate/messages/ what to do about it, in the area where it belongs"


def test_every_message_was_reviewed() -> None:
    found, reviewed = set(said.said()), set(errors.reviewed())
    assert sorted(found - reviewed) == [], ADD
    assert sorted(reviewed - found) == [], "no longer said; remove it from docs/_generate/messages/"


def test_each_message_stands_once_and_has_advice_or_its_areas() -> None:
    found = [text for area in errors.areas() for text in area["messages"]]
    assert len(found) == len(set(found)) > 500
    for area in errors.areas():
        assert len(area["means"]) > 80 and re.fullmatch(r"[a-z-]+", area["id"]), area["title"]
        for text, advice in area["messages"].items():
            assert advice is None or len(advice) >= 12, text


def test_a_message_without_advice_says_itself_what_to_do() -> None:
    """What is left to the area's words has what was expected, the choices that there are, or what to do in it."""
    page = errors.page()
    for text, advice in errors.reviewed().items():
        assert errors._cell(text) in page
        assert advice is not None or DIRECTS.search(text), f"{text}: {ADD}"


# Words by which a message says itself what to do: what was expected, a thing to do behind a semicolon, or a plain
# order; behind the last "; …" stand the choices. "needs", "cannot both" and the like say what is wrong alone.
DIRECTS = re.compile(
    r"\b(?:expected|give|name another|leave|choose|remove|try|Valid|install|did you|collect|rename|wait|one for each)\b"
    r"|; …|[;:] (?:set|put|say|make|log in|write)\b"
)

@pytest.mark.parametrize(
    ("text", "directs"),
    [
        ("x = …: expected a number", True),
        ("no model …; did you mean …", True),
        ("…: cannot be written; set TMPDIR there", True),
        ("…: …; …", True),
        ("'a' and 'b' cannot both be given", False),
        ("the country of a retry unexpectedly needs a rest", False),
        ("once it is started it will use the runs", False),
    ],
)
def test_which_messages_say_what_to_do(text: str, directs: bool) -> None:
    assert bool(DIRECTS.search(text)) is directs


# What splits an expected text: gaps, and what looks like a value (quoted, numbers, files, keys, options, the zoo's).
VALUE = re.compile(
    r"""…|\n|"[^"]*"|'[^']*'(?=[ :;,)]|$)|[\w./-]*[_/][\w./-]*|(?<!\w)--[\w-]+(?: [\w.]+,)?"""
    r"""|[\w.]*\d[\w.,]*|[\w-]*\.[A-Za-z]\w*|zoo:\w+"""
)


def unknown(text: str, page: str) -> list[str]:
    """The parts of an expected text, between its values, of which no message on the page has half."""
    parts = [part.strip(" .,:;()[]") for part in VALUE.split(text)]
    words = {part: len(re.findall(r"[^\W\d_]{2,}", part)) for part in parts}
    held = [p for p in parts if words[p] >= 3] or [p for p in parts if words[p] == 2 and len(p) >= 12]
    sizes = {part: max(min(len(part), 12), len(part) // 2) for part in held}
    return [p for p in held if not any(p[i : i + sizes[p]] in page for i in range(len(p) - sizes[p] + 1))]


def test_what_tests_expect_is_on_the_page() -> None:
    """Words that tests look for in what evomerge says: on the page, or listed with the reason why not."""
    listed = yaml.safe_load((Path(__file__).parent / "not_on_the_page.yaml").read_text(encoding="utf-8"))
    others = {text for texts in listed.values() for text in texts}
    page = "\n".join(errors.reviewed())
    found = list(asserted())
    missing = {text: f"{where}: {text}: {unknown(text, page)}" for where, text in found if unknown(text, page)}
    assert len(found) > 1000
    assert [line for text, line in missing.items() if text not in others] == [], ADD
    assert sorted(others - set(missing)) == [], "on the page by now, or no longer expected; remove it from the list"


@pytest.mark.parametrize(
    ("text", "parts"),
    [
        ("no server answers at …The same command goes on", ["no server answers at", "The same command goes on"]),
        ('study "s": no server answers at 127.0.0.1:5432', ["no server answers at"]),
        ("took longer than its timeout of 2 s; and then", ["took longer than its timeout of"]),
        ('the server has no database "nowhere"', ["the server has no database"]),
        ("--kind", []),
    ],
)
def test_an_expected_text_is_missed(text: str, parts: list[str]) -> None:
    """Each of its parts by itself: one that is on the page does not vouch for another."""
    assert unknown(text, "holds no study longer than") == parts
    assert unknown(text, "\n".join(parts)) == []


@pytest.mark.parametrize(
    ("source", "texts"),
    [
        ("with pytest.raises(StudyError, match=r'no server at .*; \\(try\\)'): pass", ["no server at …; (try)"]),
        ("with pytest.raises(KeyError, match='ours?'): pass", []),
        ("assert f'{port}: refused' in done.stderr", ["…: refused"]),
        ("assert 'a' in out and all(w in message for w in ('one', 'two'))", ["one", "two"]),
        ("for word in ['one', 'two']:\n        assert word in capsys.readouterr().err", ["one", "two"]),
        ("assert results[0] == Lost('took long')", ["took long"]),
        ("assert results[0].reason.startswith('it died')", ["it died"]),
        ("refused(path, words=('its header', f'{name} is'))", ["its header", "… is"]),
    ],
)
def test_expectations_are_found_in_tests(source: str, texts: list[str]) -> None:
    assert [text for _, text in found_in(ast.parse(f"def test() -> None:\n    {source}"))] == texts


def test_expectations_are_found_in_parameters() -> None:
    source = (
        "@pytest.mark.parametrize(('change', 'words'), [('x', 'is odd'), pytest.param('y', 'is even', id='b')])\n"
        "def test(change: str, words: str) -> None:\n    assert words in run(change).stderr\n"
    )
    assert [text for _, text in found_in(ast.parse(source))] == ["is odd", "is even"]


@pytest.mark.parametrize(
    ("source", "texts"),
    [
        ("raise InputError(f'{a}: no {b!r}; did you' + x)", ["…: no …; did you…"]),
        ("raise SpaceError('one' if x else 'two')", ["one", "two"]),
        ("def f() -> SpaceError:\n    return SpaceError(f'{x} is odd')", ["… is odd"]),
        ("def _problems(self):\n    yield ('key',), f'low = {x} is high'", ["low = … is high"]),
        ("raise KeyError('for programmers')", []),
        ("raise InputError('\\n'.join(lines))", []),
    ],
)
def test_messages_are_found_in_source(source: str, texts: list[str]) -> None:
    assert list(said._in(ast.parse(source))) == texts


@pytest.mark.parametrize(
    ("source", "texts"),
    [
        ("def f():\n    why = f'no host at {x}' if y else 0\n    raise StudyError(f'{u}: {why}')", ["no host at …"]),
        ("def f():\n    raise StudyError(f'{u}: {g(1)}')\ndef g(x) -> str:\n    return 'it is full'", ["it is full"]),
        ("_WHY = 'the disk is full'\ndef f():\n    raise StudyError(f'{u}: {_WHY}')", ["the disk is full"]),
        ("def f(why):\n    raise StudyError(f'{u}: {why}')\ndef g():\n    f('the disk is full')", ["the disk is full"]),
        ("def f():\n    raise StudyError(f'{u}{x and \"; it was tried\"}')", ["; it was tried"]),
        ("def f():\n    who = 'the winner'\n    raise StudyError(f'{u}: {who}')", []),
        ("def f():\n    x = _why(1)\ndef _why(x) -> str:\n    return 'nobody says this'", []),
    ],
)
def test_words_that_are_filled_in_are_found(source: str, texts: list[str]) -> None:
    assert [text for _, text in said._filled({"m": ast.parse(source)})] == texts


def test_errors_that_are_kept_are_found() -> None:
    source = "def f():\n    wrong = SourceError(f'{x} is odd')\n    return Lost('it died')"
    assert sorted(said._in(ast.parse(source))) == ["it died", "… is odd"]
