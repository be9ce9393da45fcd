"""One safetensors file being written: mapped memory that tensors are merged into, without a name until it is whole."""

from __future__ import annotations

import ctypes
import mmap
import os
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor

from evomerge.merging.mapped import TYPES
from evomerge.merging.outline import layout
from evomerge.merging.plan import TensorPlan
from evomerge.merging.scratch import scratch_file


class Shard:
    """A file of known tensors whose contents are still to come.

    Its space is taken at once, so that a full disk shows before any work, and its memory is the file's own pages: what
    is written there goes to disk behind the merge, and is nobody's private memory. Where the system can, the file has
    no name before `save`, so that a killed process leaves nothing.

    Args:
        folder: On the file system where it will be saved.

    Raises:
        OSError: no space, or no right to write there.
    """

    def __init__(self, folder: Path, tensors: Sequence[TensorPlan]) -> None:
        header, self._places = layout(tensors)
        self._data = len(header)
        self.bytes = self._data + sum(t.bytes for t in tensors)
        self._name: Path | None = None
        self._fd = self._open(folder)
        try:
            _allocate(self._fd, self.bytes)
            self._map = mmap.mmap(self._fd, self.bytes)
        except BaseException:
            self.discard()
            raise
        self._map[: self._data] = header

    def tensor(self, t: TensorPlan) -> Tensor:
        """Where a tensor is to be written."""
        dtype = TYPES[t.dtype]
        if not t.elements:
            return torch.empty(t.shape, dtype=dtype)
        at = self._data + self._places[t.name]
        return torch.frombuffer(self._map, dtype=dtype, count=t.elements, offset=at).reshape(t.shape)

    def flush(self, t: TensorPlan) -> None:
        """Start writing a finished tensor to disk; does not wait. Small ones are left to the end."""
        if t.bytes < _FLUSHED or _sync_file_range is None:
            return
        start = (self._data + self._places[t.name]) // mmap.PAGESIZE * mmap.PAGESIZE
        end = min(self._data + self._places[t.name] + t.bytes, self.bytes)
        _sync_file_range(self._fd, start, end - start, _SYNC_FILE_RANGE_WRITE)

    def sync(self) -> None:
        """Wait until everything is on disk."""
        os.fsync(self._fd)

    def save(self, file: Path) -> None:
        """Give the file its name."""
        if self._name is None:
            # Python follows the link only where it calls linkat, which it does for a descriptor; of an absolute path it
            # counts for nothing else.
            os.link(f"/proc/self/fd/{self._fd}", file, src_dir_fd=self._fd, follow_symlinks=True)
        else:
            os.rename(self._name, file)
            self._name = None
        self._close()

    def discard(self) -> None:
        """Give the file and its space back."""
        if self._name is not None:
            self._name.unlink(missing_ok=True)
            self._name = None
        self._close()

    def _close(self) -> None:
        # Tensors may still look into the map: it goes with the last of them.
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1

    def _open(self, folder: Path) -> int:
        if hasattr(os, "O_TMPFILE") and Path("/proc/self/fd").is_dir():
            try:
                return os.open(folder, os.O_TMPFILE | os.O_RDWR, 0o666)
            except OSError:
                pass  # a file system without unnamed files
        fd, self._name = scratch_file(folder)
        umask = os.umask(0)
        os.umask(umask)
        self._name.chmod(0o666 & ~umask)
        return fd


def _allocate(fd: int, size: int) -> None:
    if hasattr(os, "posix_fallocate"):
        os.posix_fallocate(fd, 0, size)
    else:
        os.ftruncate(fd, size)


# Linux's sync_file_range: queue dirty pages for writing. Elsewhere nothing is queued: fsync comes in any case.
_SYNC_FILE_RANGE_WRITE = 2
_FLUSHED = 1 << 20
_sync_file_range = getattr(ctypes.CDLL(None), "sync_file_range", None)
if _sync_file_range is not None:
    _sync_file_range.argtypes = (ctypes.c_int, ctypes.c_int64, ctypes.c_int64, ctypes.c_uint)
