"""Statistics of the zoo's models, really collected."""

from __future__ import annotations

import itertools
from pathlib import Path

import pytest

from evomerge.merging.statistics.collect import Settings, collect
from evomerge.sources import open_source


@pytest.fixture(scope="session")
def text(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A dozen lines of words that the zoo's tokenizer knows."""
    file = tmp_path_factory.mktemp("text") / "text.txt"
    words = ["drevin", "kunt", "nesh", "5", "7", "3", "+", "="]
    lines = [" ".join(words[(i * j + j) % 8] for j in range(3, 9 + i % 3)) for i in range(12)]
    file.write_text("\n".join(lines) + "\n")
    return file


@pytest.fixture(scope="session")
def collected(text: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[tuple[str, str], Path]:
    """Statistics of both kinds of two zoo models, really collected."""
    root = tmp_path_factory.mktemp("statistics")
    found = {}
    for name, kind in itertools.product(("maths", "kovesh"), ("fisher", "gram")):
        found[name, kind] = root / f"{name}-{kind}"
        facts = collect(open_source(f"zoo:{name}"), text, found[name, kind], Settings(kind=kind))  # type: ignore[arg-type]
        assert facts["samples"] == 12 and facts["tokens"] > 60
    return found
