"""The part of the results that says what searches cost: replays on the surrogate (see benchmarks/search.py)."""

from __future__ import annotations

import argparse
import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from benchmarks import search as replays
from benchmarks.replayed import ITEMS, best_known, load, names

BUDGET, LONG = 120, 1000
# No rule was chosen by these seeds; that CMA-ES came to 2.9 on them is why another optimizer was looked for.
SEEDS = tuple(range(300, 310))


def search(seed: int, args: argparse.Namespace) -> dict[str, Any]:
    """One seed's searches, each way."""
    surrogate, _ = load()
    level = replays.SHARE * best_known(surrogate, len(names()))
    found: dict[str, Any] = {"level": level}
    for name, way in replays.WAYS.items():
        found[name] = figures(replays.searched(name, seed, BUDGET if way.race else way.long or LONG), level)
    return found


def figures(curve: tuple[list[float], list[float]], level: float) -> dict[str, float | None]:
    """What is kept of a curve: items until the level (null: never), held-out score after `BUDGET` candidates' items."""
    (needed,) = replays.reached([curve], level).tolist()
    return {
        "items": needed if math.isfinite(needed) else None,
        "held_out": replays.value_at(curve, BUDGET * ITEMS),
        "last": curve[1][-1] if curve[1] else 0.0,
    }


def search_text(results: Mapping[str, Any]) -> list[str]:
    """Its section of docs/results.md."""
    each = list(results.values())
    level = each[0]["level"]
    ways = [name for name in each[0] if name != "level"]
    lines = [
        f"## What a search costs, {len(each)} search seeds",
        "",
        "Replayed on a surrogate that was fitted to recorded merges of the zoo's task at item level, by",
        f"`python -m benchmarks.search` (seeds {', '.join(results)}). Search items are scored until the held-out",
        f"score of what it would hand on comes to {level:.3f}, 95 % of the best known within the space's bounds (the",
        "plain one has none, and goes on to weights of which no merge was recorded; levels above .63 are the",
        "surrogate's alone, see [search.md](search.md#where-it-does-not-help)); the held-out score is the one",
        f"after {BUDGET * ITEMS:,} items. Plain CMA-ES is mergekit-evolve's way: no bounds, a first step of 1/6,",
        f"every candidate on all {ITEMS} items. Those without a race went on to {LONG * ITEMS:,} items, ours to",
        f"{(replays.FULL.long or LONG) * ITEMS:,}. No rule was chosen by these seeds, but the default optimizer in",
        "part: that CMA-ES took 2.9 times fewer items than the plain one on them is why another one was looked for.",
        "",
        "| | items (median) | reached in | held-out | least .. most | ours minus it, by seed (95 %) |",
        "|---|---|---|---|---|---|",
    ]
    ours = _values(each, "ours")
    for name in ways:
        needed = [math.inf if r[name]["items"] is None else r[name]["items"] for r in each]
        held = _values(each, name)
        median = float(np.median(needed))
        shown = f"{median:,.0f}" if math.isfinite(median) else "never"
        lines.append(
            f"| {name} | {shown} | {sum(map(math.isfinite, needed))} of {len(each)} | {held.mean():.3f} | "
            f"{held.min():.3f} .. {held.max():.3f} | {'' if name == 'ours' else _difference(ours - held)} |"
        )
    return [
        *lines,
        "",
        "![held-out score over items evaluated](search_curves.png)",
        "",
        "Where it does not help, or less, stands in [search.md](search.md#where-it-does-not-help).",
    ]


def _values(each: Sequence[Mapping[str, Any]], name: str) -> np.ndarray[Any, np.dtype[np.float64]]:
    return np.array([r[name]["held_out"] for r in each], dtype=np.float64)


def _difference(gains: np.ndarray[Any, np.dtype[np.float64]]) -> str:
    low, high = replays.interval(gains)
    return f"{gains.mean():+.3f} ({low:+.3f} .. {high:+.3f})"
