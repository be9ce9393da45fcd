"""The models of a library, opened: the base, and the base with each skill on it."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from evomerge.errors import SourceError
from evomerge.library import Library, LibraryError
from evomerge.sources import Adapter, Source, open_source, remembered


@dataclass(frozen=True)
class OpenLibrary:
    """A library with its models.

    Attributes:
        base: The base.
        skills: The base with a skill on it, by the skill's name.
    """

    library: Library
    base: Source
    skills: dict[str, Source]

    def adapter(self, name: str) -> Adapter:
        """A skill's adapter."""
        adapter = self.skills[name].adapter
        assert adapter is not None
        return adapter


def adapter_hash(adapter: Adapter) -> str:
    """SHA-256 (hex) of an adapter's tensors and scales, the model's aside."""
    return remembered(adapter.path, "adapter", adapter.labels())


def open_library(library: Library, names: Iterable[str] = ()) -> OpenLibrary:
    """Open the base and some of a library's skills, or all, and check that they are what was added.

    Raises:
        LibraryError: no such skill, or the base's or an adapter's content has changed since it was added.
        SourceError: a model cannot be opened.
    """
    chosen = library.chosen(names)
    base = open_source(library.base)
    check_base(library, base)
    skills = {name: _opened(library, name) for name in chosen}
    return OpenLibrary(library, base, skills)


def check_base(library: Library, base: Source) -> None:
    """Raise LibraryError where a model is not the one that a library was made on."""
    if base.content_hash() != library.index.base.sha256:
        raise LibraryError(
            f"{library.folder}: the base {library.base} is not the model that the library was made on (SHA-256 "
            f"{base.content_hash()[:12]}..., expected {library.index.base.sha256[:12]}...); put that model back there"
        )


def _opened(library: Library, name: str) -> Source:
    if not library.place(name).is_dir():
        raise LibraryError(
            f'{library.place(name)}: is gone, and the index has "{name}"; remove the skill, add it again'
        )
    found = open_source(library.reference(name))
    if found.adapter is None:
        raise SourceError(f"{library.place(name)}: is no adapter; expected the folder of one that PEFT saved")
    if adapter_hash(found.adapter) != library.index.skills[name].sha256:
        raise LibraryError(
            f"{library.place(name)}: has changed since it was added; remove the skill, and add it again if it is right"
        )
    return found
