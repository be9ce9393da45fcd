"""evomerge: evolutionary search for model-merge recipes.

    from evomerge import Budget, Options, search
    outcome = search(Options(budget=Budget(candidates=100)))

What is exported loads when it is first asked for: `import evomerge` alone loads neither torch nor ray.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from evomerge.pipeline import FuseOptions, Options, fuse, search
    from evomerge.recipe import Recipe, load_recipe
    from evomerge.study.budget import Budget
    from evomerge.study.fused import Fused
    from evomerge.study.outcome import Outcome

__version__ = "0.1.0"

_EXPORTS = {
    "Budget": "evomerge.study.budget",
    "FuseOptions": "evomerge.pipeline",
    "Fused": "evomerge.study.fused",
    "Options": "evomerge.pipeline",
    "Outcome": "evomerge.study.outcome",
    "Recipe": "evomerge.recipe",
    "fuse": "evomerge.pipeline",
    "load_recipe": "evomerge.recipe",
    "search": "evomerge.pipeline",
}

__all__ = ["Budget", "FuseOptions", "Fused", "Options", "Outcome", "Recipe", "fuse", "load_recipe", "search"]


def __getattr__(name: str) -> Any:
    """Load an export (PEP 562)."""
    if name not in _EXPORTS:
        raise AttributeError(f"module 'evomerge' has no attribute {name!r}")
    return getattr(import_module(_EXPORTS[name]), name)
