"""evomerge: evolutionary search for model-merge recipes.

    import evomerge

    study = evomerge.search(models=["./maths", "./japanese"], base="./base", tasks=["gsm8k"], budget=200)
    study.results()                       # held-out figures as a pandas frame
    evomerge.merge(study.recipe(), "merged")

What is exported loads when it is first asked for: `import evomerge` alone loads neither torch nor ray.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from evomerge.api import Study, evaluate, fuse, merge, search
    from evomerge.errors import EvoMergeError, InputError
    from evomerge.recipe import Recipe, load_recipe
    from evomerge.study.budget import Budget
    from evomerge.study.fused import Fused
    from evomerge.study.outcome import Outcome

__version__ = "0.1.0"

_EXPORTS = {
    "Budget": "evomerge.study.budget",
    "EvoMergeError": "evomerge.errors",
    "Fused": "evomerge.study.fused",
    "InputError": "evomerge.errors",
    "Outcome": "evomerge.study.outcome",
    "Recipe": "evomerge.recipe",
    "Study": "evomerge.api",
    "evaluate": "evomerge.api",
    "fuse": "evomerge.api",
    "load_recipe": "evomerge.recipe",
    "merge": "evomerge.api",
    "search": "evomerge.api",
}

__all__ = [
    "Budget",
    "EvoMergeError",
    "Fused",
    "InputError",
    "Outcome",
    "Recipe",
    "Study",
    "evaluate",
    "fuse",
    "load_recipe",
    "merge",
    "search",
]


def __getattr__(name: str) -> Any:
    """Load an export (PEP 562)."""
    if name not in _EXPORTS:
        raise AttributeError(f"module 'evomerge' has no attribute {name!r}")
    return getattr(import_module(_EXPORTS[name]), name)


def __dir__() -> list[str]:
    """What it exports, loaded or not."""
    return sorted({*globals(), *__all__})
