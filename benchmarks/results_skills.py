"""Skills: the two-marker task and the composed one, as benchmarks/skills.py measures them."""

from __future__ import annotations

import argparse
from collections.abc import Mapping
from typing import Any

from skills import figures, tables


def skills(seed: int, args: argparse.Namespace) -> dict[str, Any]:
    """One seed's figures."""
    return figures(seed, args.work / "skills")


def skills_text(results: Mapping[str, Any]) -> list[str]:
    """Its section of docs/results.md."""
    lines = [f"## Skills, {len(results)} seeds", "", "[Skills](skills.md#what-it-brought) says what each row is.", ""]
    lines += tables(results)
    failed = [f"seed {s}: {what}" for s, r in results.items() for what, held in r["held"].items() if not held]
    wanted = "oracle >= .95, gate >= best static + .25, shuffled contexts <= best static"
    lines += ["", f"To hold: {wanted}. Failed: {'; '.join(failed) or 'none'}."]
    return lines
