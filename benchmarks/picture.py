"""`python benchmarks/picture.py`: the README's picture, from the figures in docs/results.json, which it prints.

Held-out scores of the quickstart: base, sources, uniform merge, and what each of its searches found.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

DOCS = Path(__file__).parents[1] / "docs"
WORDS = {"base": "base", "maths": "maths", "kovesh": "kovesh", "sorting": "sorting", "uniform": "uniform merge"}


def bars(results: Mapping[str, Any]) -> list[tuple[str, float, float, float]]:
    """Name, test score and its 95 % interval of every model, the searches' winners last."""
    searches = results["quickstart"]
    first = next(iter(searches.values()))
    found = [(words, first["baselines"][name]["test"]) for name, words in WORDS.items()]
    found += [(f"best found, seed {seed}", search["best"]["test"]) for seed, search in searches.items()]
    return [(words, test["score"], test["low"], test["high"]) for words, test in found]


def table(results: Mapping[str, Any]) -> str:
    """The same as a Markdown table."""
    rows = ["| model | held-out score | 95 % |", "|---|---|---|"]
    for words, score, low, high in bars(results):
        cells = (f"**{words}**", f"**{score:.3f}**") if words.startswith("best") else (words, f"{score:.3f}")
        rows.append(f"| {' | '.join(cells)} | {low:.3f} .. {high:.3f} |")
    return "\n".join(rows)


def draw(results: Mapping[str, Any], path: Path) -> None:
    """Write the picture."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    found = bars(results)
    figure = Figure(figsize=(8.0, 3.6), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    for place, (words, score, low, high) in enumerate(reversed(found)):
        colour = "#3f51b5" if words.startswith("best") else "#b0b4c8"
        axes.barh(place, score, color=colour, height=0.7)
        axes.errorbar(score, place, xerr=[[score - low], [high - score]], color="#222222", linewidth=1.2, capsize=3)
        axes.text(high + 0.008, place, f"{score:.3f}", va="center", fontsize=9)
    axes.set_yticks(range(len(found)), [words for words, *_ in reversed(found)])
    axes.set_xlabel("held-out score on word problems in Kovesh, taught to no source (95 % intervals)", fontsize=9)
    axes.set_xlim(0, max(high for *_, high in found) + 0.06)
    for side in ("top", "right"):
        axes.spines[side].set_visible(False)
    figure.savefig(path, dpi=120, metadata={"Software": "evomerge"})


def main() -> None:
    """Write the picture, print the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, default=DOCS / "quickstart.png", help="default: docs/quickstart.png")
    args = parser.parse_args()
    results = json.loads((DOCS / "results.json").read_text(encoding="utf-8"))
    draw(results, args.out)
    print(table(results))


if __name__ == "__main__":
    main()
