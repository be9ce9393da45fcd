"""Configuration at the edge: a YAML file becomes a frozen pydantic model, or one message that lists every problem.

YAML is loaded safely (no tags that build objects), duplicate keys are refused, and so are documents whose aliases
would unfold into far more than was written (a YAML bomb).
"""

from __future__ import annotations

import typing
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Self, TypeVar

import yaml
from pydantic import BaseModel, ConfigDict, ValidationError

from evomerge.arguments import describe
from evomerge.errors import InputError, beside, nearest

MAX_NODES = 200_000
# What takes PyYAML a few seconds to read.
MAX_BYTES = 4_000_000

Key = tuple[str | int, ...]
# Its place in a file, the value there, and what is wrong with it.
Problem = tuple[Key, Any, str]


class Frozen(BaseModel):
    """Base of every model of a file: immutable, unknown keys refused."""

    model_config = ConfigDict(frozen=True, extra="forbid", protected_namespaces=())

    def unchecked_copy(self, **values: Any) -> Self:
        """A copy with other values, which nobody checks: pydantic's `model_copy`, in a fifth of its time.

        For what is made by the hundred for each candidate of a search. No model of ours has fields beside its own.
        """
        made = object.__new__(type(self))
        # Frozen: it cannot be written in another way. These four are all that pydantic's models consist of. Names of
        # fields are shared where they are the same: thousands of sets are work for the garbage collector.
        given = self.model_fields_set
        object.__setattr__(made, "__dict__", {**self.__dict__, **values})
        object.__setattr__(made, "__pydantic_fields_set__", given if values.keys() <= given else {*given, *values})
        object.__setattr__(made, "__pydantic_extra__", None)
        object.__setattr__(made, "__pydantic_private__", None)
        return made


M = TypeVar("M", bound=BaseModel)


class Document:
    """One parsed YAML document together with the place of each key in its file.

    Attributes:
        data: The plain Python value (dict, list, str, int, float, bool, None).
        file: What messages call the document (a path, or "<command line>").
    """

    def __init__(self, data: Any, file: str, node: yaml.Node | None = None) -> None:
        self.data = data
        self.file = file
        self._node = node

    def where(self, key: Key = ()) -> str:
        """`FILE:LINE` of the value at `key`, as far as the path exists."""
        node, line = self._node, None
        for part in key:
            child: yaml.Node | None = None
            if isinstance(node, yaml.MappingNode):
                for name, value in node.value:
                    if name.value == str(part):
                        child, line = value, name.start_mark.line + 1
            elif isinstance(node, yaml.SequenceNode) and isinstance(part, int) and part < len(node.value):
                child = node.value[part]
                line = child.start_mark.line + 1
            if child is None:
                break
            node = child
        return f"{self.file}:{line}" if line is not None else self.file

    def mapping(self, error: type[InputError] = InputError) -> dict[str, Any]:
        """The document as a mapping, or `error` where it is something else (an empty file, a list)."""
        if not isinstance(self.data, dict):
            raise error(f"{self.file}: expected a mapping of keys to values, got {describe(self.data)}")
        return self.data


def read_text(path: str | Path, error: type[InputError] = InputError) -> str:
    """The text of a file; a missing or unreadable one is one clear message with the nearest name beside it."""
    path = Path(path)
    try:
        with path.open("rb") as f:
            data = f.read(MAX_BYTES + 1)
        if len(data) > MAX_BYTES:
            raise error(f"{path}: has more than {MAX_BYTES:,} bytes, expected at most that of a YAML file; refused")
        return data.decode("utf-8").replace("\r\n", "\n")
    except FileNotFoundError:
        raise error(f"{path}: no such file{beside(path)}") from None
    except IsADirectoryError:
        raise error(f"{path}: is a folder, expected a YAML file") from None
    except UnicodeDecodeError as e:
        raise error(f"{path}: not a text file (byte {e.start} is not UTF-8)") from None
    except OSError as e:
        raise error(f"{path}: cannot be read ({e.strerror})") from None


def load_yaml(path: str | Path, error: type[InputError] = InputError) -> Document:
    """Read one YAML document from a file.

    Raises:
        error: missing file, syntax error (with line and column), duplicate key, more than one document.
    """
    return parse_yaml(read_text(path, error), str(path), error)


def parse_yaml(text: str, file: str, error: type[InputError] = InputError) -> Document:
    """Parse one YAML document; `file` is what messages call it."""
    documents = parse_documents(text, file, error)
    if len(documents) > 1:
        raise error(f"{file}: holds {len(documents)} YAML documents, expected one")
    return documents[0] if documents else Document(None, file)


def parse_documents(text: str, file: str, error: type[InputError] = InputError) -> list[Document]:
    """Parse YAML of any number of documents; those that hold nothing are left out."""
    try:
        nodes = [node for node in yaml.compose_all(text, Loader=yaml.SafeLoader) if not _empty(node)]
        for node in nodes:
            _check_nodes(node, file, error)
        return [Document(_constructed(node), file, node) for node in nodes]
    except yaml.MarkedYAMLError as e:
        mark = e.problem_mark or e.context_mark
        at = f":{mark.line + 1}:{mark.column + 1}" if mark else ""
        raise error(f"{file}{at}: YAML syntax error: {e.problem or e.context}") from None
    except yaml.YAMLError as e:
        raise error(f"{file}: YAML syntax error: {' '.join(str(e).split())}") from None
    except (RecursionError, ValueError) as e:
        if isinstance(e, InputError):
            raise
        raise error(f"{file}: YAML cannot be read: {e}") from None


def _empty(node: yaml.Node) -> bool:
    """Whether a document holds nothing, as between two `---` or after the last."""
    return isinstance(node, yaml.ScalarNode) and node.tag == "tag:yaml.org,2002:null"


def _constructed(node: yaml.Node) -> Any:
    loader = yaml.SafeLoader("")
    try:
        return loader.construct_document(node)
    finally:
        loader.dispose()


def _check_nodes(root: yaml.Node, file: str, error: type[InputError]) -> None:
    """Refuse duplicate keys, and documents that unfold (through aliases) beyond MAX_NODES or into themselves."""
    unfolded: dict[int, int] = {}
    open_: set[int] = set()

    def size(node: yaml.Node) -> int:
        if id(node) in unfolded:
            return unfolded[id(node)]
        if id(node) in open_:
            raise error(f"{file}:{node.start_mark.line + 1}: an alias refers to what contains it")
        open_.add(id(node))
        total = 1
        if isinstance(node, yaml.MappingNode):
            seen: set[str] = set()
            for key, value in node.value:
                if isinstance(key, yaml.ScalarNode):
                    if key.value in seen and key.tag != "tag:yaml.org,2002:merge":
                        mark = key.start_mark
                        raise error(f'{file}:{mark.line + 1}:{mark.column + 1}: key "{key.value}" is given twice')
                    seen.add(key.value)
                total += size(key) + size(value)
        elif isinstance(node, yaml.SequenceNode):
            total += sum(size(child) for child in node.value)
        open_.discard(id(node))
        unfolded[id(node)] = total
        if total > MAX_NODES:
            raise error(f"{file}: unfolds into more than {MAX_NODES:,} values; refused")
        return total

    size(root)


def validate(
    model: type[M],
    document: Document,
    error: type[InputError] = InputError,
    more: Callable[[Any], Iterator[Problem]] | None = None,
) -> M:
    """Check a document against a model; every problem of the file is in the one error raised.

    Args:
        more: Gives the problems of the plain data that the model looks for only once every field of it is right.
    """
    document.mapping(error)
    try:
        return model.model_validate(document.data)
    except ValidationError as e:
        lines = [_line(model, document, problem) for problem in e.errors()]
        lines += [_said(document, *problem) for problem in (more(document.data) if more else ())]
        raise error("\n".join(dict.fromkeys(lines))) from None


def _line(model: type[BaseModel], document: Document, problem: Mapping[str, Any]) -> str:
    key: Key = tuple(problem["loc"])
    kind, value = problem["type"], problem.get("input")
    key = _real_key(key, document.data)
    name = _dotted(key)
    where = document.where(key)
    if kind == "extra_forbidden":
        known = _fields_at(model, key[:-1])
        near = nearest(str(key[-1]), known)
        hint = f'; did you mean "{near}"?' if near else f"; known here: {', '.join(sorted(known))}" if known else ""
        return f'{where}: unknown key "{name}"{hint}'
    if kind == "missing":
        return f'{where}: key "{name}" is missing'
    message = problem["msg"].removeprefix("Value error, ")
    if kind in ("model_type", "dict_type", "model_attributes_type"):
        message = "expected a mapping of keys to values"
    elif kind == "too_short":
        message = f"expected at least {problem['ctx']['min_length']}"
    elif message.startswith("Input should be"):
        message = "expected" + message.removeprefix("Input should be")
    return _said(document, key, value, message)


def _said(document: Document, key: Key, value: Any, message: str) -> str:
    where = document.where(key)
    return f"{where}: {_dotted(key)} = {describe(value)}: {message}" if key else f"{where}: {message}"


def _dotted(key: Key) -> str:
    return ".".join(str(part) for part in key) or "the file"


def _real_key(key: Key, data: Any) -> Key:
    """The path without the union tags that pydantic puts into it; those that we chose stand in brackets."""
    out: list[str | int] = []
    for i, part in enumerate(key):
        last = i == len(key) - 1
        if isinstance(data, Mapping):
            if part in data:
                data = data[part]
            elif not last or str(part).startswith("("):
                continue
        elif isinstance(data, Sequence) and not isinstance(data, str):
            if not isinstance(part, int) or part >= len(data):
                continue
            data = data[part]
        else:
            continue
        out.append(part)
    return tuple(out)


def _fields_at(model: type[BaseModel], key: Key) -> list[str]:
    """Names of the fields that a model knows at a key path (all of a union's, where there is a union)."""
    models = [model]
    for part in key:
        if isinstance(part, int):
            continue
        below: list[type[BaseModel]] = []
        for m in models:
            found = [f for name, f in m.model_fields.items() if str(part) == (f.alias or name)]
            below += [model for field in found for model in _models_in(field.annotation)]
        models = below or models
    return list(dict.fromkeys(field.alias or name for m in models for name, field in m.model_fields.items()))


def _models_in(annotation: Any) -> list[type[BaseModel]]:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return [annotation]
    return [m for part in typing.get_args(annotation) for m in _models_in(part)]
