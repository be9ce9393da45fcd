"""Where evomerge keeps what it can always work out again, outside of any project: the user's cache folder."""

from __future__ import annotations

import os
import sys
import tempfile
from pathlib import Path

# Names another folder than the platform's.
VARIABLE = "EVOMERGE_CACHE"


def cache_folder() -> Path:
    """The folder: EVOMERGE_CACHE, else `evomerge` in XDG_CACHE_HOME or the platform's place. It may not exist yet."""
    own = os.environ.get(VARIABLE)
    if own:
        return Path(own).expanduser()
    xdg = os.environ.get("XDG_CACHE_HOME")
    if xdg and Path(xdg).is_absolute():  # a relative one is invalid, says the XDG specification
        return Path(xdg) / "evomerge"
    home = Path("~").expanduser()
    return (home / "Library" / "Caches" if sys.platform == "darwin" else home / ".cache") / "evomerge"


def keep(file: Path, content: bytes) -> bool:
    """Write a file of the cache, whole or not at all; False where that cannot be done: a cache never fails its user."""
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        handle, name = tempfile.mkstemp(prefix=f".{file.name}.", dir=file.parent)
        try:
            with os.fdopen(handle, "wb") as f:
                f.write(content)
            os.replace(name, file)
        except OSError:
            os.unlink(name)
            raise
    except OSError:
        return False
    return True
