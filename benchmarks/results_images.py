"""Image models: a student of several, and a style added to it, as benchmarks/images.py measures them."""

from __future__ import annotations

import argparse
from collections.abc import Mapping
from typing import Any

from images import WANTED, figures, tables


def images(seed: int, args: argparse.Namespace) -> dict[str, Any]:
    """One seed's figures."""
    return figures(seed, args.work / "images")


def images_text(results: Mapping[str, Any]) -> list[str]:
    """Its section of docs/results.md."""
    lines = [f"## Image models, {len(results)} seeds", ""]
    lines += ["[Image models](images.md#what-it-brought) says what each row is. Fréchet distances on features of fixed"]
    lines += ["random convolutions, 256 pictures each; lower is nearer.", ""]
    lines += tables(results)
    failed = [f"seed {s}: {what}" for s, r in results.items() for what, held in r["held"].items() if not held]
    return [*lines, "", f"To hold: {WANTED}. Failed: {'; '.join(failed) or 'none'}."]
