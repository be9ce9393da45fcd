"""The models of a library, opened: the base, and the base with each skill on it."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from evomerge.errors import SourceError
from evomerge.library import INDEX, Library, LibraryError
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
    base = opened_base(library)
    check_base(library, base)
    skills = {name: _opened(library, name) for name in chosen}
    check_skills(library, skills)
    return OpenLibrary(library, base, skills)


def opened_base(library: Library) -> Source:
    """A library's base; whether it is the right one, `check_base` says.

    Raises:
        SourceError: it cannot be opened; with what to do where it lies elsewhere by now.
    """
    try:
        return open_source(library.base)
    except SourceError as e:
        if library.elsewhere is not None:
            raise
        raise SourceError(f"{e} (the base of {library.folder}; {_moved(library)})") from None


def check_base(library: Library, base: Source) -> None:
    """Raise LibraryError where a model is not the one that a library was made on."""
    if base.content_hash() != library.index.base.sha256:
        raise LibraryError(
            f"{library.folder}: the base {library.base} is not the model that the library was made on (SHA-256 "
            f"{base.content_hash()[:12]}..., expected {library.index.base.sha256[:12]}...); put that model back there, "
            f"or {_moved(library)}"
        )


def check_skills(library: Library, skills: Mapping[str, Source]) -> None:
    """Raise LibraryError where an adapter is not the one that was added.

    Args:
        skills: The base with each skill on it, by the skill's name.
    """
    for name, found in skills.items():
        assert found.adapter is not None, "its reference has one"
        if adapter_hash(found.adapter) != library.index.skills[name].sha256:
            raise LibraryError(
                f"{library.place(name)}: has changed since it was added; remove the skill, and add it again if it is "
                "right"
            )


def check_finite(adapter: Adapter) -> None:
    """Raise SourceError where an adapter holds NaN or infinity."""
    from evomerge.merging.mapped import MappedFiles  # with torch, which other checks do without

    files = MappedFiles()
    for name, update in adapter.updates.items():
        for side, info in (("lora_A", update.a), ("lora_B", update.b)):
            if not bool(files.tensor(info).isfinite().all()):
                raise SourceError(f'{adapter.path}: {side} of "{name}" holds NaN or infinity; expected finite numbers')


def _moved(library: Library) -> str:
    return f"where it lies elsewhere now, say so: --base MODEL, or base.model in {library.folder / INDEX}"


def _opened(library: Library, name: str) -> Source:
    if not library.place(name).is_dir():
        raise LibraryError(
            f'{library.place(name)}: is gone, and the index has "{name}"; remove the skill, add it again'
        )
    return open_source(library.reference(name))
