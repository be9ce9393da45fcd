"""Where the presets lie: beside the package in a checkout, inside it in a wheel. Found alike in both."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

Kind = Literal["search_spaces", "evaluators"]

_PACKAGE = Path(__file__).resolve().parent


def folder(kind: Kind) -> Path:
    """The folder of one kind of presets."""
    inside = _PACKAGE / kind
    return inside if inside.is_dir() else _PACKAGE.parent / kind


def names(kind: Kind) -> list[str]:
    """Names of the presets of a kind, sorted."""
    return sorted(path.stem for path in folder(kind).glob("*.yaml"))


def find(kind: Kind, name: str) -> Path | None:
    """The file of a preset: by its name ("quickstart"), or as `search_spaces/quickstart.yaml` from any folder."""
    path = Path(name)
    if path.parent.as_posix() not in (".", kind) or path.suffix not in ("", ".yaml"):
        return None
    found = folder(kind) / f"{path.stem if path.suffix == '.yaml' else path.name}.yaml"
    return found if found.is_file() else None
