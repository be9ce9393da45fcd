"""Ask and tell on typed parameters.

What is exported loads when it is first asked for: the command line's help needs the table alone.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from evomerge.optimizers.making import default_optimizer, make_optimizer, restarts_of
    from evomerge.optimizers.protocol import Optimizer
    from evomerge.optimizers.table import OPTIMIZERS, RESTARTS

_EXPORTS = {
    "OPTIMIZERS": "evomerge.optimizers.table",
    "RESTARTS": "evomerge.optimizers.table",
    "Optimizer": "evomerge.optimizers.protocol",
    "default_optimizer": "evomerge.optimizers.making",
    "make_optimizer": "evomerge.optimizers.making",
    "restarts_of": "evomerge.optimizers.making",
}

__all__ = ["OPTIMIZERS", "RESTARTS", "Optimizer", "default_optimizer", "make_optimizer", "restarts_of"]


def __getattr__(name: str) -> Any:
    """Load an export (PEP 562)."""
    if name not in _EXPORTS:
        raise AttributeError(f"module 'evomerge.optimizers' has no attribute {name!r}")
    return getattr(import_module(_EXPORTS[name]), name)
