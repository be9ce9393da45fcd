"""A merge that must be refused: one clear message, exit code 2, and the disk as it was before."""

from __future__ import annotations

import hashlib
import json
import shutil
import struct
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from evomerge import zoo

RECIPE = "merge_method: linear\nmodels: [{model: ./a}, {model: ./b}]\nparameters: {weight: 0.5}\n"
MODEL = "model.safetensors"

Refused = Callable[..., str]


def state(folder: Path) -> dict[str, tuple[Any, ...]]:
    """Everything below a folder: kind, size, time of change and content of each file."""
    found: dict[str, tuple[Any, ...]] = {}
    for path in sorted(folder.rglob("*")):
        stat = path.lstat()
        content = hashlib.sha256(path.read_bytes()).hexdigest() if path.is_file() else ""
        found[str(path)] = (stat.st_mode, path.is_file() and (stat.st_size, stat.st_mtime_ns), content)
    return found


@pytest.fixture
def models(tmp_path: Path) -> Path:
    """A folder with two models, a and b, of the zoo, and their base."""
    for name, kind in (("base", "base"), ("a", "maths"), ("b", "kovesh")):
        shutil.copytree(zoo.path(kind), tmp_path / name)
    return tmp_path


@pytest.fixture
def refused(here: Callable[..., Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Refused:
    """refused(recipe, words, out, options): the message of a merge that must not be done."""
    temporary = tmp_path / "temporary"
    temporary.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(temporary))

    def run(
        recipe: str | bytes = RECIPE,
        words: tuple[str, ...] = (),
        out: Path | None = None,
        options: tuple[str, ...] = (),
    ) -> str:
        file = tmp_path / "recipe.yaml"
        file.write_bytes(recipe.encode() if isinstance(recipe, str) else recipe)
        before = state(tmp_path)
        done = here("merge", file, out or tmp_path / "out", *options, "--json", check=False)
        assert done.returncode == 2, done.stderr
        message = str(done.result["error"])
        assert f"evomerge: error: {message}" in done.stderr and "Traceback" not in done.stderr
        for word in words:
            assert word in message, message
        assert state(tmp_path) == before
        return message

    return run


@pytest.fixture
def rewrite() -> Callable[..., None]:
    """rewrite(file, change): change the header of a safetensors file, and with it nothing else."""

    def run(file: Path, change: Callable[[dict[str, Any]], None]) -> None:
        data = file.read_bytes()
        (length,) = struct.unpack("<Q", data[:8])
        header = json.loads(data[8 : 8 + length])
        change(header)
        text = json.dumps(header).encode()
        text += b" " * (-len(text) % 8)
        file.write_bytes(struct.pack("<Q", len(text)) + text + data[8 + length :])

    return run


@pytest.fixture
def edit() -> Callable[..., None]:
    """edit(file, name, change): change the values of one tensor."""
    from safetensors.torch import load_file, save_file

    def run(file: Path, name: str, change: Callable[[Any], Any]) -> None:
        tensors = load_file(file)
        tensors[name] = change(tensors[name].clone())
        save_file(tensors, file, metadata={"format": "pt"})

    return run
