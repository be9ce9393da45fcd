"""Where a model reference leads: the zoo, a folder of the user's, or a snapshot of the Hugging Face hub."""

from __future__ import annotations

import os
import re
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from evomerge import zoo
from evomerge.errors import SourceError, choose, nearest
from evomerge.header import TensorInfo, read_header
from evomerge.recipe import ModelReference
from evomerge.sources.files import has_weights
from evomerge.sources.hub import bring, file_names, remote_header, small_files
from evomerge.sources.source import ZOO

# Made of a hub at a time.
_REQUESTS = 8
HUB_ID = re.compile(r"(?=.{1,96}$)[A-Za-z0-9][\w.-]*(/[A-Za-z0-9][\w.-]*)?")
# Of git, as far as the hub has them; no path is made from anything else.
REVISION = re.compile(r"(?!.*(\.\.|//))[^\s/@:?*~^\\\[][^\s@:?*~^\\\[]*")


@dataclass(frozen=True)
class Folder:
    """Where a model lies, or will lie.

    Attributes:
        local: Whether that is a folder of the user's.
        repo: The hub's name of the model, whose weights may still be there alone.
    """

    path: Path
    local: bool = False
    repo: str | None = None

    @cached_property
    def names(self) -> set[str]:
        """Of the files that the model has: here, or on the hub."""
        here = {p.name for p in self.path.iterdir() if p.is_file()}
        return here if self.repo is None or has_weights(self.path, here) else here | file_names(self.path, self.repo)

    def headers(self, files: Sequence[Path]) -> list[dict[str, TensorInfo]]:
        """The tensors of each of its weights files.

        Raises:
            SourceError: see `read_header`.
        """

        def header(file: Path) -> dict[str, TensorInfo]:
            return read_header(file) if self.repo is None or file.is_file() else remote_header(file, self.repo)

        with ThreadPoolExecutor(_REQUESTS) as pool:  # large models have dozens of files, a hub is some way off
            return list(pool.map(header, files))

    def bring(self, name: str) -> None:
        """See to it that one of the model's files is here, where the model has it."""
        if self.repo is not None and not (self.path / name).is_file():
            bring(self.path, self.repo, [name])


def find_folder(parsed: ModelReference, reference: str, root: Path | None) -> Folder:
    """Where a model lies; of one of the hub's everything but the weights is brought here.

    Raises:
        SourceError: there is no such model, or it has no revisions and one is asked for.
    """
    name = parsed.path
    if name.startswith(ZOO):
        known = name.removeprefix(ZOO)
        if known not in zoo.NAMES:
            raise SourceError(f'model "{reference}": no such model in the zoo; {choose(known, zoo.NAMES)}')
        _check_plain(parsed, reference, "the zoo's models have no revisions")
        return Folder(zoo.path(known))
    folder = local_folder(name, root)
    if folder is not None:
        _check_plain(parsed, reference, f"{folder} is a folder, which has no revisions")
        return Folder(folder, local=True)
    path = Path(os.path.expanduser(name))
    for file in _places(path, root):
        if os.path.exists(file):
            raise SourceError(f'model "{reference}": {file} is a file, expected the folder of a checkpoint')
    if not HUB_ID.fullmatch(name):
        raise SourceError(f'model "{reference}": no such folder{_hint(path, root)}')
    if parsed.revision and not REVISION.fullmatch(parsed.revision):
        raise SourceError(
            f'model "{reference}": "{parsed.revision}" is no revision; expected a branch, a tag or a commit after the @'
        )
    try:
        return Folder(small_files(parsed, f'model "{reference}": no such folder, and'), repo=name)
    except SourceError as e:
        raise SourceError(f"{e}{_hint(path, root)}") from None


def local_folder(name: str, root: Path | None) -> Path | None:
    """The folder of that name, below the current one or else below `root`; None where there is none.

    A name that the system cannot even be asked for (too long, say), for which Path.is_dir has an error, is no folder's.
    """
    return next((p for p in _places(Path(os.path.expanduser(name)), root) if os.path.isdir(p)), None)


def _places(path: Path, root: Path | None) -> tuple[Path, ...]:
    """Where something of that name may lie: below the current folder, then below `root`."""
    return (path, root / path) if root else (path,)


def _check_plain(parsed: ModelReference, reference: str, why: str) -> None:
    """Raise SourceError where a revision is asked for that would be passed over."""
    if parsed.revision:
        raise SourceError(f'model "{reference}": {why}; remove "@{parsed.revision}"')


def _hint(path: Path, root: Path | None) -> str:
    """The folder that looks most like a missing one, or the zoo's model of that name."""
    for parent in _places(path.parent, root):
        if os.path.isdir(parent) and os.access(parent, os.R_OK | os.X_OK):
            near = nearest(path.name, [p.name for p in sorted(parent.iterdir()) if p.is_dir()])
            if near:
                return f'; did you mean "{parent / near}"?'
    near = nearest(path.name, zoo.NAMES) if path == Path(path.name) else None
    return f'; did you mean "{ZOO}{near}"?' if near else ""
