"""What the tests look for in evomerge's errors, read from their source.

`pytest.raises(KIND, match=WORDS)`, and `assert WORDS in done.stderr` with its relatives: `startswith`, `==`, several
words by `all(w in message for w in (...))`, and words that come from `parametrize`.
"""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path

from evomerge import errors as kinds
from evomerge.errors import EvoMergeError

TESTS = Path(__file__).parents[1]
GAP = "…"
# What an error's text is called in tests.
HELD = re.compile(
    r"std(?:err|out \+)|\berr\b|[Mm]essage|[Rr]eason|\bsaid\b|error|\bwords\b|refus|\bline\b|\bwhy\b|problem"
)


def asserted(folder: Path = TESTS) -> Iterator[tuple[str, str]]:
    """Where (file and line), and the words with a gap for each value and wildcard."""
    for path in sorted(folder.rglob("*.py")):
        if path.is_relative_to(TESTS / "docs"):  # about the pages, not the program
            continue
        for line, text in found_in(ast.parse(path.read_text(encoding="utf-8"))):
            yield f"{path.relative_to(folder.parent)}:{line}", text


def found_in(tree: ast.AST) -> Iterator[tuple[int, str]]:
    """Line and words of everything that a test's source expects an error to say."""
    for scope in [n for n in ast.walk(tree) if isinstance(n, ast.FunctionDef)]:
        given = dict(_parametrized(scope)) | dict(_looped(scope))
        for node in ast.walk(scope):
            for expression, is_pattern in _expected(node):
                for text in _texts(expression, given):
                    yield node.lineno, plain(text) if is_pattern else text


def _expected(node: ast.AST) -> Iterator[tuple[ast.expr, bool]]:
    """The expressions in a node that an error's text is held against; whether they are regular expressions."""
    if isinstance(node, ast.Compare):
        for left, operator, right in zip([node.left, *node.comparators], node.ops, node.comparators, strict=False):
            if isinstance(operator, ast.In) and HELD.search(ast.unparse(right)):
                yield left, False
            elif isinstance(operator, ast.Eq) and isinstance(right, ast.Call) and ast.unparse(right.func) == "Lost":
                yield from ((value, False) for value in right.args)  # a result with the reason why there is none
            elif isinstance(operator, ast.Eq) and HELD.search(ast.unparse(left)):
                yield right, False
    elif isinstance(node, ast.Call):
        name = ast.unparse(node.func)
        if name == "pytest.raises" and node.args:
            kind = getattr(kinds, ast.unparse(node.args[0]), None)
            if isinstance(kind, type) and issubclass(kind, EvoMergeError):
                yield from ((k.value, True) for k in node.keywords if k.arg == "match")
        elif name.endswith((".startswith", ".endswith")) and HELD.search(name):
            yield from ((value, False) for value in node.args)
        else:
            yield from ((k.value, False) for k in node.keywords if k.arg in ("words", "match") and name != "re.search")


def _texts(node: ast.expr, given: dict[str, list[ast.expr]]) -> Iterator[str]:
    """The texts that an expression can be."""
    if isinstance(node, ast.Constant):
        yield from [node.value] if isinstance(node.value, str) else []
    elif isinstance(node, ast.JoinedStr):
        yield "".join(str(part.value) if isinstance(part, ast.Constant) else GAP for part in node.values)
    elif isinstance(node, ast.Tuple | ast.List | ast.Set):
        for element in node.elts:
            yield from _texts(element, given)
    elif isinstance(node, ast.IfExp):
        yield from [*_texts(node.body, given), *_texts(node.orelse, given)]
    elif isinstance(node, ast.BinOp) and isinstance(node.op, ast.Add):
        yield from [*_texts(node.left, given), *_texts(node.right, given)]
    elif isinstance(node, ast.Name):
        for value in given.get(node.id, ()):
            yield from _texts(value, {})


def _parametrized(scope: ast.FunctionDef) -> Iterator[tuple[str, list[ast.expr]]]:
    """The values of each argument that `pytest.mark.parametrize` gives."""
    for decorator in scope.decorator_list:
        if not (isinstance(decorator, ast.Call) and ast.unparse(decorator.func) == "pytest.mark.parametrize"):
            continue
        names, rows = decorator.args[:2]
        listed = ast.literal_eval(names)
        listed = [n.strip() for n in listed.split(",")] if isinstance(listed, str) else list(listed)
        for i, name in enumerate(listed):
            values = []
            for row in rows.elts if isinstance(rows, ast.List | ast.Tuple) else ():
                cells = row.args if isinstance(row, ast.Call) else row.elts if isinstance(row, ast.Tuple) else [row]
                values += [cells[i]] if i < len(cells) and (len(listed) > 1 or len(cells) == 1) else []
            yield name, values


def _looped(scope: ast.FunctionDef) -> Iterator[tuple[str, list[ast.expr]]]:
    """What the variables of loops over written values are: for word in ("one", "two")."""
    for node in ast.walk(scope):
        if isinstance(node, ast.For | ast.comprehension) and isinstance(node.iter, ast.Tuple | ast.List | ast.Dict):
            rows = [*node.iter.keys, *node.iter.values] if isinstance(node.iter, ast.Dict) else node.iter.elts
            targets = node.target.elts if isinstance(node.target, ast.Tuple) else [node.target]
            for i, target in enumerate(targets):
                cells = [r.elts[i] if isinstance(r, ast.Tuple) and len(targets) > 1 else r for r in rows if r]
                yield ast.unparse(target), cells


def plain(pattern: str) -> str:
    """A regular expression's words: wildcards are gaps, and what was escaped is itself."""
    pattern = re.sub(r"(?<!\\)\[\^?[^\]]*\][*+?]?|(?<!\\)\(\?[^)]*\)|(?<!\\)\.[*+]\??|\\[dwsS][*+]?", GAP, pattern)
    return re.sub(r"\\(.)", r"\1", pattern).strip("^$")
