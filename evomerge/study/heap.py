"""What the garbage collector goes through while a search runs."""

from __future__ import annotations

import gc
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def settled_heap() -> Iterator[None]:
    """Inside the block, what was in memory before it stays there, and is not looked through for garbage.

    Candidates come and go by the hundred thousand objects, each so often a reason to go through everything there is:
    mostly the modules of torch, transformers and Ray, a tenth of a second each time.
    """
    if gc.get_freeze_count():  # by whoever called: it is theirs to end
        yield
        return
    gc.collect()
    gc.freeze()
    try:
        yield
    finally:
        gc.unfreeze()
