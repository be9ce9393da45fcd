"""Hidden states that are kept for later passes, under a bound on their memory."""

from __future__ import annotations

import heapq
import mmap
from collections.abc import Hashable
from dataclasses import dataclass
from itertools import count

import torch
from torch import Tensor

# From this size on what is kept lies apart from the heap.
_APART = 1 << 16


@dataclass(slots=True)
class _Entry:
    state: Tensor
    cost: float
    hits: int
    priority: float
    turn: int


class KeptStates:
    """Tensors by key, the least useful ones dropped first: GreedyDual-Size-Frequency.

    What is dropped is what has the lowest clock + frequency * cost / size, where the clock is the priority of the last
    one dropped, so that what was useful once grows old (Cherkasova, HPL-98-69R1, 1998). Among equals the oldest goes.

    Args:
        limit: Largest sum of the tensors' sizes in bytes, never exceeded.
    """

    def __init__(self, limit: int) -> None:
        self.limit = limit
        self.bytes = 0
        self._clock = 0.0
        self._entries: dict[Hashable, _Entry] = {}
        # (priority, turn, key); stale where the entry has another turn by now.
        self._queue: list[tuple[float, int, Hashable]] = []
        self._turns = count()

    def __len__(self) -> int:
        return len(self._entries)

    def __contains__(self, key: Hashable) -> bool:
        return key in self._entries

    def get(self, key: Hashable) -> Tensor | None:
        """A kept tensor, which counts as a use of it."""
        entry = self._entries.get(key)
        if entry is None:
            return None
        entry.hits += 1
        self._queue_up(key, entry)
        return entry.state

    def keep(self, key: Hashable, state: Tensor, cost: float) -> None:
        """Keep a copy of a tensor, if there is room for it among what is more useful.

        Args:
            cost: What it saves to have it, in any unit.
        """
        size = state.nbytes
        if not 0 < size <= self.limit or key in self._entries:
            return
        freed = self._make_room(size, self._clock + cost / size)
        if freed is None:
            return
        entry = _Entry(_copied(state, freed), cost, 1, 0.0, 0)
        self.bytes += size
        self._entries[key] = entry
        self._queue_up(key, entry)

    def clear(self) -> None:
        """Forget everything."""
        self.bytes, self._clock = 0, 0.0
        self._entries.clear()
        self._queue.clear()

    def _queue_up(self, key: Hashable, entry: _Entry) -> None:
        entry.priority = self._clock + entry.hits * entry.cost / entry.state.nbytes
        entry.turn = next(self._turns)
        heapq.heappush(self._queue, (entry.priority, entry.turn, key))
        if len(self._queue) > 64 + 4 * len(self._entries):
            self._queue = [(e.priority, e.turn, k) for k, e in self._entries.items()]
            heapq.heapify(self._queue)

    def _make_room(self, size: int, priority: float) -> list[Tensor] | None:
        """Drop what is worth no more than a newcomer, and return it; None: that would not be enough, all is kept."""
        dropped: list[tuple[float, int, Hashable]] = []
        room = self.limit - self.bytes
        while room < size:
            first = heapq.heappop(self._queue)
            entry = self._entries.get(first[2])
            if entry is None or entry.turn != first[1]:
                continue
            dropped.append(first)
            room += entry.state.nbytes
            if first[0] > priority:
                for item in dropped:
                    heapq.heappush(self._queue, item)
                return None
        freed = [self._entries.pop(key).state for _, _, key in dropped]
        self._clock = max([self._clock, *(value for value, _, _ in dropped)])
        self.bytes -= sum(state.nbytes for state in freed)
        return freed


def _copied(state: Tensor, freed: list[Tensor]) -> Tensor:
    """A copy of a tensor, in the memory of one that is no longer kept if it fits.

    What stays for long among what lives for one layer would let the heap grow and shrink with every pass, and the pages
    of each layer be asked for anew: that doubled the time of a pass that keeps its states.
    """
    with torch.inference_mode(False):
        same = (x for x in freed if (x.dtype, x.numel(), x.device) == (state.dtype, state.numel(), state.device))
        memory = next(same, None)
        if memory is None and state.device.type == "cpu" and state.nbytes >= _APART:
            pages = mmap.mmap(-1, state.nbytes, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
            memory = torch.frombuffer(pages, dtype=state.dtype)
        elif memory is None:
            memory = torch.empty(state.shape, dtype=state.dtype, device=state.device)
        memory = memory.view(state.shape)
    return memory.copy_(state.detach())
