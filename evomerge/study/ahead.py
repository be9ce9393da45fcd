"""The next candidate is built while the one before it is scored, where there is memory for both."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from evomerge.merging.allocation import out_of_memory
from evomerge.recipe import Recipe

if TYPE_CHECKING:
    from transformers import PreTrainedModel

# What is built is in use by one thread, and may be wanted by another one.
Lock = threading.RLock


@dataclass(eq=False)
class _Slot:
    """A live model and the merge that it holds.

    Attributes:
        recipe: None: its weights are nobody's, or may have been changed since they were built.
        marks: The versions of its tensors then; an operation in place raises them.
        turn: When it was built, or taken, last: a count.
    """

    model: PreTrainedModel
    recipe: Recipe | None = None
    marks: tuple[int, ...] = ()
    turn: int = 0

    def built(self, recipe: Recipe) -> None:
        self.recipe, self.marks = recipe, _versions(self.model)

    def holds(self, recipe: Recipe) -> bool:
        return self.recipe is not None and self.marks == _versions(self.model) and self.recipe == recipe


class LiveMerges:
    """Live models that merges are built into: one, and where it is asked for and there is room, one more.

    Args:
        make: Loads a live model.
        build: Builds a recipe into one.
        lock: Held while anything is built; reentrant.
        room: Whether there is memory for a second one beside what scoring takes.
        kept: Whether a model that was scored still has the weights that were built, so that they serve again.
    """

    def __init__(
        self,
        make: Callable[[], PreTrainedModel],
        build: Callable[[Recipe, PreTrainedModel], None],
        lock: threading.RLock,
        room: Callable[[], bool],
        kept: bool,
    ) -> None:
        self._make = make
        self._build = build
        self._lock = lock
        self._room = room
        self._kept = kept
        self._slots: list[_Slot] = []
        self._scored: _Slot | None = None
        self._alone = False
        self._turn = 0

    @property
    def models(self) -> list[PreTrainedModel]:
        """All there are."""
        return [slot.model for slot in self._slots]

    @contextlib.contextmanager
    def using(self, recipe: Recipe) -> Iterator[PreTrainedModel]:
        """A model that has a recipe's weights: built before, or now. Inside the block nothing is built into it.

        Raises:
            What building raises.
        """
        with self._lock:
            slot = self._held(recipe)
            if slot is None:
                if not self._slots:
                    self._slots.append(_Slot(self._make()))
                slot = min(self._slots, key=lambda s: s.turn)
                self._fill(slot, recipe)
            self._touch(slot)
            self._scored = slot
        try:
            yield slot.model
        finally:
            self._scored = None
            if not self._kept:
                slot.recipe = None

    def prepare(self, recipe: Recipe) -> None:
        """Build a recipe into the model that is not being scored. What goes wrong will be met again by `using`."""
        with self._lock:
            if self._held(recipe) is not None:
                return
            try:
                free = [s for s in self._slots if s is not self._scored]
                if not free:
                    if self._alone or self._scored is None or not self._room():
                        return
                    free = [_Slot(self._make())]
                    self._slots += free
                slot = min(free, key=lambda s: s.turn)
                self._fill(slot, recipe)
                self._touch(slot)
            except Exception as e:
                if not out_of_memory(e):
                    return
            else:
                return
            # After the block: inside, the error's frames still hold what there was no room for.
            self.shrink()

    def shrink(self) -> None:
        """Memory is short: one model is enough from now on."""
        with self._lock:
            self._alone = True
            if len(self._slots) > 1:
                keep = self._scored or max(self._slots, key=lambda s: s.turn)
                self._slots = [keep]

    def _held(self, recipe: Recipe) -> _Slot | None:
        return next((slot for slot in self._slots if slot.holds(recipe)), None)

    def _fill(self, slot: _Slot, recipe: Recipe) -> None:
        slot.recipe = None
        self._build(recipe, slot.model)
        slot.built(recipe)

    def _touch(self, slot: _Slot) -> None:
        self._turn += 1
        slot.turn = self._turn


class SavedMerges:
    """Candidates as checkpoints: the one that is scored, and the next one.

    Args:
        saved: Gives room for a recipe's checkpoint, in a folder where one is named, and writes it there; at its end it
            is removed.
        lock: Held while anything is written; reentrant.
    """

    def __init__(
        self, saved: Callable[[Recipe, Path | None], AbstractContextManager[Path]], lock: threading.RLock
    ) -> None:
        self._saved = saved
        self._lock = lock
        self._place: Path | None = None
        self._next: tuple[Recipe, Path, ExitStack] | None = None

    @contextlib.contextmanager
    def using(self, recipe: Recipe) -> Iterator[Path]:
        """A recipe's checkpoint: written before, or now.

        Raises:
            What writing raises.
        """
        with ExitStack() as stack:
            with self._lock:
                if self._next is not None and self._next[0] == recipe:
                    _, path, written = self._next
                    self._next = None
                    stack.enter_context(written)
                else:
                    self.shrink()  # it is not what comes next after all: its room is wanted
                    path = stack.enter_context(self._saved(recipe, None))
                    self._place = path.parent.parent
            yield path

    def prepare(self, recipe: Recipe) -> None:
        """Write a recipe's checkpoint, where the last one was. What goes wrong will be met again by `using`.

        On another disk it could be slower to read than to wait for.
        """
        with self._lock, contextlib.suppress(Exception), ExitStack() as stack:
            if self._place is None or (self._next is not None and self._next[0] == recipe):
                return
            self.shrink()
            path = stack.enter_context(self._saved(recipe, self._place))
            self._next = recipe, path, stack.pop_all()

    def shrink(self) -> None:
        """Give back the room of what was written for the next one."""
        with self._lock:
            if self._next is not None:
                _, _, written = self._next
                self._next = None
                written.close()


def _versions(model: PreTrainedModel) -> tuple[int, ...]:
    return tuple(t._version for t in (*model.parameters(), *model.buffers()))
