"""The garbage collector while a search runs."""

from __future__ import annotations

import gc
import weakref
from collections.abc import Iterator

import pytest

from evomerge.study.heap import settled_heap


class Ring:
    """An object that only the garbage collector frees."""

    def __init__(self) -> None:
        self.itself = self


@pytest.fixture(autouse=True)
def _nothing_frozen() -> Iterator[None]:
    gc.unfreeze()
    yield
    gc.unfreeze()


def test_what_was_there_before_is_left_alone_and_what_comes_is_not() -> None:
    before, thresholds = Ring(), gc.get_threshold()
    of_before = weakref.ref(before)
    with pytest.raises(KeyError), settled_heap():
        assert gc.get_freeze_count() > 0 and gc.get_threshold()[2] > thresholds[2]
        of_new = weakref.ref(Ring())
        del before
        gc.collect()
        assert of_new() is None and of_before() is not None
        raise KeyError
    assert gc.get_freeze_count() == 0 and gc.get_threshold() == thresholds
    gc.collect()
    assert of_before() is None, "afterwards it is freed like everything else"


def test_garbage_of_before_is_not_kept() -> None:
    garbage = weakref.ref(Ring())
    with settled_heap():
        assert garbage() is None


def test_what_the_caller_froze_stays_frozen() -> None:
    gc.freeze()
    with settled_heap(), settled_heap():
        assert gc.get_freeze_count() > 0
    assert gc.get_freeze_count() > 0
