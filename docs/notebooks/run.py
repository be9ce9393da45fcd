"""Runs the notebook beside it, and keeps what its cells show: `make notebook`. A slow test runs it too."""

from __future__ import annotations

import argparse
import os
from pathlib import Path
from typing import Any

import nbformat
from nbclient import NotebookClient

NOTEBOOK = Path(__file__).with_name("evomerge.ipynb")
SECONDS = 900  # of a cell


def executed(notebook: Path = NOTEBOOK) -> Any:
    """The notebook as it is after every cell has run, in a fresh kernel and this folder.

    What libraries say on stderr is left out: it names folders of the machine, and is nothing of evomerge's.

    Raises:
        nbclient.exceptions.CellExecutionError: a cell failed.
    """
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    found = nbformat.read(notebook, nbformat.current_nbformat)
    settings = {"metadata": {"path": str(notebook.parent)}}
    NotebookClient(found, timeout=SECONDS, kernel_name="python3", resources=settings).execute()
    for cell in found.cells:
        cell.metadata.pop("execution", None)
        if cell.cell_type == "code":
            cell.outputs = [o for o in cell.outputs if o.get("name") != "stderr"]
    nbformat.validate(found)
    return found


def main() -> int:
    """Run it, and write it back."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--notebook", type=Path, default=NOTEBOOK)
    path = parser.parse_args().notebook
    nbformat.write(executed(path), path)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
