"""The measured results on the zoo, over several training seeds: writes docs/results.md and docs/results.json.

    python benchmarks/results.py --work runs/results [--part NAME ...] [--workers 2]

zoo: for each training seed, train base, three fine-tunes and the joint-training ceilings, search with all controls at
equal budget, then measure what only a table of controls asks for. quickstart: `make search` with several search seeds.
search: what searches cost, replayed on a surrogate without models. dataflow, hybrid: paths over the layer-local
experts, with their controls. fusion: bits per byte of fusions of models that share neither architecture nor tokenizer,
with theirs. skills: adapters composed by static weights and by a gate, on the two-marker task. vision: a language model
merged inside a vision-language model. images: a student of three tiny diffusion models, and a fourth style added to it.
Every step is resumable: the same command goes on where it was. A part that is not asked for keeps the figures that it
has. About three hours on two cores.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import date
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")

import results_fusion as fusions
import results_images as image_models
import results_merges as merges
import results_paths as paths
import results_search as searches
import results_skills as libraries
import results_vision as seeing
import torch

import evomerge

ROOT = Path(__file__).resolve().parents[1]


@dataclass(frozen=True)
class Part:
    """One part of the results: what measures a seed, what writes the section, and over which seeds."""

    measure: Callable[[int, argparse.Namespace], dict[str, Any]]
    text: Callable[[Mapping[str, Any]], list[str]]
    seeds: tuple[int, ...]


PARTS = {
    "zoo": Part(merges.zoo, merges.zoo_text, (0, 1, 2)),
    "quickstart": Part(merges.quickstart, merges.quickstart_text, (0, 1, 2)),
    "search": Part(searches.search, searches.search_text, searches.SEEDS),
    "dataflow": Part(paths.dataflow, paths.dataflow_text, (0, 1, 2, 3, 4)),
    "hybrid": Part(paths.hybrid, paths.hybrid_text, (0, 1, 2, 3, 4)),
    "fusion": Part(fusions.fusion, fusions.fusion_text, (0, 1, 2)),
    "skills": Part(libraries.skills, libraries.skills_text, (0, 1, 2)),
    "vision": Part(seeing.vision, seeing.vision_text, (0, 1, 2, 3, 4, 5)),
    "images": Part(image_models.images, image_models.images_text, (0, 1, 2)),
}


MEASURED = "measured"  # in results.json: the day of each part


def markdown(found: Mapping[str, Mapping[str, Any]]) -> str:
    """docs/results.md."""
    lines = [
        "# Results",
        "",
        "Written by `python benchmarks/results.py --work runs/results`; the raw figures are in `results.json`. Scores",
        "are exact match on word problems in Kovesh, a skill no source was trained on, over the held-out test items;",
        "those of fusion bits per byte, those of skills and vision of tasks of their own, those of image models",
        "Fréchet distances. Intervals are",
        "95 % (Wilson for a score; normal for a difference or a mean). Each control was searched at the budget of the",
        "main search.",
        f"evomerge {evomerge.__version__}, torch {torch.__version__}, Python {platform.python_version()}, CPU.",
        f"Measured: {', '.join(f'{name} {day}' for name, day in found.get(MEASURED, {}).items())}. Races, starts",
        "and restarts, which searches have by themselves, came on 2026-11-28 and 29, Thompson sampling on 2026-11-30;",
        "in zoo, dataflow, hybrid and what fusion searched, CMA-ES or evolution had all items of every candidate.",
        "Skills and vision are of Thompson sampling as it was at first, quickstart and search of the cheaper one.",
    ]
    for name, part in PARTS.items():
        if name in found:
            heading, *rest = part.text(found[name])
            # Who reads one figure is told what measures it again.
            lines += ["", heading, "", f"Command: `python benchmarks/results.py --work runs/results --part {name}`."]
            lines += rest if rest[:1] == [""] else ["", *rest]
            if name == "quickstart":
                lines += ["", "![held-out scores of the quickstart](quickstart.png)", ""]
                lines += ["Picture: `python benchmarks/picture.py`."]
    return "\n".join(lines) + "\n"


def main() -> None:
    """Measure, then write both files."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--work", type=Path, default=Path("runs/results"), help="models, studies; resumable")
    parser.add_argument("--part", nargs="+", choices=list(PARTS), default=list(PARTS), help="default: all")
    parser.add_argument("--seeds", type=int, nargs="+", help="default: each part's own")
    parser.add_argument("--budget", type=int, help="of dataflow and hybrid, for a try (default: 200)")
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--docs", type=Path, default=ROOT / "docs", help="where results.md and results.json go")
    args = parser.parse_args()
    file = args.docs / "results.json"
    found: dict[str, dict[str, Any]] = json.loads(file.read_text()) if file.is_file() else {}
    args.docs.mkdir(parents=True, exist_ok=True)
    for name in args.part:
        part = PARTS[name]
        found[name] = {str(seed): part.measure(seed, args) for seed in args.seeds or part.seeds}
        found.setdefault(MEASURED, {})[name] = date.today().isoformat()
        found[MEASURED] = {n: found[MEASURED][n] for n in PARTS if n in found[MEASURED]}
        file.write_text(json.dumps({n: found[n] for n in [MEASURED, *PARTS] if n in found}, indent=1) + "\n")
        (args.docs / "results.md").write_text(markdown(found))
    print(f"wrote {args.docs / 'results.md'}")


if __name__ == "__main__":
    main()
