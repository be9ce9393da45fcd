"""Skills: LoRA adapters on one base, kept in a library, and composed in parameter space (PSEC, ICLR 2025).

W(s) = W_0 + sum_i alpha_i B_i A_i. Weights alpha that are the same for every prompt are searched as any merge is
(`kind: skills`) and leave a plain checkpoint or one adapter; a gate gives each prompt weights of its own, and leaves a
`GatedModel`. What is exported loads when it is first asked for.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from evomerge.library import Library, read_library
    from evomerge.skills.gated import GatedModel
    from evomerge.skills.shelf import add, remove

_EXPORTS = {
    "GatedModel": "evomerge.skills.gated",
    "Library": "evomerge.library",
    "add": "evomerge.skills.shelf",
    "read_library": "evomerge.library",
    "remove": "evomerge.skills.shelf",
}

__all__ = ["GatedModel", "Library", "add", "read_library", "remove"]


def __getattr__(name: str) -> Any:
    """Load an export (PEP 562)."""
    if name not in _EXPORTS:
        raise AttributeError(f"module 'evomerge.skills' has no attribute {name!r}")
    return getattr(import_module(_EXPORTS[name]), name)
