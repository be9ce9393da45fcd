"""Where a search space comes from: a file, a preset's name, or nothing but models on the command line."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from evomerge import presets
from evomerge.config import Document, load_yaml, parse_yaml, validate
from evomerge.errors import SpaceError, choose
from evomerge.space import mergekit_evolve
from evomerge.space.config import SpaceConfig


def load_space(path: str | Path) -> SpaceConfig:
    """Read a search space: a path to a YAML file, or the name of a preset.

    Raises:
        SpaceError: every problem of the file, one line each; for a name that is neither, the nearest preset.
    """
    text, file = str(path), Path(path)
    if not file.is_file():
        preset = presets.find("search_spaces", text)
        if preset is None and file.suffix not in (".yaml", ".yml") and file.name == text:
            raise SpaceError(
                f'"{text}" is neither a file nor a preset space; {choose(text, presets.names("search_spaces"))}'
            )
        file = preset or file
    return _named(load_yaml(file, SpaceError), file.stem)


def parse_space(text: str, file: str = "<space>") -> SpaceConfig:
    """Read a search space from text; `file` is what messages call it."""
    return _named(parse_yaml(text, file, SpaceError), Path(file).stem)


def default_space(models: Sequence[str], base: str | None = None) -> SpaceConfig:
    """The space of `--models A B [--base C]` without a YAML: the quickstart's cut; without a base a linear merge."""
    return load_space("quickstart" if base else "linear").with_sources(models, base)


def _named(document: Document, name: str) -> SpaceConfig:
    data = document.mapping(SpaceError)
    if "tasks" in data and not {"genome", "sources", "method"} & set(data):
        raise SpaceError(f"{document.file}: is an evaluator, not a search space; give it as --evaluator")
    config = mergekit_evolve.read(document) if "genome" in data else validate(SpaceConfig, document, SpaceError)
    if config.name:
        return config
    named = config.model_copy(update={"name": name})
    named._tasks = config.tasks
    return named
