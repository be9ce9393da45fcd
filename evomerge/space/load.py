"""Where a search space comes from: a file, a preset's name, or nothing but models on the command line."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from evomerge import presets
from evomerge.arguments import plain
from evomerge.config import Document, load_yaml, parse_yaml, validate
from evomerge.errors import SpaceError, choose
from evomerge.space import mergekit_evolve, skills
from evomerge.space.config import KINDS, SpaceConfig
from evomerge.space.dataflow import DataflowConfig
from evomerge.space.hybrid import HybridConfig

AnyConfig = SpaceConfig | DataflowConfig | HybridConfig


def load_space(path: str | Path | Mapping[str, Any]) -> AnyConfig:
    """Read a search space of any kind: a path to a YAML file, the name of a preset, or the content of such a file.

    Raises:
        SpaceError: every problem of the file, one line each; for a name that is neither, the nearest preset.
    """
    if isinstance(path, Mapping):
        return _named(Document(plain(path), "<space>"), "space")
    text, file = str(path), Path(path)
    if not file.is_file():
        preset = presets.find("search_spaces", text)
        if preset is None and file.suffix not in (".yaml", ".yml") and file.name == text:
            raise SpaceError(
                f'"{text}" is neither a file nor a preset space; {choose(text, presets.names("search_spaces"))}'
            )
        file = preset or file
    return _named(load_yaml(file, SpaceError), file.stem)


def parse_space(text: str, file: str = "<space>") -> AnyConfig:
    """Read a search space from text; `file` is what messages call it."""
    return _named(parse_yaml(text, file, SpaceError), Path(file).stem)


def stored_space(data: Mapping[str, Any]) -> AnyConfig:
    """A search space as `model_dump(mode="json", exclude_unset=True)` gave it (a study keeps it so)."""
    return _read(Document(dict(data), "stored space"))


def default_space(models: Sequence[str], base: str | None = None) -> SpaceConfig:
    """The space of `--models A B [--base C]` without a YAML: the quickstart's cut; without a base a linear merge."""
    preset = load_space("quickstart" if base else "linear")
    assert isinstance(preset, SpaceConfig)
    return preset.with_sources(models, base)


def _named(document: Document, name: str) -> AnyConfig:
    data = document.mapping(SpaceError)
    if "tasks" in data and not {"genome", "sources", "method", "parameter"} & set(data):
        raise SpaceError(f"{document.file}: is an evaluator, not a search space; give it as --evaluator")
    config = _read(document)
    if config.name:
        return config
    named = config.model_copy(update={"name": name})
    if isinstance(config, SpaceConfig) and isinstance(named, SpaceConfig):
        named._migrated, named._library = config.migrated, config.library
    return named


def _read(document: Document) -> AnyConfig:
    data = document.mapping(SpaceError)
    if "genome" in data:
        return mergekit_evolve.read(document)
    kind = data.get("kind", "parameter")
    if isinstance(kind, str) and kind not in KINDS:  # told alone: what else it lacks depends on the kind
        raise SpaceError(f"{document.where(('kind',))}: kind = {kind!r}: {choose(kind, KINDS)}")
    if kind == "dataflow":
        return validate(DataflowConfig, document, SpaceError)
    if kind == "skills":
        return skills.read(document)
    if kind == "hybrid":
        return validate(HybridConfig, _with_first_stage(document, data), SpaceError)
    return validate(SpaceConfig, document, SpaceError)


def _with_first_stage(document: Document, data: dict[str, Any]) -> Document:
    """A hybrid's document with its parameter space read, where it names one: a file beside it, or a preset.

    Models of such a file are looked for from the hybrid's own folder.
    """
    named = data.get("parameter")
    if not isinstance(named, str):
        return document
    beside = Path(document.file).parent / named
    where = f"{document.where(('parameter',))}: parameter = {named!r}"
    try:
        found = load_space(beside if beside.is_file() else named)
    except SpaceError as e:
        raise SpaceError(f"{where}: {e}") from None
    if not isinstance(found, SpaceConfig):
        raise SpaceError(f'{where}: is of kind "{found.kind}", expected a parameter space')
    document.data = {**data, "parameter": found}
    return document
