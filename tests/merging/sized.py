"""Merges of models of any size (benchmarks/sized_models.py), as tests of memory and of kills run them."""

from __future__ import annotations

import sys
from pathlib import Path


def recipe(folder: Path, method: str) -> Path:
    """A recipe over those models, by its method's name."""
    models = "models: [{model: A}, {model: B}]"
    weighed = "models: [{model: A, parameters: {weight: 0.6}}, {model: B, parameters: {weight: 0.5}}]"
    texts = {
        "linear": weighed,
        "slerp": "base_model: A\nmodels: [{model: B}]\nparameters: {t: 0.4}",
        "ties": f"base_model: BASE\n{weighed}\nparameters: {{density: 0.4}}",
        "dare_ties": f"base_model: BASE\n{weighed}\nparameters: {{density: 0.4}}",
        "della": f"base_model: BASE\n{weighed}\nparameters: {{density: 0.5, epsilon: 0.1}}",
        "sce": f"base_model: BASE\n{models}\nparameters: {{select_topk: 0.3}}",
        "model_stock": f"base_model: BASE\n{models}",
        "tsv": f"base_model: BASE\n{models}",
        "iso_c": f"base_model: BASE\n{models}",
    }
    file = folder / f"{method}.yaml"
    file.write_text(f"merge_method: {method}\n{texts[method]}\n")
    return file


def command(file: Path, out: Path, *options: str) -> list[str]:
    """The command line that merges."""
    return [sys.executable, "-m", "evomerge", "merge", str(file), str(out), *options]
