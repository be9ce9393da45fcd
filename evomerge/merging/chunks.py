"""How long tensors are cut into pieces, and who works on them."""

from __future__ import annotations

import sys
import threading
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import FIRST_EXCEPTION, ThreadPoolExecutor, wait
from contextlib import contextmanager
from typing import TypeVar

import torch

Item = TypeVar("Item")
Result = TypeVar("Result")
Range = tuple[int, int]

# Elements of one piece. Sums are always taken over blocks of BLOCK elements, so that they do not depend on the rest.
BLOCK = 1 << 15
CHUNK = 1 << 18
CUDA_CHUNK = 1 << 26
# A kernel's piece is so many times larger; or one of so many of a large tensor that threads share.
_WIDE = 4
_SHARES = 16

# Set in the threads of pools: work that asks for more work to be shared does it itself, or all would wait for others.
_in_pool = threading.local()

# Seconds after which a thread that waits for the interpreter gets it: kernels take about a millisecond, Python's 5 ms
# would leave cores idle (a tenth of a rebuild on two threads).
_SWITCH = 1e-4


class _Settings:
    """Of the process: builds may overlap in several threads, and afterwards all is as it was before the first."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._users = 0
        self._before = (0, 0.0)

    def enter(self) -> None:
        with self._lock:
            if not self._users:
                self._before = torch.get_num_threads(), sys.getswitchinterval()
                sys.setswitchinterval(_SWITCH)
            self._users += 1
            torch.set_num_threads(1)  # of the thread that calls

    def leave(self) -> None:
        with self._lock:
            self._users -= 1
            torch.set_num_threads(self._before[0])
            if not self._users:
                sys.setswitchinterval(self._before[1])


_settings = _Settings()


class Chunks:
    """Runs a function over pieces of a tensor, on a pool of threads where there is one.

    Args:
        size: Elements of a piece; rounded to whole blocks. None: as is best here.
        pool: None works in the caller's thread.
    """

    def __init__(self, size: int | None = None, pool: ThreadPoolExecutor | None = None) -> None:
        self.size = max(BLOCK, (size or CHUNK) // BLOCK * BLOCK)
        self.pool = pool
        self._given = size is not None

    def for_kernels(self, count: int, *, stored: bool) -> Chunks:
        """The same with larger pieces: for kernels, which go through a piece in small blocks of their own.

        Args:
            count: Elements of the tensor.
            stored: Whether all inputs lie in memory, so that nothing has to be worked out for a piece.
        """
        size = _WIDE * self.size
        if stored and not self._given:
            size = max(size, count if self.pool is None else count // _SHARES)
        return Chunks(size, self.pool)

    def ranges(self, count: int, unit: int = 1) -> list[Range]:
        """Consecutive ranges that cover `count` elements, each a multiple of `unit` long (except the last)."""
        step = max(unit, self.size // unit * unit)
        return [(start, min(start + step, count)) for start in range(0, count, step)]

    def run(self, work: Callable[[int, int], Result], ranges: Iterable[Range]) -> list[Result]:
        """Results in the order of the ranges."""
        listed = list(ranges)
        if self.pool is None or len(listed) < 2 or getattr(_in_pool, "yes", False):
            return [work(start, stop) for start, stop in listed]
        return side_by_side(self.pool, lambda r: work(*r), listed)


def side_by_side(pool: ThreadPoolExecutor, work: Callable[[Item], Result], items: Iterable[Item]) -> list[Result]:
    """Results in the order of the items. After an error none of the work goes on: what it writes to may be reused."""
    results: dict[int, Result] = {}
    # Each thread takes one item after the other: handing them over one by one costs more than a kernel needs for a
    # small tensor.
    left = deque(enumerate(items))

    def take_turns() -> None:
        _in_pool.yes = True
        while True:
            try:
                number, item = left.popleft()
            except IndexError:
                return
            results[number] = work(item)

    futures = [pool.submit(take_turns) for _ in range(min(pool._max_workers, len(left)))]
    try:
        wait(futures, return_when=FIRST_EXCEPTION)
        for future in futures:
            future.result()
    finally:
        left.clear()
        wait(futures)
    return [results[number] for number in sorted(results)]


@contextmanager
def one_torch_thread(pool: ThreadPoolExecutor | None) -> Iterator[None]:
    """While threads of a pool do the work, torch's own do not: they would only wait for the same cores."""
    if pool is None:
        yield
        return
    _settings.enter()
    try:
        yield
    finally:
        _settings.leave()
