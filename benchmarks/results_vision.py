"""Vision: a language model merged inside a vision-language model, as benchmarks/vision.py measures it."""

from __future__ import annotations

import argparse
from collections.abc import Mapping
from typing import Any

from vision import BUDGET, TASK, figures, tables


def vision(seed: int, args: argparse.Namespace) -> dict[str, Any]:
    """One seed's figures."""
    return figures(seed, args.work / "vision")


def vision_text(results: Mapping[str, Any]) -> list[str]:
    """Its section of docs/results.md."""
    items = len(next(iter(results.values()))["items"][TASK]["best"].split())
    lines = [
        f"## Vision, {len(results)} seeds",
        "",
        "Answers in Japanese about pictures ([vision](vision.md#what-it-brought)): exact match, 0 where one is in",
        f"another language, on {items} test items of scenes that no model saw. {BUDGET} candidates, and as many for",
        "each control that is searched.",
        "Text models (base, japanese, and what the vectors alone give) are measured as the language model of seeing.",
        "Plain sum: both task vectors with weights of 1, where the search starts.",
        "",
    ]
    lines += tables(results)
    failed = [f"seed {s}: {what}" for s, r in results.items() for what, held in r["held"].items() if not held]
    wanted = "in each seed better than base, seeing and japanese beyond its own 95 % interval over items, by exact"
    lines += ["", f"To hold: {wanted} match; loaded by plain transformers. Failed: {'; '.join(failed) or 'none'}."]
    return lines
