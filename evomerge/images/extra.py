"""diffusers is an extra: asked for once, in one way, before anything else."""

from __future__ import annotations

from importlib.util import find_spec

from evomerge.errors import InputError


def check_diffusers(what: str = "image models") -> None:
    """Raise InputError where diffusers is missing, saying what to install.

    Args:
        what: What needs it, in words.
    """
    if find_spec("diffusers") is None:
        raise InputError(f"{what}: need diffusers, which is not installed: pip install 'evomerge[diffusion]'")
