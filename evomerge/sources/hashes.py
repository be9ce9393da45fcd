"""Content hashes: SHA-256 over every byte of a model, computed in parallel, beside other work, and once per file.

A hash is remembered in the user's cache folder for as long as size, times and inode of the files stay what they were.
`hashlib` lets other threads run while it computes, so several models are hashed at the speed of as many cores, and a
merge can go on meanwhile.
"""

from __future__ import annotations

import hashlib
import json
import mmap
import os
import threading
import time
import weakref
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING, Any

from evomerge.cache import cache_folder, keep
from evomerge.errors import SourceError
from evomerge.header import TensorInfo

if TYPE_CHECKING:
    from evomerge.sources.source import Source

# Called with a number of bytes that are done, from any thread.
Progress = Callable[[int], None]

# Bytes hashed between two looks at whether to stop: some 5 ms.
PIECE = 8 << 20
# A file younger than this when its hash is kept may change again without a new time on it (git calls that "racy").
SETTLED_NS = 2_000_000_000
# Keys of config.json that say where it came from, not what the model is.
_VOLATILE = ("transformers_version", "_name_or_path", "_diffusers_version")
_VERSION = 1

# One thread at a time computes a folder's hash, and a source's: others that want it wait for that.
_folders: dict[str, threading.Lock] = {}
_sources: weakref.WeakKeyDictionary[Source, threading.Lock] = weakref.WeakKeyDictionary()
_guard = threading.Lock()


class Stopped(Exception):
    """The hash is no longer wanted."""


def lock_of(source: Source) -> threading.Lock:
    """The lock held while a source's hash is computed. (Not in the source, which is sent to other processes.)"""
    with _guard:
        return _sources.setdefault(source, threading.Lock())


def content_hash(source: Source, progress: Progress | None = None, stop: threading.Event | None = None) -> str:
    """SHA-256 (hex) of a source's content; see `Source.content_hash`.

    Args:
        progress: Told how many bytes are done, in pieces; `Source.bytes_hashed` in all.
        stop: Ends the computation with `Stopped` when set.

    Raises:
        SourceError: a file cannot be read, or is no longer what its header said.
    """
    adapter = source.adapter
    if adapter is None:
        config = {k: v for k, v in source.config.items() if k not in _VOLATILE}
        text = json.dumps(config, sort_keys=True)
        if source.diffusion is not None:  # what a merge copies beside the denoiser decides what it makes
            text += json.dumps({n: file_hash(f) for n, f in source.diffusion.others() if "/" in n}, sort_keys=True)
        labels = [(f"{name} {info.dtype} {info.shape}", info) for name, info in source.tensors.items()]
        return remembered(source.path, text, labels, progress, stop)
    model = adapter.model.content_hash(progress, stop)
    own = remembered(adapter.path, "adapter", adapter.labels(), progress, stop)
    return hashlib.sha256(f"{model}+{own}".encode()).hexdigest()


def remembered(
    folder: Path,
    text: str,
    labels: Sequence[tuple[str, TensorInfo]],
    progress: Progress | None = None,
    stop: threading.Event | None = None,
) -> str:
    """The SHA-256 (hex) of a text and of labelled tensors, from the cache where their files have not changed.

    Args:
        folder: What the cache's entry is kept under, one for each.
    """
    path = str(folder.resolve())
    facts = hashlib.sha256("\n".join([text, *(label for label, _ in labels)]).encode()).hexdigest()
    files = list(dict.fromkeys(info.file for _, info in labels))
    cached = cache_folder() / "hashes" / f"{hashlib.sha256(path.encode()).hexdigest()[:32]}.json"
    with _guard:
        lock = _folders.setdefault(path, threading.Lock())
    with lock:
        before = _stats(files)
        found = _read(cached, facts, before)
        if found is not None:
            if progress:
                progress(sum(info.end - info.start for _, info in labels))
            return found
        found = _digest(folder, text, labels, progress, stop)
        if before == _stats(files) and all(time.time_ns() - max(s[1:3]) > SETTLED_NS for s in before.values()):
            entry = {"version": _VERSION, "folder": path, "facts": facts, "files": before, "hash": found}
            keep(cached, json.dumps(entry, indent=1).encode())
        return found


def _stats(files: Iterable[Path]) -> dict[str, list[int]]:
    """Size, times of change (ns) and inode of each file; empty where one cannot be seen."""
    try:
        return {
            str(file): [s.st_size, s.st_mtime_ns, s.st_ctime_ns, s.st_ino]
            for file, s in ((file.resolve(), file.stat()) for file in files)
        }
    except OSError:
        return {}


def _read(cached: Path, facts: str, files: Mapping[str, list[int]]) -> str | None:
    """What the cache has; None where that is nothing, stale or damaged."""
    try:
        entry: Any = json.loads(cached.read_bytes())
    except (OSError, ValueError, RecursionError):
        return None
    if not isinstance(entry, dict) or not files:
        return None
    found = entry.get("hash")
    fits = (entry.get("version"), entry.get("facts"), entry.get("files")) == (_VERSION, facts, files)
    return found if fits and isinstance(found, str) and len(found) == 64 else None


def _digest(
    folder: Path,
    text: str,
    labels: Sequence[tuple[str, TensorInfo]],
    progress: Progress | None,
    stop: threading.Event | None,
) -> str:
    digest = hashlib.sha256(text.encode())
    views: dict[Path, mmap.mmap] = {}
    try:
        for label, info in labels:
            digest.update(f"\n{label}\n".encode())
            if info.end == info.start:
                continue
            if info.file not in views:
                with info.file.open("rb") as f:
                    views[info.file] = mmap.mmap(f.fileno(), 0, access=mmap.ACCESS_READ)
            if len(views[info.file]) < info.end:
                raise SourceError(f"{info.file}: has become shorter since it was opened; is it being written?")
            with memoryview(views[info.file]) as view:
                for start in range(info.start, info.end, PIECE):
                    if stop is not None and stop.is_set():
                        raise Stopped
                    piece = view[start : min(start + PIECE, info.end)]
                    digest.update(piece)
                    if progress:
                        progress(len(piece))
                    piece.release()
    except (OSError, ValueError) as e:  # ValueError: an empty file cannot be mapped
        if isinstance(e, SourceError):
            raise
        raise SourceError(f"{folder}: cannot be read ({getattr(e, 'strerror', None) or e})") from None
    finally:
        for mapped in views.values():
            mapped.close()
    return digest.hexdigest()


class Hashing:
    """Hashes being computed in threads of their own. As a context manager it stops them when the block ends."""

    def __init__(self, sources: Iterable[Source] | Mapping[str, Source], progress: Progress | None = None) -> None:
        wanted = dict(sources) if isinstance(sources, Mapping) else {s.reference: s for s in sources}
        self._stop = threading.Event()
        threads = max(1, min(len(wanted), len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else 2))
        self._pool = ThreadPoolExecutor(threads, thread_name_prefix="evomerge-hash")
        # The largest first, so that the last one to end is a small one.
        order = sorted(wanted, key=lambda name: -wanted[name].bytes)
        futures = {name: self._pool.submit(wanted[name].content_hash, progress, self._stop) for name in order}
        self._futures: dict[str, Future[str]] = {name: futures[name] for name in wanted}
        self._pool.shutdown(wait=False)

    def result(self) -> dict[str, str]:
        """The hash of each source by its reference (or the name that it was given under), when all are done.

        Raises:
            SourceError: every source that could not be read, one line each.
        """
        found: dict[str, str] = {}
        problems: list[str] = []
        for reference, future in self._futures.items():
            try:
                found[reference] = future.result()
            except SourceError as e:
                problems.append(str(e))
        if problems:
            raise SourceError("\n".join(dict.fromkeys(problems)))
        return found

    def done(self) -> bool:
        """Whether `result` would answer at once."""
        return all(f.done() for f in self._futures.values())

    def cancel(self) -> None:
        """Stop what is not done yet; `result` then raises CancelledError or Stopped."""
        self._stop.set()
        for future in self._futures.values():
            future.cancel()

    def __enter__(self) -> Hashing:
        return self

    def __exit__(self, *_: object) -> None:
        self.cancel()


def file_hash(file: Path) -> str:
    """The SHA-256 (hex) of a file, as `sha256sum` has it; remembered as content hashes are.

    Raises:
        SourceError: it cannot be read.
    """
    path = str(file.resolve())
    cached = cache_folder() / "hashes" / f"{hashlib.sha256(path.encode()).hexdigest()[:32]}-file.json"
    before = _stats([file])
    found = _read(cached, "file", before)
    if found is not None:
        return found
    try:
        with file.open("rb") as f:
            found = hashlib.file_digest(f, "sha256").hexdigest()
    except OSError as e:
        raise SourceError(f"{file}: cannot be read ({e.strerror or e})") from None
    if before == _stats([file]) and all(time.time_ns() - max(s[1:3]) > SETTLED_NS for s in before.values()):
        entry = {"version": _VERSION, "folder": path, "facts": "file", "files": before, "hash": found}
        keep(cached, json.dumps(entry, indent=1).encode())
    return found


def differing(found: Mapping[str, str], expected: Mapping[str, str]) -> list[str]:
    """What to say of models whose content hash is not the one that a recipe names (`evomerge: sources:`)."""
    return [
        f'model "{r}": its content is not what the recipe was made with (SHA-256 {have[:12]}..., expected '
        f"{expected[r][:12]}...); use the same version of the model, or remove evomerge.sources"
        for r, have in found.items()
        if expected.get(r, have) != have
    ]


def start_hashing(sources: Iterable[Source] | Mapping[str, Source], progress: Progress | None = None) -> Hashing:
    """Begin to hash sources, each in a thread of its own; `result()` waits for them."""
    return Hashing(sources, progress)


def hash_sources(sources: Iterable[Source] | Mapping[str, Source], progress: Progress | None = None) -> dict[str, str]:
    """The content hash of each source by its reference (or the name that it was given under), computed in parallel.

    Raises:
        SourceError: every source that could not be read, one line each.
    """
    with start_hashing(sources, progress) as hashing:
        return hashing.result()
