"""The README's picture: drawn from the stored figures by the command that the README names."""

from __future__ import annotations

import importlib.util
import json
import struct
from pathlib import Path
from types import ModuleType

import pytest

ROOT = Path(__file__).parents[2]
PICTURE = ROOT / "docs" / "quickstart.png"


@pytest.fixture(scope="module")
def picture() -> ModuleType:
    spec = importlib.util.spec_from_file_location("picture", ROOT / "benchmarks" / "picture.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def size(path: Path) -> tuple[int, int]:
    width, height = struct.unpack(">II", path.read_bytes()[16:24])
    return width, height


def test_it_is_drawn_again_from_the_figures(picture: ModuleType, tmp_path: Path) -> None:
    results = json.loads((ROOT / "docs" / "results.json").read_text(encoding="utf-8"))
    picture.draw(results, tmp_path / "a.png")
    picture.draw(results, tmp_path / "b.png")
    assert (tmp_path / "a.png").read_bytes() == (tmp_path / "b.png").read_bytes()
    assert size(tmp_path / "a.png") == size(PICTURE)
    assert PICTURE.stat().st_size < 150_000


def test_its_figures_are_those_of_the_results(picture: ModuleType) -> None:
    results = json.loads((ROOT / "docs" / "results.json").read_text(encoding="utf-8"))
    text = (ROOT / "docs" / "results.md").read_text(encoding="utf-8")
    found = picture.bars(results)
    assert len(found) == 5 + len(results["quickstart"])
    for _, score, low, high in found:
        assert f"{score:.3f}" in text and f"{low:.3f} .. {high:.3f}" in text


def test_the_readme_shows_it_and_names_its_command_and_day() -> None:
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    assert "](docs/quickstart.png)" in text and "`python benchmarks/picture.py`" in text
    measured = json.loads((ROOT / "docs" / "results.json").read_text(encoding="utf-8"))["measured"]["quickstart"]
    assert f"measured on {measured}" in text
