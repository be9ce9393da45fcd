"""The notebook in docs: it runs from a fresh kernel, every cell shows as much as it did when it was stored."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path
from typing import Any

import pytest

FOLDER = Path(__file__).resolve().parents[2] / "docs" / "notebooks"
NOTEBOOK = FOLDER / "evomerge.ipynb"


def shown(cell: Any) -> list[str]:
    """What a cell shows as text."""
    texts = [o.get("text") or o.get("data", {}).get("text/plain", "") for o in cell["outputs"]]
    return ["".join(t) for t in texts]


def test_it_is_stored_with_its_outputs_and_no_folder_of_a_machine() -> None:
    text = NOTEBOOK.read_text(encoding="utf-8")
    cells = [c for c in json.loads(text)["cells"] if c["cell_type"] == "code"]
    assert all(c["execution_count"] for c in cells)
    assert [o for c in cells for o in c["outputs"] if o["output_type"] == "error" or o.get("name") == "stderr"] == []
    assert "/tmp/" not in text and "site-packages" not in text


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_it_runs() -> None:
    spec = importlib.util.spec_from_file_location("notebook_run", FOLDER / "run.py")
    assert spec is not None and spec.loader is not None
    run = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(run)
    found = run.executed(NOTEBOOK)
    stored = json.loads(NOTEBOOK.read_text(encoding="utf-8"))
    for cell, kept in zip(found.cells, stored["cells"], strict=True):
        if cell.cell_type == "code":
            assert len(cell.outputs) == len(kept["outputs"]), cell.source
    same = next(c for c in found.cells if "recipe_hash" in c.source)
    assert shown(same)[0].endswith("True)")  # merged again, the same bytes
    results = next(c for c in found.cells if c.source.startswith("study.results()"))
    assert "uniform" in shown(results)[0] and "best" in shown(results)[0]
