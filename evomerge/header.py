"""The header of a safetensors file, read with struct and json alone: names, types, shapes and places of its tensors.

Format: 8 bytes little-endian N, N bytes of JSON {name: {dtype, shape, data_offsets}}, then the data. Everything is
bounds-checked, because what a header says decides what is read (https://github.com/huggingface/safetensors).
"""

from __future__ import annotations

import json
import math
import struct
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeGuard

from evomerge.errors import SourceError

# Bytes of one element, by safetensors' names of types.
ITEM_SIZES = {
    "BOOL": 1, "U8": 1, "I8": 1, "F8_E4M3": 1, "F8_E5M2": 1, "I16": 2, "U16": 2, "F16": 2, "BF16": 2,
    "I32": 4, "U32": 4, "F32": 4, "F64": 8, "I64": 8, "U64": 8,
}  # fmt: skip
FLOATS = ("BF16", "F16", "F32", "F64")
MAX_HEADER = 100_000_000


@dataclass(frozen=True)
class TensorInfo:
    """One tensor in a file.

    Attributes:
        dtype: safetensors' name of the type ("BF16", "F32", ...).
        start, end: Bytes of the tensor, counted from the beginning of the file.
    """

    dtype: str
    shape: tuple[int, ...]
    file: Path
    start: int
    end: int

    @property
    def elements(self) -> int:
        """Number of elements."""
        return math.prod(self.shape)

    @property
    def is_float(self) -> bool:
        """Whether the tensor can be merged; others (masks, counters) are copied."""
        return self.dtype in FLOATS


def read_header(file: Path) -> dict[str, TensorInfo]:
    """Every tensor of a safetensors file, in the header's order.

    Raises:
        SourceError: a file cut short (an interrupted download), no safetensors file at all, or a header that lies.
    """
    try:
        with file.open("rb") as f:
            return parse_header(file, file.stat().st_size, f.read)
    except OSError as e:
        raise SourceError(f"{file}: cannot be read ({e.strerror or e})") from None


def parse_header(file: Path, size: int | None, read: Callable[[int], bytes]) -> dict[str, TensorInfo]:
    """Every tensor of a safetensors file that may lie elsewhere, in the header's order.

    Args:
        file: What the file is called here.
        size: Its bytes; None where that is not known.
        read: Gives the next so many bytes, from the beginning.

    Raises:
        SourceError: as `read_header`.
    """
    first = read(8)
    if first == b"version ":
        raise SourceError(f"{file}: is a git-lfs pointer, not the weights; run `git lfs pull` in its folder")
    if len(first) < 8:
        size = len(first) if size is None else size
        raise SourceError(f"{file}: interrupted download: the file has {size} bytes, not even a header")
    (length,) = struct.unpack("<Q", first)
    if length > MAX_HEADER or length < 2:
        raise SourceError(f"{file}: not a safetensors file (its header claims {length:,} bytes)")
    if size is not None and 8 + length > size:
        raise _cut(file, size, 8 + length)
    try:
        header = json.loads(read(length), object_pairs_hook=_once)
    except _TwiceError as e:
        raise SourceError(f'{file}: its header has "{str(e)[:100]}" twice; the file is damaged') from None
    except (ValueError, RecursionError):
        raise SourceError(f"{file}: its header is not JSON; the file is damaged or no safetensors file") from None
    if not isinstance(header, dict):
        raise SourceError(f"{file}: its header is a {type(header).__name__}, expected an object of tensors")
    header.pop("__metadata__", None)
    tensors = {name: _tensor(file, name, entry, 8 + length) for name, entry in header.items()}
    _check_layout(file, tensors, 8 + length, size)
    return tensors


class _TwiceError(ValueError):
    """A key that an object has twice."""


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """An object, when no key stands in it twice: readers differ in which of the two they take."""
    found = dict(pairs)
    if len(found) < len(pairs):
        keys = [key for key, _ in pairs]
        raise _TwiceError(next(key for i, key in enumerate(keys) if key in keys[:i]))
    return found


def _check_layout(file: Path, tensors: Mapping[str, TensorInfo], start: int, size: int | None) -> None:
    """Raise SourceError unless tensors follow each other from `start` to the end, as the safetensors library wants."""
    placed = sorted((t.start, t.end, name) for name, t in tensors.items())
    needed = max([start, *(end for _, end, _ in placed)])
    if size is not None and needed > size:
        raise _cut(file, size, needed)
    before, reached = "", start
    for begin, end, name in placed:
        if begin < reached:
            raise SourceError(f'{file}: tensors "{before}" and "{name}" overlap in it; the file is damaged')
        if begin > reached:
            raise SourceError(
                f'{file}: {begin - reached:,} bytes before "{name}" belong to no tensor; the file is damaged'
            )
        before, reached = name, end
    if size is not None and size > needed:
        raise SourceError(f"{file}: {size - needed:,} bytes at its end belong to no tensor; the file is damaged")


def _cut(file: Path, size: int, needed: int) -> SourceError:
    return SourceError(
        f"{file}: interrupted download: the file has {size:,} bytes, its header needs {needed:,}; download it again"
    )


def _tensor(file: Path, name: str, entry: Any, data: int) -> TensorInfo:
    if not name or ".." in name or name.startswith("/") or "\\" in name or not name.isprintable():
        raise SourceError(f"{file}: refused: {name!r} is not a name a tensor may have")
    wrong = SourceError(f'{file}: its header is damaged at tensor "{name}": {str(entry)[:100]}')
    if not isinstance(entry, dict):
        raise wrong
    dtype, shape, offsets = entry.get("dtype"), entry.get("shape"), entry.get("data_offsets")
    if dtype not in ITEM_SIZES:
        raise SourceError(f'{file}: tensor "{name}" has the unknown type {dtype!r}')
    if not _naturals(shape) or not _naturals(offsets) or len(offsets) != 2:
        raise wrong
    start, end = offsets
    if end - start != math.prod(shape) * ITEM_SIZES[dtype]:
        raise wrong
    return TensorInfo(dtype, tuple(shape), file, data + start, data + end)


def _naturals(value: Any) -> TypeGuard[list[int]]:
    return isinstance(value, list) and all(type(v) is int and v >= 0 for v in value)
