"""Every message with which evomerge refuses or fails, read from its source.

A message is known by its text with its values left out (`…`). Words that the program makes apart, in a variable or a
function, and fills into such a gap (`no server answers at …`), are told by themselves.
"""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path

ROOT = Path(__file__).parents[2]
GAP = "…"
# A part of a message: the module and the function where it is written, and its expression.
Part = tuple[str, ast.FunctionDef, ast.expr]
# What is raised for a user to read: the kinds of evomerge.errors, what becomes one in a file's or an option's check,
# and the names under which functions are handed or make a kind.
RAISED = re.compile(r"(Error|Problem|LeaseLost)$|^(error|kind|held|unfit)$|^(self\.)?_\w+$")
# Raised for programmers, or caught and said again by evomerge in its own words.
OTHERS = {
    "AssertionError", "AttributeError", "KeyError", "IndexError", "TypeError", "StopIteration", "RuntimeError",
    "NotImplementedError", "PermissionError", "NotADirectoryError", "OSError", "BuildError", "_TwiceError",
    "_Numbering", "PydanticCustomError",
}  # fmt: skip
KINDS = re.compile(r"(Error|Problem|LeaseLost|^Lost|^Interrupted)$")
APPENDED = ("problems.append", "self.problems.append", "parser.error")
# Fewer words than these, filled into a message, are a value ("the winner"), not a reason; and so are some of more.
WORD = re.compile(r"(?<![\w./-])[A-Za-z]{2,}(?![\w/-])")
FEW = 3
FILLED = {
    "one data set without splits", "the final recipe", "the diagonal of a Gram matrix", "true or false",
    "evomerge statistics '…' TEXT --kind … --out FOLDER", "budget …: … for merged weights (…), the rest for paths",
    "the one that hf auth login left", "the token of …", "branch … of the repository", "of this job",
    "a candidate that is scored again",
    "… candidates were scored here, in … jobs", "the cluster at …", "… could be it", ", in steps of … in early layers",
    ", and … more like it", "and … more of its kind", "did you mean …?", 'did you mean "…"?', '; did you mean "…"?',
    "no reason given", "… cannot be written", "this process sees {n:g} GPU(s)", "…, into several parameters",
    "…: … there, … now", "it has no machine", "… GB are free", "… with … and … CPUs", "pip install 'evomerge[vision]'",
}  # fmt: skip
NO_TEXT = re.compile(r"[^A-Za-z]*")


@dataclass(frozen=True)
class Message:
    """One message: its text with gaps for values, and the module that says it."""

    text: str
    module: str


@cache
def said() -> dict[str, Message]:
    """Every message in evomerge's source, by its text; the first place where two say the same."""
    found: dict[str, Message] = {}
    trees: dict[str, ast.Module] = {}
    for path in sorted((ROOT / "evomerge").rglob("*.py")):
        if path.name == "hiding.py":  # texts of patterns
            continue
        module = ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")
        trees[module] = ast.parse(path.read_text(encoding="utf-8"))
    for module, tree in trees.items():
        for text in _in(tree):
            found.setdefault(text, Message(text, module))
    for module, text in _filled(trees):
        found.setdefault(text, Message(text, module))
    return found


def _in(tree: ast.AST) -> Iterator[str]:
    yield from dict.fromkeys(text for _, expression in _messages(tree) for text in _texts(expression))


def _messages(tree: ast.AST) -> Iterator[tuple[ast.FunctionDef | None, ast.expr]]:
    """What is said somewhere, as it stands in the source, and the function that says it."""
    for function in [None, *(n for n in ast.walk(tree) if isinstance(n, ast.FunctionDef))]:
        for node in _own(function if function is not None else tree):
            if isinstance(node, ast.Raise) and isinstance(node.exc, ast.Call):
                name = ast.unparse(node.exc.func)
                if RAISED.search(name) and name.rpartition(".")[2] not in OTHERS and node.exc.args:
                    yield function, node.exc.args[0]
            elif isinstance(node, ast.Call) and node.args and KINDS.search(ast.unparse(node.func)):
                if ast.unparse(node.func).rpartition(".")[2] not in OTHERS:
                    yield function, node.args[0]  # held in a variable and raised later, or kept as a result
            elif isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == "reason":
                yield function, node.value  # why a candidate failed
        if function is not None:
            yield from ((function, expression) for expression in _from_function(function))


def _from_function(function: ast.FunctionDef) -> Iterator[ast.expr]:
    """What a function that looks for problems, or makes an error, gives back."""
    gives = ast.unparse(function.returns) if function.returns else ""
    problems = "problem" in function.name or function.name in ("_idle", "inconsistencies", "repeated") or (
        "Iterator" in gives and "Key" in gives and "str" in gives
    )  # fmt: skip
    for node in _own(function):
        if isinstance(node, ast.Yield) and "Mismatch" in gives and isinstance(node.value, ast.Tuple):
            yield from node.value.elts  # what differs between two models, and what would help
        elif isinstance(node, ast.YieldFrom) and "Mismatch" in gives and isinstance(node.value, ast.GeneratorExp):
            yield node.value.elt
        elif isinstance(node, ast.Yield) and problems and node.value is not None:
            value = node.value
            yield value.elts[-1] if isinstance(value, ast.Tuple) and value.elts else value
        elif isinstance(node, ast.Return) and node.value is not None:
            if problems and "str" in gives:
                yield node.value
            elif isinstance(node.value, ast.Call) and RAISED.search(gives) and node.value.args:
                yield node.value.args[0]
        elif isinstance(node, ast.Call) and ast.unparse(node.func) in APPENDED:
            yield node.args[0]
        elif isinstance(node, ast.AugAssign) and ast.unparse(node.target) == "problems":
            yield from node.value.elts if isinstance(node.value, ast.List) else ()


def _filled(trees: dict[str, ast.Module]) -> Iterator[tuple[str, str]]:
    """Words that a message gets from elsewhere (see `_Sources`): module, and the words."""
    sources = _Sources(trees)
    waiting = [(m, f, e) for m, tree in trees.items() for f, e in _messages(tree) if f is not None]
    seen: set[int] = set()
    while waiting:
        module, function, expression = waiting.pop()
        for where, inside, value in sources.of(module, function, expression):
            if id(value) in seen:
                continue
            seen.add(id(value))
            waiting.append((where, inside, value))
            for text in _texts(value):
                # With its place in front it is a message of its own, however short: '…: unknown key "…"'.
                few = 2 if text.startswith(f"{GAP}: ") else FEW
                if text not in FILLED and len(WORD.findall(text)) >= few:
                    yield where, text


class _Sources:
    """Where the parts of a message come from: a variable, what is handed to its function, or a function's text."""

    def __init__(self, trees: dict[str, ast.Module]) -> None:
        self.trees = trees
        self.functions: dict[str, list[tuple[str, ast.FunctionDef]]] = {}
        self.calls: dict[tuple[str, str], list[tuple[ast.FunctionDef, ast.Call]]] = {}
        for module, tree in trees.items():
            for function in ast.walk(tree):
                if not isinstance(function, ast.FunctionDef):
                    continue
                if function.returns is not None and "str" in ast.unparse(function.returns):
                    self.functions.setdefault(function.name, []).append((module, function))
                for node in _own(function):
                    if isinstance(node, ast.Call):
                        self.calls.setdefault((module, _last(node.func)), []).append((function, node))

    def of(self, module: str, function: ast.FunctionDef, message: ast.expr) -> Iterator[Part]:
        """The module, function and expression of each part."""
        for node in ast.walk(message):
            if isinstance(node, ast.Name):
                for scope in (function, self.trees[module]):
                    yield from ((module, function, value) for value in _set_to(scope, node.id))
                yield from self._handed(module, function, node.id)
            elif isinstance(node, ast.FormattedValue) and isinstance(node.value, ast.IfExp | ast.BoolOp):
                yield module, function, node.value
            elif isinstance(node, ast.Call):
                named = self.functions.get(_last(node.func), [])
                here = [found for found in named if found[0] == module] or named
                # Methods of one name in several classes mostly describe things.
                for where, other in here if len(here) == 1 else ():
                    given = (n.value for n in _own(other) if isinstance(n, ast.Return))
                    yield from ((where, other, value) for value in given if value is not None)

    def _handed(self, module: str, function: ast.FunctionDef, name: str) -> Iterator[Part]:
        """What callers in the same module give for an argument."""
        names = [a.arg for a in function.args.args if a.arg not in ("self", "cls")]
        at = names.index(name) if name in names else None
        for caller, call in self.calls.get((module, function.name), ()):
            if at is not None and at < len(call.args):
                yield module, caller, call.args[at]
            yield from ((module, caller, k.value) for k in call.keywords if k.arg == name)


def _last(function: ast.expr) -> str:
    return ast.unparse(function).rpartition(".")[2]


def _set_to(scope: ast.AST, name: str) -> list[ast.expr]:
    """The expressions that a variable of a function or a module is set to."""
    return _set(scope).get(name, [])


@cache
def _set(scope: ast.AST) -> dict[str, list[ast.expr]]:
    found: dict[str, list[ast.expr]] = {}
    for node in _own(scope):
        targets: list[ast.expr] = []
        if isinstance(node, ast.Assign):
            targets = node.targets
        elif isinstance(node, ast.AnnAssign | ast.AugAssign | ast.NamedExpr):
            targets = [node.target]
        else:
            continue
        for target in targets:
            if isinstance(target, ast.Name) and node.value is not None:
                found.setdefault(target.id, []).extend(_elements(node.value))
            elif isinstance(target, ast.Tuple) and isinstance(node.value, ast.Tuple):
                for t, value in zip(target.elts, node.value.elts, strict=False):
                    found.setdefault(ast.unparse(t), []).append(value)
    return found


def _elements(value: ast.expr) -> list[ast.expr]:
    """The lines of a list that becomes one message, or the value itself."""
    if isinstance(value, ast.List):
        return value.elts
    return [value.elt] if isinstance(value, ast.ListComp) else [value]


@cache
def _own(function: ast.AST) -> tuple[ast.AST, ...]:
    """The nodes of a function, or of a module, in their order, without those of functions inside it."""
    waiting: list[ast.AST] = list(reversed(getattr(function, "body", ())))
    found = []
    while waiting:
        found.append(node := waiting.pop())
        if not isinstance(node, ast.FunctionDef | ast.Lambda):
            waiting += reversed(list(ast.iter_child_nodes(node)))
    return tuple(found)


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
    if isinstance(node, ast.BoolOp):
        return [text for value in node.values for text in _shapes(value)]
    if isinstance(node, ast.BinOp) and isinstance(node.op, ast.Add):
        return [a + b for a in _shapes(node.left) or [GAP] for b in _shapes(node.right) or [GAP]]
    return []
