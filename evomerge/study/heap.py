"""What the garbage collector goes through while a search runs, and how often."""

from __future__ import annotations

import gc
from collections.abc import Iterator
from contextlib import contextmanager

# Full collections come so much less often. Candidates hold no cycles, which are all that a collection finds.
RARER = 5


@contextmanager
def settled_heap() -> Iterator[None]:
    """Inside the block, what was in memory before it stays there, and is not looked through for garbage.

    Candidates come and go by the hundred thousand objects, each so often a reason to go through everything there is:
    mostly the modules of torch, transformers and Ray, a tenth of a second each time; then the candidates under way.
    """
    if gc.get_freeze_count():  # by whoever called: it is theirs to end
        yield
        return
    youngest, middle, oldest = gc.get_threshold()
    gc.collect()
    gc.freeze()
    gc.set_threshold(youngest, middle, RARER * oldest)
    try:
        yield
    finally:
        gc.set_threshold(youngest, middle, oldest)
        gc.unfreeze()
