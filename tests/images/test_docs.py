"""docs/images.md: its files and commands, as they stand, on models without training and with fewer steps."""

from __future__ import annotations

import re
import shlex
from collections.abc import Callable
from pathlib import Path

import pytest

from evomerge.images.student import StyledPipeline
from tests.images import models

ROOT = Path(__file__).parents[2]
TEXT = (ROOT / "docs" / "images.md").read_text(encoding="utf-8")
FILE = re.compile(r"^```(?:yaml|text|python) ([\w.-]+)\n(.*?)^```", re.DOTALL | re.MULTILINE)
COMMAND = re.compile(r"^\$ evomerge (.*)$", re.MULTILINE)


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Models by the names of the page, and the page's files."""
    models.save_unet(tmp_path / "models" / "base", models.unet(0))
    for i, name in enumerate(("ember", "ice", "meadow", "orchid")):
        models.save_unet(tmp_path / "models" / name, models.moved(models.unet(0), i + 1))
    models.save_pictures(tmp_path / "models" / "pictures", [i % 4 for i in range(8)])
    for name, text in FILE.findall(TEXT):
        text = re.sub(r"max_steps: \d+", "max_steps: 21", text)
        text = re.sub(r"train_batch_size: \d+", "train_batch_size: 2\nmeasure: {images: 4, inference_steps: 1}", text)
        if "measure:" in text:  # a section of its own, behind the training
            line = "measure: {images: 4, inference_steps: 1}\n"
            text = text.replace(line, "", 1) + line
        (tmp_path / name).write_text(text)
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.mark.slow
def test_every_command_of_the_page(folder: Path, here: Callable) -> None:
    commands = [shlex.split(line) for line in COMMAND.findall(TEXT)]
    assert [c[0] for c in commands] == ["check", "merge", "search", "check", "fuse", "fuse", "report"]
    for command in commands:
        here(*command)
    pipeline = StyledPipeline.from_pretrained("student-of-four/model", "cpu")
    assert pipeline.styles == ("ember", "ice", "meadow", "orchid")
    # What the page does with it in Python.
    block = re.search(r"^```python\n(from evomerge.images.student .*?)^```", TEXT, re.DOTALL | re.MULTILINE)
    assert block is not None
    exec(block.group(1).replace("student/model", "student-of-four/model"), {})
    assert (folder / "ice" / "model_index.json").is_file()
