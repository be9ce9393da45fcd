"""What benchmarks that are measured seed by seed share: where figures are kept, and how they are told."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any


def kept(folder: Path, measure: Callable[[], dict[str, Any]]) -> dict[str, Any]:
    """The figures of a seed's folder, measured where they are not there yet."""
    folder.mkdir(parents=True, exist_ok=True)
    file = folder / "figures.json"
    if not file.is_file():
        file.write_text(json.dumps(measure(), indent=1) + "\n")
    found: dict[str, Any] = json.loads(file.read_text())
    return found


def parser_of(description: str | None, work: str, holds: str) -> argparse.ArgumentParser:
    """--seeds, --work and --out.

    Args:
        work: Default of --work.
        holds: What is kept there.
    """
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--work", type=Path, default=Path(work), help=f"{holds}; resumable")
    parser.add_argument("--out", type=Path, help="file of the figures (default: stdout)")
    return parser


def tell(results: Mapping[str, Any], lines: Sequence[str], out: Path | None) -> None:
    """Print lines on stderr and everything as JSON on stdout, or into a file."""
    if lines:
        print("\n".join(lines), file=sys.stderr)
    text = json.dumps(results, indent=1) + "\n"
    if out:
        out.write_text(text)
    else:
        print(text, end="")
