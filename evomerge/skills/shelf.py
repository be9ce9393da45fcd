"""Adding a skill to a library, and removing one: whole, or not at all."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path

import yaml

from evomerge.errors import EvoMergeError, InputError, SourceError
from evomerge.library import (
    INDEX,
    Base,
    Index,
    Library,
    LibraryError,
    Skill,
    check_base_place,
    check_folder,
    check_name,
    library_above,
    read_library,
)
from evomerge.locks import held
from evomerge.merging.scratch import open_to_all, scratch_folder
from evomerge.recipe import ModelReference
from evomerge.skills.opened import adapter_hash, check_base, check_finite, opened_base
from evomerge.sources import (
    Adapter,
    Source,
    adapter_folder,
    fetch,
    local_folder,
    open_source,
    read_object,
    with_adapter,
)
from evomerge.sources.adapter import CONFIG, WEIGHTS
from evomerge.space.source import RESERVED

_LOCK = ".lock"
Say = Callable[[str], None]


def add(
    folder: str | Path,
    name: str,
    adapter: str | Path,
    *,
    base: str | None = None,
    description: str = "",
    tags: Iterable[str] = (),
    say: Say = lambda text: None,
) -> Library:
    """Copy a PEFT adapter into a library, which is made where it is missing.

    The copy is checked against the base, tensor by tensor, before the index names it; a process that is killed leaves
    the library as it was.

    Args:
        adapter: Its folder, or its id on the hub (`org/name@revision`).
        base: The model that it is an adapter on. Default: the library's; of a new library, what the adapter's own
            configuration names. Where the library's is no longer where it was: its new place, which the index then has.
        say: Is told what could not be checked.

    Returns:
        The library with the skill in it.

    Raises:
        LibraryError: the name is no name or taken, the adapter is for another base, or references cannot lead to the
            library or its base.
        SourceError: adapter or base cannot be read, do not fit each other (which tensor, and what was expected), or the
            adapter changes more than linear layers by low-rank products, or holds NaN; it is a pickle file.
    """
    place, name, tags = _followed(Path(folder)), check_name(name), tuple(tags)
    if name in RESERVED:
        raise LibraryError(f'skill "{name}": is what a search calls something else; expected another name')
    for tag in tags:
        if not tag.strip():
            raise LibraryError("--tags: an empty tag; expected words")
    library = _library(place)
    if library is not None:
        _check_free(library, name)
    lora = _reference(str(adapter))
    named = _trained_on(lora, str(adapter))
    model = _base(library, base, named, adapter)
    moved = library is not None and model.reference != library.base
    if library is not None and moved:
        library = Library(library.folder, library.index, model.reference)
    index = Index(base=Base(model=written_base(model, place), sha256=model.content_hash()))
    check_base_place(library or Library(place, index))
    _check_base(library, model, base, named, adapter, say)
    found = with_adapter(model, lora, f"{model.reference}+{adapter}")
    fetch([found])
    assert found.adapter is not None
    _check_linear(found.adapter)
    with _writing(place):
        if library is not None or not _made(found, index, place, name, description, tags):
            with held(place / _LOCK, _busy(place)):
                library = read_library(place)  # another process may have added one meanwhile
                check_base(library, model)
                _check_free(library, name)
                _clear(place / name)
                skill = _shelved(found, place, name, description, tags)
                changed: dict[str, object] = {"skills": {**library.index.skills, name: skill}}
                write_index(place, library.index.model_copy(update=changed | ({"base": index.base} if moved else {})))
    return read_library(folder)


def _made(found: Source, index: Index, place: Path, name: str, description: str, tags: tuple[str, ...]) -> bool:
    """Make a library of one skill; False where another process has made one there meanwhile."""
    place.absolute().parent.mkdir(parents=True, exist_ok=True)
    # Beside the library, which is not there yet: what becomes it is renamed into its place as a whole.
    lock = place.absolute().parent / f".{place.name}{_LOCK}"
    with held(lock, _busy(place)):
        if _library(place) is not None:
            return False
        with scratch_folder(place.absolute().parent, place.name, "part") as new:
            skill = _shelved(found, new, name, description, tags)
            write_index(new, index.model_copy(update={"skills": {name: skill}}))
            open_to_all(new)
            if place.is_dir():
                (place / _LOCK).unlink(missing_ok=True)  # no folder is renamed to one that holds something
            new.rename(place)
        # Who waits for it finds the library, whatever lock it then holds.
        lock.unlink(missing_ok=True)
    return True


def remove(folder: str | Path, name: str) -> Library:
    """Take a skill out of a library; the others are not touched.

    Raises:
        LibraryError: there is no such library, or no such skill.
    """
    library = read_library(folder)
    library.chosen([name])
    with _writing(library.folder), held(library.folder / _LOCK, _busy(library.folder)):
        library = read_library(folder)
        library.chosen([name])
        left = {n: skill for n, skill in library.index.skills.items() if n != name}
        write_index(library.folder, library.index.model_copy(update={"skills": left}))
        place = library.place(name)
        if place.is_symlink():
            place.unlink()  # what it leads to is somebody's own
        shutil.rmtree(place, ignore_errors=True)
    return read_library(folder)


def _followed(place: Path) -> Path:
    """Where a link leads: it could not be replaced by a folder."""
    return Path(os.path.realpath(place)) if place.is_symlink() else place


def _library(place: Path) -> Library | None:
    """The library that is there; None where one can be made."""
    check_folder(place)
    if place.is_dir() and not any(p.name != _LOCK for p in place.iterdir()):
        return None
    if place.is_dir() and not (place / INDEX).is_file():
        raise LibraryError(f"{place}: is not empty and has no {INDEX}; expected a skill library, or a new folder")
    if place.exists() and not place.is_dir():
        raise LibraryError(f"{place}: is a file, expected the folder of a skill library, or a new one")
    return read_library(place) if place.is_dir() else None


def _check_free(library: Library, name: str) -> None:
    if name in library.index.skills:
        raise LibraryError(
            f'{library.folder}: has a skill "{name}" already; choose another name, or remove that one first'
        )


def _reference(adapter: str) -> ModelReference:
    if local_folder(adapter, None) is not None:
        return ModelReference(adapter)  # a folder with a + or @ in its name
    try:
        return ModelReference.parse(adapter)
    except ValueError as e:
        raise SourceError(str(e)) from None


def _trained_on(lora: ModelReference, adapter: str) -> str | None:
    """The model that an adapter's own configuration names."""
    path = adapter_folder(lora, adapter)
    if not (path / CONFIG).is_file():
        what = "is a model, not an adapter" if (path / "config.json").is_file() else f"has no {CONFIG}"
        raise SourceError(f"{path}: {what}; expected the folder of a PEFT adapter")
    named = read_object(path, CONFIG).get("base_model_name_or_path")
    return named if isinstance(named, str) and named else None


def _base(library: Library | None, base: str | None, named: str | None, adapter: str | Path) -> Source:
    if library is not None:
        try:
            return opened_base(library)
        except SourceError:
            if base is None:
                raise
            return open_source(base)  # where it lies by now, as the content will show
    reference = base or named
    if reference is None:
        raise LibraryError(f"{adapter}: its {CONFIG} names no base_model_name_or_path; give --base MODEL")
    try:
        source = open_source(reference)
    except SourceError as e:
        if base is not None:
            raise
        raise SourceError(f"{e} (the base that {adapter} names; or give --base MODEL)") from None
    if source.adapter is not None:
        raise LibraryError(f"--base {reference}: has an adapter on it; expected a plain model")
    return source


def _check_base(
    library: Library | None, model: Source, base: str | None, named: str | None, adapter: str | Path, say: Say
) -> None:
    """Raise LibraryError where an adapter is for another model than the library's base.

    Shapes alone do not tell: all fine-tunes of one model have the same. What is given as --base, or else what the
    adapter names, is compared by content where it is here, by its name on the hub where it is not.
    """
    if library is not None:
        check_base(library, model)
    other = base if base is not None else named
    if other is None:
        say(f"{adapter}: names no base that it was trained on: only names and shapes were compared")
    if other is None or other == model.reference:
        return
    which = f"--base {other}" if base is not None else f'{adapter}: was trained on "{other}"'
    if local_folder(other, None) is None and not other.startswith("zoo:"):
        both = not model.local and "/" in other and not other.startswith((".", "/"))
        if both and base is None and other.partition("@")[0] != model.reference.partition("@")[0]:
            raise LibraryError(
                f'{which}, the library\'s base is "{model.reference}"; where that is the same model, say so: '
                f"--base {model.reference}"
            )
        if base is None:
            say(f'{adapter}: was trained on "{other}", which is not here: only names and shapes were compared')
            return
    found = open_source(other)
    if found.content_hash() != model.content_hash():
        raise LibraryError(
            f"{which} (SHA-256 {found.content_hash()[:12]}...), the library's base is {model.reference} "
            f"({model.content_hash()[:12]}...): expected an adapter on the same base"
        )


def _check_linear(adapter: Adapter) -> None:
    """Refuse what cannot be weighed as a low-rank change of a linear layer."""
    if adapter.replaced:
        name = next(iter(adapter.replaced))
        raise SourceError(
            f'{adapter.path}: brings "{name}" whole (modules_to_save or bias), of which no share can be added; '
            "expected low-rank changes alone"
        )
    model = adapter.model
    tokens = [n for n in adapter.updates if model.layout.places[n].stage == "before"]
    if tokens:
        raise SourceError(
            f'{adapter.path}: changes the embedding "{tokens[0]}"; a skill changes linear layers: expected no '
            "embedding in target_modules"
        )


def _shelved(found: Source, folder: Path, name: str, description: str, tags: tuple[str, ...]) -> Skill:
    """Copy an adapter into a library's folder, under its name, and say what it is."""
    adapter = found.adapter
    assert adapter is not None
    with scratch_folder(folder, name, "part") as part:
        for file in (CONFIG, WEIGHTS):
            shutil.copyfile(adapter.path / file, part / file)
        copied = with_adapter(adapter.model, ModelReference(str(part)), found.reference).adapter
        assert copied is not None
        check_finite(copied)
        digest = adapter_hash(copied)
        if digest != adapter_hash(adapter):
            raise EvoMergeError(f"{adapter.path}: changed while it was copied; try again")
        config = read_object(part, CONFIG)
        open_to_all(part)
        part.rename(folder / name)
    return Skill(
        rank=max(u.rank for u in adapter.updates.values()),
        alpha=float(config["lora_alpha"]),
        rslora=bool(config.get("use_rslora")),
        modules=tuple(sorted({n.removesuffix(".weight").rpartition(".")[2] for n in adapter.updates})),
        sha256=digest,
        description=description.strip(),
        tags=tags,
        added=datetime.now(UTC).isoformat(timespec="seconds"),
    )


def written_base(model: Source, place: Path) -> str:
    """The base's reference in the index: a folder by its way from the library's, so that both can be moved together."""
    if not model.local:
        return model.reference
    way = os.path.relpath(os.path.realpath(model.path), os.path.realpath(place))
    return way if way.startswith(".") else f"./{way}"


def check_outside_libraries(out: Path) -> None:
    """Raise LibraryError where a folder that is to be written lies in a skill library: its folders are its skills."""
    above = library_above(out)
    if above is not None:
        raise LibraryError(f"{out}: lies in the skill library {above}; choose another folder")


def _clear(folder: Path) -> None:
    """Remove what a killed process left under a name that the index does not have."""
    if not folder.exists():
        return
    if not folder.is_dir() or {p.name for p in folder.iterdir()} - {CONFIG, WEIGHTS}:
        raise LibraryError(f"{folder}: is there, and the index does not have it; move it away, or choose another name")
    shutil.rmtree(folder)


def write_index(folder: Path, index: Index) -> None:
    """Put an index in the place of the one before, at once."""
    text = yaml.safe_dump(index.model_dump(mode="json"), sort_keys=False, allow_unicode=True)
    part = folder / f".{INDEX}.part"
    with part.open("w", encoding="utf-8") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
    part.replace(folder / INDEX)


def _busy(folder: Path) -> Callable[[str], None]:
    def busy(who: str) -> None:
        raise InputError(f"{folder}: {who} is changing the library; try again when it is done")

    return busy


@contextmanager
def _writing(folder: Path) -> Iterator[None]:
    try:
        yield
    except OSError as e:
        raise LibraryError(f"{folder}: cannot be written ({e.strerror or e})") from None
