"""A plain checkpoint on disk: weights in safetensors, configuration, tokenizer, recipe; all of it or nothing."""

from __future__ import annotations

import errno
import json
import os
import shutil
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path

from torch import Tensor

from evomerge.errors import DiskFullError, EvoMergeError, InputError
from evomerge.merging.outline import SHARD_BYTES, split
from evomerge.merging.plan import Plan, TensorPlan
from evomerge.merging.scratch import open_to_all, scratch_folder
from evomerge.merging.shard import Shard
from evomerge.merging.small_files import inside, marker_of, names_of, small_files, write_small_files
from evomerge.merging.statistics import Statistics
from evomerge.sources import Source

RECIPE = "recipe.yaml"
CONFIG = "config.json"
# Errors that say that a target is not one: no right, or something else stands in the place of a folder.
_REFUSALS = (
    errno.EROFS, errno.EACCES, errno.EPERM, errno.EISDIR, errno.ENOTDIR, errno.ENOTEMPTY, errno.EEXIST, errno.ELOOP,
)  # fmt: skip

Fill = Callable[[Sequence[tuple[TensorPlan, Tensor]], Callable[[TensorPlan], None]], None]


def write_checkpoint(
    plan: Plan,
    fill: Fill,
    last: Callable[[], Mapping[str, Path | str]],
    out: Path,
    overwrite: bool = False,
    shard_bytes: int = SHARD_BYTES,
) -> None:
    """Write what a plan describes.

    Args:
        fill: Merges tensors into the memory given for each, which is the file's own, and says of each when it is done.
        last: Gives recipe.yaml, which has the content hash of each source, and what else lies beside the weights, by
            name: the file to copy, or the text to write. Asked last: the hashes may be worked out beside the merge.
        shard_bytes: Largest size of one weights file.

    Raises:
        InputError: `out` exists and is not empty, or cannot be made.
        DiskFullError: there is no room for it.
    """
    check_apart(plan.sources.values(), plan.statistics.values(), out)
    place = inside(plan)
    with checked_target(out, overwrite, plan.bytes_written, marker_of(plan)) as target, ExitStack() as files:
        shards: list[Shard] = []
        groups = split(plan.tensors, shard_bytes)
        for group in groups:
            shards.append(Shard(target.parent, group))
            files.callback(shards[-1].discard)
        for group, shard in zip(groups, shards, strict=True):
            fill([(t, shard.tensor(t)) for t in group], shard.flush)
        # What takes long comes before anything has a name: a process killed until here leaves nothing.
        for shard in shards:
            shard.sync()
        others: dict[str, Path | str] = {**small_files(plan), **last()}
        with _atomic(target) as folder:
            (folder / place).mkdir(exist_ok=True)
            _save(folder / place, groups, shards, *names_of(plan))
            write_small_files(others, folder)


def check_apart(sources: Iterable[Source], statistics: Iterable[Statistics], out: Path) -> None:
    """Raise InputError where `out`, which is replaced as a whole, holds what the merge is made from, or lies in it."""
    target = Path(os.path.realpath(out))
    folders = [("source model", f) for s in sources for f in (*s.folders, s.root)]
    folders += [("statistics", s.folder) for s in statistics]
    for what, folder in folders:
        place = Path(os.path.realpath(folder))
        if place.is_relative_to(target):
            raise InputError(f"{out}: holds the {what} {folder}; choose another folder")
        if target.is_relative_to(place):
            raise InputError(f"{out}: lies inside the {what} {folder}; choose another folder")


@contextmanager
def atomic_folder(out: Path, overwrite: bool, needed: int, holds: str = CONFIG) -> Iterator[Path]:
    """A temporary folder beside `out` that becomes `out` when the block ends well, and vanishes when it does not.

    Args:
        needed: Bytes that will be written, checked against the free space first.
        holds: See `checked_target`.
    """
    with checked_target(out, overwrite, needed, holds) as target, _atomic(target) as folder:
        yield folder


@contextmanager
def checked_target(out: Path, overwrite: bool, needed: int, holds: str = CONFIG) -> Iterator[Path]:
    """Check that `out` may be written; gives its place, whose parent is made where it is missing.

    A link to a folder stands for that folder. What was made is removed after an error, and errors of the disk become
    messages.

    Args:
        holds: The file by which what is overwritten is known to be of the kind that is written.
    """
    out = _followed(out.absolute())
    try:
        out.lstat()
    except (FileNotFoundError, NotADirectoryError):
        pass
    except OSError as e:  # a name too long for the file system, a folder above that may not be entered
        raise InputError(f"{out}: cannot be written ({e.strerror or e})") from None
    if out.exists() and not out.is_dir():
        raise InputError(f"{out}: is a file, expected a folder to write the model to")
    if out.is_dir() and any(out.iterdir()):
        if not overwrite:
            raise InputError(f"{out}: is not empty; choose another folder, or overwrite it (--overwrite)")
        if not (out / holds).is_file():
            raise InputError(f"{out}: is not empty and holds no model ({holds}), so it is not overwritten")
    missing = [p for p in (out.parent, *out.parent.parents) if not p.exists()]
    try:
        try:
            out.parent.mkdir(parents=True, exist_ok=True)
            disk = shutil.disk_usage(out.parent)
        except OSError as e:
            raise InputError(f"{out}: cannot be written ({e.strerror or e})") from None
        if not os.access(out.parent, os.W_OK | os.X_OK):
            raise InputError(f"{out}: cannot be written (no right to write in {out.parent})")
        if not disk.total:
            _check_files(out)
        elif needed > disk.free:
            raise OSError(errno.ENOSPC, f"{disk.free:,} bytes free")
        yield out
    except OSError as e:
        _remove(missing)
        if e.errno in (errno.ENOSPC, errno.EDQUOT):
            raise DiskFullError(f"{out}: the disk is full; the model needs {needed:,} bytes") from None
        if e.errno in _REFUSALS:
            raise InputError(f"{out}: cannot be written ({e.strerror or e})") from None
        if e.errno == errno.EFBIG:
            help_ = "smaller files: --shard-size"
            raise InputError(f"{out}: cannot be written ({e.strerror} for this system; {help_})") from None
        raise EvoMergeError(f"{out}: cannot be written ({e.strerror or e})") from e
    except BaseException:
        _remove(missing)
        raise


def _followed(out: Path) -> Path:
    """Where a link leads, when it leads to a folder: it could not be replaced by one at the end."""
    try:
        if not out.is_symlink():
            return out
        if out.is_dir():
            return Path(os.path.realpath(out))
    except OSError as e:  # a name too long for the file system
        raise InputError(f"{out}: cannot be written ({e.strerror or e})") from None
    if out.exists():
        return out
    raise InputError(f"{out}: is a link to {out.readlink()}, which is not there; remove it, or make that folder")


def _check_files(out: Path) -> None:
    """Raise InputError where no files can be made, on a file system that does not say how large it is (/proc)."""
    try:
        with scratch_folder(out.parent, out.name, "part"):
            pass
    except OSError as e:
        why = f"{out.parent} takes no files: {e.strerror or e}"
        raise InputError(f"{out}: cannot be written ({why})") from None


def _remove(folders: Sequence[Path]) -> None:
    for folder in folders:
        with suppress(OSError):
            folder.rmdir()


@contextmanager
def _atomic(out: Path) -> Iterator[Path]:
    with scratch_folder(out.parent, out.name, "part") as temporary:
        yield temporary
        open_to_all(temporary)
        _replace(temporary, out)


def _replace(new: Path, out: Path) -> None:
    if not out.is_dir():
        new.rename(out)
        return
    with scratch_folder(new.parent, out.name, "old") as old:
        out.rename(old)
        try:
            new.rename(out)
        except BaseException:
            old.rename(out)
            raise


def _save(
    folder: Path, groups: Sequence[Sequence[TensorPlan]], shards: Sequence[Shard], single: str, index_name: str
) -> None:
    """Name the files, with an index where there are several."""
    if len(shards) == 1:
        shards[0].save(folder / single)
        return
    places: dict[str, str] = {}
    for i, (group, shard) in enumerate(zip(groups, shards, strict=True), start=1):
        name = f"{single.removesuffix('.safetensors')}-{i:05d}-of-{len(shards):05d}.safetensors"
        shard.save(folder / name)
        places.update({t.name: name for t in group})
    total = sum(t.bytes for group in groups for t in group)
    index = {"metadata": {"total_size": total}, "weight_map": dict(sorted(places.items()))}
    (folder / index_name).write_text(json.dumps(index, indent=2) + "\n", encoding="utf-8")
