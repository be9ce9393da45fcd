"""`evomerge zoo`."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from evomerge import zoo


def test_lists_models_and_tasks(command: Callable) -> None:
    data = command("zoo", "--json").json
    assert [m["name"] for m in data["models"]] == list(zoo.NAMES)
    assert all(m["bytes"] < 2_500_000 for m in data["models"])
    assert "kovesh_problems" in [t["task"] for t in data["tasks"]]
    text = command("zoo").out
    assert "zoo:maths" in text and "kovesh_problems" in text
    for name, about in zoo.ABOUT.items():
        assert [line for line in text.splitlines() if line.split()[0] == f"zoo:{name}" and line.endswith(about)]


def test_parameters_equal_torchs(command: Callable) -> None:
    from safetensors.torch import load_file

    listed = {m["name"]: m["parameters"] for m in command("zoo", "--json").json["models"]}
    for name in zoo.NAMES:
        assert listed[name] == sum(t.numel() for t in load_file(zoo.path(name) / "model.safetensors").values())


def test_copies(command: Callable, tmp_path: Path) -> None:
    done = command("zoo", "copy", "maths", tmp_path / "new" / "mine")
    assert done.code == 0
    for file in zoo.path("maths").iterdir():
        assert (tmp_path / "new" / "mine" / file.name).read_bytes() == file.read_bytes()


def test_refuses(command: Callable, tmp_path: Path) -> None:
    assert 'did you mean "maths"' in command("zoo", "copy", "math", tmp_path / "x").error
    assert "exists already" in command("zoo", "copy", "maths", tmp_path).error
    assert "needs NAME and OUT" in command("zoo", "copy", "maths").error
    assert 'did you mean "copy"' in command("zoo", "cpy").error
    (tmp_path / "file").write_text("")
    assert "cannot be written" in command("zoo", "copy", "maths", tmp_path / "file" / "x").error
