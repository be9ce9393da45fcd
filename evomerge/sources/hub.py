"""Models of the Hugging Face hub: all that can be checked of one comes first, its weights when nothing is wrong.

Weights take minutes to hours. Configuration, index and tokenizer are small, and a safetensors file says at its start
what it holds: a range request brings that, and tensors get the places that they will have in the local cache.
"""

from __future__ import annotations

import io
import shutil
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from evomerge.errors import SourceError
from evomerge.header import MAX_HEADER, TensorInfo, parse_header, read_header
from evomerge.recipe import ModelReference

if TYPE_CHECKING:
    from evomerge.sources.source import Source

# What a snapshot may bring beside the weights: no pickles, no code, nothing of other formats.
SMALL_FILES = ["*.json", "*.model", "merges.txt", "vocab.txt", "*.jinja"]
IGNORED = ["*/*", "consolidated*"]
_NOT_HERE = "it cannot be reached, and the local cache lacks the model or a part of it"
# What the hub client's errors mean, by name, so that it loads only when it is asked.
_REASONS = {
    "LocalEntryNotFoundError": _NOT_HERE,
    "IncompleteSnapshotError": _NOT_HERE,
    "OfflineModeIsEnabled": _NOT_HERE,
    "RepositoryNotFoundError": "it has no such model, or a private one",
    "RevisionNotFoundError": "it has the model, but not that revision",
    "GatedRepoError": "access must be asked for on the model's page, and a token given (hf auth login)",
}
# First bytes asked of a weights file: the whole header of most (97 %, says huggingface_hub).
_FIRST = 100_000


def small_files(parsed: ModelReference, told: str) -> Path:
    """Bring everything of a model but its weights: the folder of its revision in the local cache.

    Args:
        told: What stands before the reason in the message.

    Raises:
        SourceError: it is not to be had.
    """
    return _snapshot(parsed.path, parsed.revision, SMALL_FILES, told)


def bring(folder: Path, repo: str, names: Sequence[str]) -> None:
    """Bring files of a model into the folder of its revision; those that the hub has not are passed over.

    Raises:
        SourceError: they are not to be had.
    """
    _snapshot(repo, folder.name, names, f'"{repo}": its weights are')


def bring_revision(repo: str, revision: str, names: Sequence[str]) -> Path:
    """Bring files of one revision of a model into the local cache: the revision's folder there.

    Args:
        revision: A commit, so that it is the same everywhere.

    Raises:
        SourceError: they are not to be had.
    """
    return _snapshot(repo, revision, names, f'"{repo}": it is')


def _snapshot(repo: str, revision: str | None, names: Sequence[str], told: str) -> Path:
    from huggingface_hub import snapshot_download

    try:
        return Path(snapshot_download(repo, revision=revision, allow_patterns=list(names), ignore_patterns=IGNORED))
    except Exception as e:  # the hub client raises many kinds: HTTP, cache, validation, connection
        raise _unavailable(told, e) from None


def file_names(folder: Path, repo: str) -> set[str]:
    """Names of all files that the hub has of the revision whose folder in the local cache this is.

    Raises:
        SourceError: the hub cannot be asked.
    """
    from huggingface_hub import HfApi

    try:
        return set(HfApi().list_repo_files(repo, revision=folder.name))
    except Exception as e:
        raise _unavailable(f'"{repo}": its weights are', e) from None


def remote_header(file: Path, repo: str) -> dict[str, TensorInfo]:
    """Every tensor of a weights file that only the hub has; see `read_header`.

    Args:
        file: Where it will lie: in the folder of its revision in the local cache.

    Raises:
        SourceError: as `read_header`; or the hub cannot be asked.
    """
    try:
        first, size = _range(file, repo, 0, _FIRST)
        if len(first) >= 8:
            length = 8 + int.from_bytes(first[:8], "little")
            if len(first) < length <= 8 + MAX_HEADER and (size is None or length <= size):
                first += _range(file, repo, len(first), length)[0]
    except Exception as e:
        raise _unavailable(f'"{repo}": {file.name} is', e) from None
    return parse_header(file, size, io.BytesIO(first).read)


def _range(file: Path, repo: str, start: int, stop: int) -> tuple[bytes, int | None]:
    """Bytes of a file on the hub, and how many it has, where that is told."""
    from huggingface_hub import get_session, hf_hub_url, hf_raise_for_status
    from huggingface_hub.utils import build_hf_headers  # type: ignore[attr-defined]  # public, says its reference

    url = hf_hub_url(repo, file.name, revision=file.parent.name)
    headers = {**build_hf_headers(), "Range": f"bytes={start}-{stop - 1}", "Accept-Encoding": "identity"}
    with get_session().stream("GET", url, headers=headers) as response:
        hf_raise_for_status(response)
        if response.status_code != 206:  # no ranges here: read no further than needed
            length = response.headers.get("Content-Length")
            return _first(response.iter_bytes(), stop)[start:], int(length) if length else None
        return response.read(), int(response.headers["Content-Range"].rpartition("/")[2])


def _first(pieces: Iterable[bytes], count: int) -> bytes:
    found = b""
    for piece in pieces:
        found += piece
        if len(found) >= count:
            break
    return found[:count]


def fetch(sources: Iterable[Source]) -> None:
    """Bring the weights that are not here yet, of models that were opened without them.

    Raises:
        SourceError: no room for them, weights that are not to be had, or others than the headers said.
    """
    models = {s.path: s.adapter.model if s.adapter else s for s in sources if s.absent and not s.local}
    sizes = {path: sum(_size(s, file) for file in s.absent) for path, s in models.items()}
    if models:
        _check_room(next(iter(models)), sum(sizes.values()), [p.parent.parent for p in models])
    for folder, source in models.items():
        absent = source.absent
        bring(folder, ModelReference.parse(source.reference).path, [file.name for file in absent])
        for file in absent:
            said = {name: info for name, info in source.tensors.items() if info.file == file}
            have = read_header(file)
            if any(have.get(name) != info for name, info in said.items()):
                raise SourceError(f"{file}: is not what the hub said it is; remove {folder} and download it again")


def _size(source: Source, file: Path) -> int:
    return max(info.end for info in source.tensors.values() if info.file == file)


def _check_room(folder: Path, needed: int, models: Sequence[Path]) -> None:
    """Raise SourceError where a download would fill the disk; what an earlier one left of the models is used again."""
    left = sum(p.stat().st_size for m in dict.fromkeys(models) for p in m.glob("blobs/*.incomplete"))
    free = shutil.disk_usage(folder).free
    if needed > free + left:
        raise SourceError(
            f"{folder.parents[2]}: {needed / 1e9:.1f} GB of weights are to be downloaded, and {free / 1e9:.1f} GB are "
            "free; set HF_HUB_CACHE to a folder on a larger disk"
        )


def _unavailable(told: str, error: Exception) -> SourceError:
    if isinstance(error, SourceError):
        return error
    words = f"{type(error).__name__}: {' '.join(str(error).split())[:200]}"
    reason = _REASONS.get(type(error).__name__, words)
    return SourceError(f"{told} not to be had from the Hugging Face hub: {reason}")
