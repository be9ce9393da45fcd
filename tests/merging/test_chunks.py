"""Work that is shared by threads: in order, stopped after an error, the process's settings as before."""

from __future__ import annotations

import sys
import threading
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch

from evomerge.merging.chunks import BLOCK, Chunks, one_torch_thread, side_by_side


def test_results_come_in_the_order_of_the_items() -> None:
    with ThreadPoolExecutor(3) as pool:
        assert side_by_side(pool, lambda x: x * x, range(1000)) == [x * x for x in range(1000)]
        assert side_by_side(pool, lambda x: x, []) == []


def test_after_an_error_nothing_is_begun_and_nothing_goes_on() -> None:
    done: list[int] = []
    going_on = threading.Semaphore(0)

    def work(number: int) -> None:
        if number == 0:
            raise ValueError("number 0")
        going_on.acquire(timeout=0.2)
        done.append(number)

    with ThreadPoolExecutor(2) as pool:
        with pytest.raises(ValueError, match="number 0"):
            side_by_side(pool, work, range(1000))
        so_far = list(done)
        assert len(so_far) < 10
        pool.submit(lambda: None).result()
        assert done == so_far


def test_work_of_a_pool_that_asks_for_more_does_it_itself() -> None:
    with ThreadPoolExecutor(2) as pool:
        chunks = Chunks(BLOCK, pool)

        def inner(_: int) -> list[int]:
            return chunks.run(lambda start, stop: stop - start, chunks.ranges(3 * BLOCK))

        assert side_by_side(pool, inner, range(4)) == [[BLOCK] * 3] * 4


def test_settings_of_the_process_are_as_before_however_builds_overlap() -> None:
    def settings() -> tuple[float, int]:
        return sys.getswitchinterval(), torch.get_num_threads()

    before = settings()
    entered, left = threading.Barrier(2), threading.Event()

    def second() -> None:
        with one_torch_thread(pool):
            entered.wait(10)
            left.wait(10)

    with ThreadPoolExecutor(1) as pool:
        thread = threading.Thread(target=second)
        with one_torch_thread(pool):
            thread.start()
            entered.wait(10)
            assert settings() != before
        left.set()
        thread.join()
    assert settings() == before
