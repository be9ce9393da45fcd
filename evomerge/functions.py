"""A function of the user's own, named as `file.py:function`: it runs with the user's rights, as what they wrote."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable
from pathlib import Path
from typing import Any

from evomerge.errors import InputError, choose


def load_function(path: Path, name: str, where: str, error: type[InputError] = InputError) -> Callable[..., Any]:
    """Run a Python file and take a function of it.

    Args:
        where: What messages begin with: file, key and value that name the function.

    Raises:
        error: the file is none of Python's, fails on import, or has no such function.
    """
    spec = importlib.util.spec_from_file_location(f"evomerge_function_{path.stem}", path)
    if spec is None or spec.loader is None:
        raise error(f"{where}: {path} is not a Python file")
    module = importlib.util.module_from_spec(spec)
    try:
        spec.loader.exec_module(module)
    except Exception as e:  # the user's own file may raise anything; the message needs its name
        raise error(f"{where}: {path} fails on import: {e!r}") from e
    function = getattr(module, name, None)
    if not callable(function):
        known = [k for k, v in vars(module).items() if callable(v) and not k.startswith("_")]
        raise error(f"{where}: no function {name}; {choose(name, known)}")
    found: Callable[..., Any] = function
    return found
