"""Where a model reference leads: the zoo, a folder of the user's, or a snapshot of the Hugging Face hub."""

from __future__ import annotations

import re
from pathlib import Path

from evomerge import zoo
from evomerge.errors import SourceError, choose, nearest
from evomerge.recipe import ModelReference
from evomerge.sources.source import ZOO

# What a hub snapshot may bring: no pickles, no code; and no second copy of the weights.
HUB_FILES = ["*.safetensors", "*.json", "*.model", "merges.txt", "vocab.txt", "*.jinja"]
HUB_IGNORED = ["*/*", "consolidated*"]
# What the hub client's errors mean, by name, so that it loads only when it is asked.
_HUB_REASONS = {
    "LocalEntryNotFoundError": "it cannot be reached, and the model is not in the local cache",
    "RepositoryNotFoundError": "it has no such model, or a private one",
    "RevisionNotFoundError": "it has the model, but not that revision",
    "GatedRepoError": "access must be asked for on the model's page, and a token given (hf auth login)",
}
_HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*(/[A-Za-z0-9][\w.-]*)?")


def find_folder(parsed: ModelReference, reference: str, root: Path | None) -> tuple[Path, bool]:
    """Where a model lies, and whether that is a folder of the user's."""
    name = parsed.path
    if name.startswith(ZOO):
        known = name.removeprefix(ZOO)
        if known not in zoo.NAMES:
            raise SourceError(f'model "{reference}": no such model in the zoo; {choose(known, zoo.NAMES)}')
        return zoo.path(known), False
    path = Path(name).expanduser()
    for folder in (path, root / path if root else path):
        if folder.is_dir():
            return folder, True
        if folder.exists():
            raise SourceError(f'model "{reference}": {folder} is a file, expected the folder of a checkpoint')
    if not _HUB_ID.fullmatch(name):
        raise SourceError(f'model "{reference}": no such folder{_hint(path, root)}')
    return _download(parsed, reference, _hint(path, root)), False


def _hint(path: Path, root: Path | None) -> str:
    """The folder that looks most like a missing one, or the zoo's model of that name."""
    for parent in dict.fromkeys((path.parent, (root or Path()) / path.parent)):
        if parent.is_dir():
            near = nearest(path.name, [p.name for p in sorted(parent.iterdir()) if p.is_dir()])
            if near:
                return f'; did you mean "{parent / near}"?'
    near = nearest(path.name, zoo.NAMES)
    return f'; did you mean "{ZOO}{near}"?' if near else ""


def _download(parsed: ModelReference, reference: str, hint: str) -> Path:
    from huggingface_hub import snapshot_download

    try:
        folder = snapshot_download(
            parsed.path, revision=parsed.revision, allow_patterns=HUB_FILES, ignore_patterns=HUB_IGNORED
        )
    except Exception as e:  # the hub client raises many kinds: HTTP, cache, validation, connection
        reason = _HUB_REASONS.get(type(e).__name__, f"{type(e).__name__}: {' '.join(str(e).split())[:200]}")
        raise SourceError(
            f'model "{reference}": no such folder{hint}; and not to be had from the Hugging Face hub: {reason}'
        ) from None
    return Path(folder)
