"""Every message of the program, and every one that a test expects, is on the page with what to do about it."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest
from _generate import errors

from evomerge import errors as kinds
from evomerge.errors import EvoMergeError

ROOT = Path(__file__).parents[2]
ADD = "tell in docs/_generate/messages/ what to do about it, in the area where it belongs"


def test_every_message_was_reviewed() -> None:
    said, reviewed = set(errors.said()), set(errors.reviewed())
    assert sorted(said - reviewed) == [], ADD
    assert sorted(reviewed - said) == [], "no longer said; remove it from docs/_generate/messages/"


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


def expected() -> Iterator[tuple[str, str]]:
    """The words that tests look for in evomerge's errors: pytest.raises(KIND, match=WORDS)."""
    for path in sorted((ROOT / "tests").rglob("test_*.py")):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if not (isinstance(node, ast.Call) and ast.unparse(node.func) == "pytest.raises" and node.args):
                continue
            kind = getattr(kinds, ast.unparse(node.args[0]), None)
            if not (isinstance(kind, type) and issubclass(kind, EvoMergeError)):
                continue
            for keyword in node.keywords:
                if keyword.arg == "match" and isinstance(keyword.value, ast.Constant):
                    yield f"{path.relative_to(ROOT)}:{node.lineno}", str(keyword.value.value)


# Words by which a message says itself what to do; behind the last "; …" stand the choices, or the reason.
DIRECTS = re.compile(
    r"expected|give|set |name another|leave|choose|remove|try |write|Valid|install|did you|; …|collect|use |say |take "
    r"|put |wait|needs|rename|run |start |once|one for each"
)
# Values alone, or what a test's own code or another library says.
VALUES = {
    "nan", "^the words$", "No space left on device", "evomerge_results", "too long", "taken", "DoRA",
    "no numbered modules", "tokenizer_source: union", "layers.1.*gate_up_proj"}  # fmt: skip


def shared(words: str, message: str) -> int:
    """The longest run of characters that both have."""
    best, row = 0, [0] * (len(message) + 1)
    for a in words:
        new = [0] * (len(message) + 1)
        for j, b in enumerate(message):
            if a == b:
                new[j + 1] = row[j] + 1
                best = max(best, new[j + 1])
        row = new
    return best


def test_what_tests_expect_is_on_the_page() -> None:
    """Values stand in what tests expect; so the longest run of words must be one message's, for the most part."""
    messages = list(errors.reviewed())
    missing = []
    found = list(expected())
    for where, pattern in found:
        plain = re.sub(r"\\(.)", r"\1", pattern)
        parts = [plain, *re.split(r'\.\*|\.\+|\[\^.*?\]\*|\n|"[^"]*"|[\w.]*_\w+[\w.]*|\d+', plain)]
        known = any(shared(part, m) >= min(len(part), 8) for part in parts if len(part) >= 4 for m in messages)
        if pattern not in VALUES and not known:
            missing.append(f"{where}: {pattern}")
    assert len(found) > 150
    assert missing == []


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
    assert list(errors._in(ast.parse(source))) == texts
