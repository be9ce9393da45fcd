"""Every message with which evomerge refuses or fails, read from its source, beside what to do (messages/).

A message is known by its text with its values left out (`…`). What the program can say and messages/ does not have,
or the other way round, makes tests/docs/test_troubleshooting.py fail: whoever adds a message says what to do about it.
"""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

ROOT = Path(__file__).parents[2]
DATA = Path(__file__).parent / "messages"
# What stands in its place where the page is read as a file.
MARK = "*The table of all messages, which is made of the program, follows here on the site (`make docs`).*"
GAP = "…"
# What is raised for a user to read: the kinds of evomerge.errors, what becomes one in a file's or an option's check,
# and the names under which functions are handed or make a kind.
RAISED = re.compile(r"(Error|Problem|LeaseLost)$|^(error|kind|held|unfit)$|^(self\.)?_\w+$")
# Raised for programmers, or caught and said again by evomerge in its own words.
OTHERS = {
    "AssertionError", "AttributeError", "KeyError", "IndexError", "TypeError", "StopIteration", "RuntimeError",
    "NotImplementedError", "PermissionError", "NotADirectoryError", "OSError", "BuildError", "_TwiceError",
    "_Numbering",
}  # fmt: skip
APPENDED = ("problems.append", "self.problems.append", "parser.error")
NO_TEXT = re.compile(r"[^A-Za-z]*")


@dataclass(frozen=True)
class Message:
    """One message: its text with gaps for values, and the module that says it."""

    text: str
    module: str


def said() -> dict[str, Message]:
    """Every message in evomerge's source, by its text; the first place where two say the same."""
    found: dict[str, Message] = {}
    for path in sorted((ROOT / "evomerge").rglob("*.py")):
        module = ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")
        for text in _in(ast.parse(path.read_text(encoding="utf-8"))):
            found.setdefault(text, Message(text, module))
    return found


def _in(tree: ast.AST) -> Iterator[str]:
    for node in ast.walk(tree):
        if isinstance(node, ast.Raise) and isinstance(node.exc, ast.Call):
            name = ast.unparse(node.exc.func)
            if RAISED.search(name) and name.rpartition(".")[2] not in OTHERS and node.exc.args:
                yield from _texts(node.exc.args[0])
        elif isinstance(node, ast.FunctionDef):
            yield from _from_function(node)


def _from_function(function: ast.FunctionDef) -> Iterator[str]:
    """What a function that looks for problems, or makes an error, gives back."""
    gives = ast.unparse(function.returns) if function.returns else ""
    problems = "problem" in function.name or function.name in ("_idle", "inconsistencies", "repeated") or (
        "Iterator" in gives and "Key" in gives and "str" in gives
    )  # fmt: skip
    for node in _own(function):
        if isinstance(node, ast.Yield) and "Mismatch" in gives and isinstance(node.value, ast.Tuple):
            yield from _texts(node.value.elts[0])  # what differs between two models; what would help comes after it
        elif isinstance(node, ast.Yield) and problems and node.value is not None:
            value = node.value
            yield from _texts(value.elts[-1] if isinstance(value, ast.Tuple) and value.elts else value)
        elif isinstance(node, ast.Return) and node.value is not None:
            if problems and "str" in gives:
                yield from _texts(node.value)
            elif isinstance(node.value, ast.Call) and RAISED.search(gives) and node.value.args:
                yield from _texts(node.value.args[0])
        elif isinstance(node, ast.Call) and ast.unparse(node.func) in APPENDED:
            yield from _texts(node.args[0])
        elif isinstance(node, ast.AugAssign) and ast.unparse(node.target) == "problems":
            for element in node.value.elts if isinstance(node.value, ast.List) else ():
                yield from _texts(element)


def _own(function: ast.FunctionDef) -> Iterator[ast.AST]:
    """The nodes of a function without those of functions inside it."""
    waiting: list[ast.AST] = list(function.body)
    while waiting:
        node = waiting.pop(0)
        yield node
        if not isinstance(node, ast.FunctionDef | ast.Lambda):
            waiting = [*ast.iter_child_nodes(node), *waiting]


def _texts(node: ast.expr) -> Iterator[str]:
    """The texts that an expression can be, with gaps; none where it has no words of its own."""
    for text in _shapes(node):
        text = re.sub(f"{GAP}(?:{GAP})+", GAP, text)
        text = " ".join(text.split())
        if not NO_TEXT.fullmatch(text):
            yield text


def _shapes(node: ast.expr) -> list[str]:
    if isinstance(node, ast.Constant):
        return [node.value] if isinstance(node.value, str) else []
    if isinstance(node, ast.JoinedStr):
        return ["".join(part.value if isinstance(part, ast.Constant) else GAP for part in node.values)]
    if isinstance(node, ast.IfExp):
        return [*_shapes(node.body), *_shapes(node.orelse)]
    if isinstance(node, ast.BinOp) and isinstance(node.op, ast.Add):
        return [a + b for a in _shapes(node.left) or [GAP] for b in _shapes(node.right) or [GAP]]
    return []


def areas() -> list[dict[str, Any]]:
    """The reviewed messages by area: {title, id, means, messages: {text: what to do, or null: as it says}}."""
    return [yaml.safe_load(path.read_text(encoding="utf-8")) for path in sorted(DATA.glob("*.yaml"))]


def reviewed() -> dict[str, str | None]:
    """What is to be done about each message that was reviewed, by its text."""
    return {text: advice for area in areas() for text, advice in area["messages"].items()}


def table() -> str:
    """The areas as Markdown: a heading and what it means, then a table of messages."""
    modules = said()
    out: list[str] = []
    for area in areas():
        out += [f"## {area['title']} {{#{area['id']}}}", "", area["means"].strip(), ""]
        out += ["| message | said by | what to do |", "|---|---|---|"]
        for text, advice in area["messages"].items():
            module = modules[text].module.removeprefix("evomerge.") if text in modules else ""
            # A narrow column: names break behind their dots and nowhere else.
            place = module.replace("_", "\\_").replace(".", ".<wbr>")
            out.append(f"| {_cell(text)} | {place} | {advice or 'as it says'} |")
        out.append("")
    return "\n".join(out)


def page() -> str:
    """docs/troubleshooting.md with the table where it has its mark."""
    text = (ROOT / "docs" / "troubleshooting.md").read_text(encoding="utf-8")
    assert MARK in text
    return text.replace(MARK, table())


def _cell(text: str) -> str:
    """A message as code inside a table: a bar would end the cell, and backticks the code."""
    text = text.replace("|", "\\|")
    return f"`` {text} ``" if "`" in text else f"`{text}`"
