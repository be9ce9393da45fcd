"""Source files, mapped into memory: tensors are views of them, and nothing is read before it is needed."""

from __future__ import annotations

import errno
import mmap
import threading
import warnings
from pathlib import Path
from weakref import WeakValueDictionary

import torch
from torch import Tensor

from evomerge.errors import SourceError
from evomerge.header import TensorInfo

TYPES = {
    "F64": torch.float64, "F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16,
    "I64": torch.int64, "I32": torch.int32, "I16": torch.int16, "I8": torch.int8, "U8": torch.uint8, "BOOL": torch.bool,
    "U16": torch.uint16, "U32": torch.uint32, "U64": torch.uint64,
    "F8_E4M3": torch.float8_e4m3fn, "F8_E5M2": torch.float8_e5m2,
}  # fmt: skip


# Smaller tensors are read faster than they are asked for ahead.
_AHEAD = 1 << 20


class MappedFiles:
    """Open safetensors files by path. Mapped once, read-only."""

    def __init__(self) -> None:
        self._maps: dict[Path, tuple[mmap.mmap, Tensor]] = {}
        self._tensors: dict[TensorInfo, Tensor] = {}
        # Copies live as long as they are used, and meanwhile are the same for everybody.
        self._copies: WeakValueDictionary[TensorInfo, Tensor] = WeakValueDictionary()
        self._ahead: set[TensorInfo] = set()
        self._lock = threading.Lock()

    def tensor(self, info: TensorInfo) -> Tensor:
        """A view of the file; a copy where the file is not aligned for the type. Must not be written to."""
        found = self._tensors.get(info)
        if found is not None:
            return found
        dtype = TYPES[info.dtype]
        if not info.elements:
            return torch.empty(info.shape, dtype=dtype)
        data = self._map(info.file)[1][info.start : info.end]
        if not self.is_mapped(info):
            with self._lock:
                copied = self._copies.get(info)
                if copied is None:
                    copied = self._copies[info] = data.clone().view(dtype).reshape(info.shape)
                return copied
        self._tensors[info] = data.view(dtype).reshape(info.shape)
        return self._tensors[info]

    @staticmethod
    def is_mapped(info: TensorInfo) -> bool:
        """Whether `tensor` gives a view, and no copy."""
        return info.start % TYPES[info.dtype].itemsize == 0

    def read_ahead(self, info: TensorInfo) -> None:
        """Ask the system to have a tensor in memory soon; once."""
        if info.end - info.start < _AHEAD or info in self._ahead or not hasattr(mmap, "MADV_WILLNEED"):
            return
        self._ahead.add(info)
        start = info.start // mmap.PAGESIZE * mmap.PAGESIZE
        self._map(info.file)[0].madvise(mmap.MADV_WILLNEED, start, info.end - start)

    def _map(self, file: Path) -> tuple[mmap.mmap, Tensor]:
        with self._lock:
            if file not in self._maps and file.resolve() in self._maps:
                # The same memory under both names: an adapter's task vector against its own model is then exact.
                self._maps[file] = self._maps[file.resolve()]
            if file not in self._maps:
                try:
                    with file.open("rb") as f:
                        mapped = mmap.mmap(f.fileno(), 0, access=mmap.ACCESS_READ)
                except OSError as e:
                    if e.errno == errno.ENOMEM:
                        raise  # not the file's fault: see `merging.allocation`
                    raise SourceError(f"{file}: cannot be read ({e.strerror or e})") from None
                with warnings.catch_warnings():
                    warnings.filterwarnings("ignore", message="The given buffer is not writable")
                    self._maps[file] = mapped, torch.frombuffer(mapped, dtype=torch.uint8)
                    self._maps[file.resolve()] = self._maps[file]
            return self._maps[file]
