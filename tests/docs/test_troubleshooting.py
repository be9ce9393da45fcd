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


# Words by which a message says itself what to do: what was expected, a thing to do behind a semicolon, or a plain
# order; behind the last "; …" stand the choices. "needs", "cannot both" and the like say what is wrong alone.
DIRECTS = re.compile(
    r"\b(?:expected|give|name another|leave|choose|remove|try|Valid|install|did you|collect|rename|wait|one for each)\b"
    r"|; …|[;:] (?:set|put|say|make|log in|write)\b"
)
# Values alone, or what a test's own code or another library says.
VALUES = {
    "nan", "^the words$", "No space left on device", "evomerge_results", "too long", "taken", "DoRA",
    "no numbered modules", "tokenizer_source: union", "layers.1.*gate_up_proj"}  # fmt: skip


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

# Words that stand in the gap of a reviewed message, so that the page does not have them: what differs between two
# models, what is outside of which bounds, who says "unknown key", the test's own words.
IN_GAPS = {
    r"weight\.a = 7: outside \[-1, 2\]", "the server's disk is full", "f: returned", "holds the source model",
    "--device nowhere", "architecture GPTNeoXForCausalLM against LlamaForCausalLM",
    r'layers.2.input_layernorm.weight" of ".*a" has them already', r"times\.0 = 3: outside \[0, 2\]",
    r"insertion\.1\.layer = 'b:7': did you mean", 'unknown key "depth"', r"slot\.1\.a\.1 = 3\.0: outside \[-1, 1\]",
    "unit is layer, fixed at element", "is a model, not an adapter"}  # fmt: skip


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
        parts = [plain, *re.split(r'\.\*|\.\+|\[\^.*?\]\*|\n|"[^"]*"|[\w.]*_\w+[\w.]*|-?\d+', plain)]
        known = any(shared(part, m) >= min(len(part), 14) for part in parts if len(part) >= 4 for m in messages)
        if pattern not in VALUES | IN_GAPS and not known:
            missing.append(f"{where}: {pattern}")
    assert len(found) > 150
    assert {pattern for _, pattern in found} >= IN_GAPS
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
