"""The files that a worker needs: of each source and of the evaluator, by folder, with their hashes.

Of a model only safetensors files, configuration and tokenizer are ever sent. Code in a model's folder is run where the
evaluator trusts it, and must lie on the worker's machine already.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path

from evomerge.errors import EvaluatorError
from evomerge.evaluation import EvaluatorFile
from evomerge.evaluation.items import picture_names
from evomerge.sources import Source, file_hash, small_file

# Of a model, beside its weights.
SMALL_FILES = ("*.json", "*.model", "*.tiktoken", "merges.txt", "vocab.txt", "*.jinja")
CODE = "*.py"
# Of an evaluator's include_path everything but weights goes, up to so many bytes.
_WEIGHTS = (".safetensors", ".bin", ".pt", ".pth", ".ckpt", ".gguf")
INCLUDED_BYTES = 4 << 30


@dataclass(frozen=True)
class Listed:
    """A folder of which a worker needs some files.

    Attributes:
        what: What messages call it.
        path: Where it lies, as it was named.
        home: The same from any folder of this machine.
        names: Of the files, relative to it.
        seen: Of files that are not sent: a worker's machine must see them.
        model: The reference of the model that it is, where that is the zoo's or the hub's.
        key: For an evaluator: the key that names it.
    """

    what: str
    path: Path
    home: Path
    names: tuple[str, ...]
    seen: tuple[str, ...] = ()
    model: str | None = None
    key: str | None = None


@dataclass(frozen=True)
class File:
    """A file as it must be: its name relative to the folder, bytes, SHA-256 (hex)."""

    name: str
    bytes: int
    sha256: str


@dataclass(frozen=True)
class Folder:
    """A listed folder with the hash of each file."""

    listed: Listed
    files: tuple[File, ...]

    @property
    def hash(self) -> str:
        """SHA-256 (hex) of names and content."""
        lines = "\n".join(f"{f.sha256} {f.name}" for f in self.files)
        return hashlib.sha256(lines.encode()).hexdigest()

    @property
    def bytes(self) -> int:
        """Of all files."""
        return sum(f.bytes for f in self.files)

    @property
    def sent(self) -> bool:
        """Whether it may be sent at all."""
        return not self.listed.seen


def listed(sources: Mapping[str, Source], evaluator: EvaluatorFile) -> tuple[Listed, ...]:
    """The folders of sources and evaluator, each once.

    Raises:
        SourceError: a link that leads out of a model's folder.
        EvaluatorError: `include_path` holds too much.
    """
    found: dict[Path, Listed] = {}
    for source in sources.values():
        for folder in _model(source, evaluator.config.trust_remote_code):
            before = found.get(folder.path)
            names = sorted({*folder.names, *(before.names if before else ())})
            found[folder.path] = replace(folder, names=tuple(names))
    return (*found.values(), *_evaluator(evaluator))


def _model(source: Source, trusted: bool) -> Iterator[Listed]:
    plain = source.adapter.model if source.adapter is not None else source
    weights = {info.file.name for info in plain.tensors.values()}
    code = tuple(sorted(p.name for p in plain.path.glob(CODE))) if trusted else ()
    yield Listed(
        f'model "{plain.reference}"', plain.path, plain.path.absolute(), (*sorted(weights), *_small(plain.path)), code,
        None if plain.local else plain.reference,
    )  # fmt: skip
    if source.adapter is not None:
        adapter = source.adapter
        weights = {info.file.name for _, info in adapter.labels()}
        yield Listed(
            f'adapter "{adapter.reference}"', adapter.path, adapter.path.absolute(),
            (*sorted(weights), *_small(adapter.path)), (), None if adapter.local else adapter.reference,
        )  # fmt: skip


def _small(folder: Path) -> list[str]:
    names = {p.name for pattern in SMALL_FILES for p in folder.glob(pattern)}
    return sorted(name for name in names if small_file(folder, name) is not None)


def _evaluator(evaluator: EvaluatorFile) -> Iterator[Listed]:
    config = evaluator.config
    function = config.function.rpartition(":")[0] if config.function else None
    for key, name in (("function", function), ("items", config.items)):
        if name is not None:
            path = evaluator.path(name, key)
            folder = path.parent
            yield Listed(f"{evaluator.file}: {key}", folder, folder.absolute(), (path.name,), key=key)
    if names := tuple(sorted(picture_names(evaluator))):
        root = evaluator.path(str(Path(config.items or "").parent), "images")
        yield Listed(f"{evaluator.file}: images", root, root.absolute(), names, key="images")
    if config.include_path is not None:
        root = evaluator.path(config.include_path, "include_path")
        names = tuple(sorted(p.relative_to(root).as_posix() for p in _included(root)))
        size = sum((root / name).stat().st_size for name in names)
        if size > INCLUDED_BYTES:
            raise EvaluatorError(
                f"{evaluator.file}: include_path = {config.include_path}: holds {size / 1e9:.1f} GB, which would be "
                "sent to every machine; expected a folder of tasks with their data alone"
            )
        yield Listed(f"{evaluator.file}: include_path", root, root.absolute(), names, key="include_path")


def _included(root: Path) -> Iterator[Path]:
    for path in root.rglob("*"):
        parts = path.relative_to(root).parts
        hidden = any(part.startswith(".") or part == "__pycache__" for part in parts)
        if not hidden and path.is_file() and path.suffix not in _WEIGHTS:
            yield path


def manifest(folders: Iterable[Listed], sources: Mapping[str, Source]) -> tuple[Folder, ...]:
    """Hash every file; a file's hash is remembered as long as it stays what it is.

    Raises:
        SourceChangedError: a source is no longer what it was when its content hash was computed.
        SourceError: a file cannot be read.
    """
    found = tuple(
        Folder(f, tuple(File(n, (f.home / n).stat().st_size, file_hash(f.home / n)) for n in (*f.names, *f.seen)))
        for f in folders
    )
    for source in sources.values():
        source.content_hash()
        source.check_unchanged()
    return found


def placed(
    folders: Iterable[Listed], places: Iterable[Path], sources: Mapping[str, Source], evaluator: EvaluatorFile
) -> tuple[dict[str, Source], EvaluatorFile]:
    """Sources and evaluator as they lie on a worker's machine.

    Args:
        places: Where each folder lies there.
    """
    moved: dict[Path, Path] = {}
    keys: dict[str, Path] = {}
    for at, place in zip(folders, places, strict=True):
        if at.key is None:
            moved[at.path] = place
        else:
            keys[at.key] = place if at.key in ("include_path", "images") else place / at.names[0]
    return {r: s.moved(moved) for r, s in sources.items()}, evaluator.placed(keys)
