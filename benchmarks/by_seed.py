"""What benchmarks that are measured seed by seed share: where figures are kept, and how they are told."""

from __future__ import annotations

import argparse
import json
import math
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray


def kept(folder: Path, measure: Callable[[], dict[str, Any]]) -> dict[str, Any]:
    """The figures of a seed's folder, measured where they are not there yet."""
    folder.mkdir(parents=True, exist_ok=True)
    file = folder / "figures.json"
    if not file.is_file():
        file.write_text(json.dumps(measure(), indent=1) + "\n")
    found: dict[str, Any] = json.loads(file.read_text())
    return found


def paired(differences: Sequence[NDArray[Any]]) -> tuple[float, float, float]:
    """What one model is better by over several seeds, on the same items.

    Args:
        differences: Of each seed, paired by item; shape (items,).

    Returns:
        Their mean; half of its 95 % interval over items (an item's differences are averaged over the seeds first, for
        it is the same item); and half of the t interval over seeds, NaN where there is one.
    """
    from scipy.stats import norm, t

    seeds, mean = [float(d.mean()) for d in differences], np.mean(differences, axis=0)
    over_items = norm.ppf(0.975) * mean.std(ddof=1) / math.sqrt(len(mean))
    over_seeds = math.nan
    if len(seeds) > 1:
        over_seeds = t.ppf(0.975, len(seeds) - 1) * np.std(seeds, ddof=1) / math.sqrt(len(seeds))
    return float(mean.mean()), float(over_items), float(over_seeds)


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
