"""A skill library as its index says it: a folder of LoRA adapters on one base model. Nothing here loads torch.

LIBRARY/skills.yaml                     the index
LIBRARY/NAME/adapter_config.json        each skill as PEFT saves it, so that PEFT loads it from there
LIBRARY/NAME/adapter_model.safetensors
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from pydantic import Field, field_validator

from evomerge.config import Frozen, load_yaml, validate
from evomerge.errors import InputError, beside, choose

INDEX = "skills.yaml"
# By which the folder of a gated model is known (`evomerge.skills.folder`): it is neither a library nor a checkpoint.
GATE_CONFIG = "gate_config.json"
# A folder, a part of a model reference (`base+library/name`) and of a parameter's name: none of `+`, `@`, `/`.
NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,63}")
_SHA256 = r"^[0-9a-f]{64}$"


class LibraryError(InputError):
    """A skill library is wrong, or lacks what is asked of it."""


class Base(Frozen):
    """The model that every skill of a library is an adapter on.

    Attributes:
        model: Its reference; a folder is written from the library's own, with `./` or `../` before it, or in full.
        sha256: Its content hash (`Source.content_hash`).
    """

    model: str
    sha256: str = Field(pattern=_SHA256)


class Skill(Frozen):
    """One adapter.

    Attributes:
        rank: Its largest rank.
        alpha: lora_alpha of its configuration; modules may differ (alpha_pattern).
        rslora: Whether what it adds is scaled by alpha / sqrt(rank), and not by alpha / rank.
        modules: Last names of the layers that it changes ("q_proj").
        sha256: Of its tensors with their scales; where it lies and how it is stored do not count.
        description: What it does.
        tags: Words to find it by.
        added: When it was added: ISO 8601, UTC.
    """

    rank: int = Field(ge=1)
    alpha: float = Field(gt=0)
    rslora: bool = False
    modules: tuple[str, ...]
    sha256: str = Field(pattern=_SHA256)
    description: str = ""
    tags: tuple[str, ...] = ()
    added: str


class Index(Frozen):
    """skills.yaml.

    Attributes:
        version: Of the format.
        base: What the skills are adapters on.
        skills: By name, in the order in which they were added.
    """

    version: Literal[1] = 1
    base: Base
    skills: dict[str, Skill] = Field(default_factory=dict)

    @field_validator("skills")
    @classmethod
    def _named(cls, value: dict[str, Skill]) -> dict[str, Skill]:
        for name in value:
            check_name(name)
        return value


@dataclass(frozen=True)
class Library:
    """A library that was read.

    Attributes:
        folder: Where it lies.
        index: What its index says.
        elsewhere: Reference of the base, where it lies elsewhere than the index says.
    """

    folder: Path
    index: Index
    elsewhere: str | None = None

    @property
    def base(self) -> str:
        """Reference of the base, as it holds in the current folder."""
        if self.elsewhere is not None:
            return self.elsewhere
        model = self.index.base.model
        if not model.startswith("."):
            return model
        # The way to it begins where the library really lies: "../" behind a link leads elsewhere.
        real = os.path.realpath(self.folder)
        found = os.path.normpath(os.path.join(self.folder if real == os.path.abspath(self.folder) else real, model))
        return found if found.startswith(("/", ".")) else f"./{found}"

    @property
    def names(self) -> tuple[str, ...]:
        """Of its skills, in the order in which they were added."""
        return tuple(self.index.skills)

    def place(self, name: str) -> Path:
        """The folder of a skill's adapter."""
        return self.folder / name

    def reference(self, name: str) -> str:
        """The base with a skill on it, as recipes and spaces name it.

        Raises:
            LibraryError: the library lies where a reference cannot lead.
        """
        check_folder(self.folder)
        check_base_place(self)
        return f"{self.base}+{self.place(name)}"

    def chosen(self, names: Iterable[str] = ()) -> tuple[str, ...]:
        """Some of its skills, checked; all of them where none is named.

        Raises:
            LibraryError: it has no such skill (the nearest is named), or none at all.
        """
        if not self.names:
            raise LibraryError(f"{self.folder}: holds no skill yet; add one: evomerge skills add LIBRARY NAME ADAPTER")
        wanted = tuple(names)
        for name in wanted:
            if name not in self.index.skills:
                raise LibraryError(f'{self.folder}: has no skill "{name}"; {choose(name, self.names)}')
            if wanted.count(name) > 1:
                raise LibraryError(f'{self.folder}: skill "{name}" is named twice; expected each once')
        return wanted or self.names


def check_folder(folder: Path) -> None:
    """Raise LibraryError where references cannot lead into a folder."""
    if any(c in str(folder) for c in "+@"):
        raise LibraryError(f'{folder}: "+" and "@" stand for adapters and revisions in references; rename the folder')


def check_base_place(library: Library) -> None:
    """Raise LibraryError where the base lies in a folder to which references cannot lead."""
    base = library.base
    if base.startswith(("/", ".", "~")) or os.path.isdir(base):
        check_folder(Path(base))


def check_name(name: str) -> str:
    """A skill's name, checked.

    Raises:
        LibraryError: it is none: a skill's name is a folder's, inside the library's, where the index lies too.
    """
    if not NAME.fullmatch(name):
        raise LibraryError(f'skill "{name}": expected a name of letters, digits and _ . -, 64 at most')
    if name.lower() == INDEX:
        raise LibraryError(f'skill "{name}": is the name of the library\'s index; expected another')
    return name


def read_library(folder: str | Path, base: str | None = None) -> Library:
    """Read a library's index; the adapters are not looked at.

    Args:
        base: Reference of its base, where that lies elsewhere than the index says.

    Raises:
        LibraryError: there is none (the nearest folder is named), or its index is wrong.
    """
    path = Path(folder)
    if path.exists() and not path.is_dir():
        raise LibraryError(f"{path}: is a file; expected the folder of a skill library")
    if not path.is_dir():
        raise LibraryError(f"{path}: no such skill library{beside(path)}; `evomerge skills add` makes one")
    if not (path / INDEX).is_file():
        raise LibraryError(f"{path}: has no {INDEX}; expected the folder of a skill library")
    return Library(path, validate(Index, load_yaml(path / INDEX, LibraryError), LibraryError), base)


def find_library(name: str, root: Path | None = None) -> Library:
    """The library of that name ("~" is the user's folder), below the current folder or else below another one.

    Raises:
        LibraryError: as `read_library`.
    """
    name = os.path.expanduser(name)
    places = [Path(name), *([root / name] if root is not None else [])]
    found = next((p for p in places if (p / INDEX).is_file()), None)
    return read_library(found or next((p for p in places if p.is_dir()), places[0]))


def library_above(folder: Path) -> Path | None:
    """The skill library that a folder lies in, or is; None where it lies in none."""
    real = Path(os.path.realpath(folder))
    return next((p for p in (real, *real.parents) if (p / INDEX).is_file() and _is_library(p)), None)


def _is_library(folder: Path) -> bool:
    """Whether a file of an index's name is one: spaces over a library may be called so too."""
    try:
        read_library(folder)
    except LibraryError:
        return False
    return True


def check_weights(library: Library, weights: Mapping[str, float]) -> None:
    """Raise LibraryError where a weight is of no skill."""
    if not weights:
        raise LibraryError(f"{library.folder}: no weights; expected NAME=WEIGHT of some of {', '.join(library.names)}")
    library.chosen(weights)
