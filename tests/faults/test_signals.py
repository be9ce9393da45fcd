"""Ctrl-C and SIGTERM: once, what is under way is finished; twice, the end at once. Both go on to the same end."""

import functools
import json
import os
import signal
import time

import pytest

from evomerge.errors import Interrupted
from evomerge.score import State, cost
from evomerge.study.board import Board
from evomerge.study.job import Job
from evomerge.study.leases import leased
from evomerge.study.stopping import Stop
from evomerge.study.store import Store
from evomerge.study.workers.joined import JoinedPool
from tests.faults import cheap
from tests.faults.accounts import audit
from tests.study import test_asynchronous, test_loop, test_race_loop
from tests.study.test_board import Scorer, recipe


def asking(kind, after, size):
    """A pool of a kind whose search is asked to end while the answer of that number is waited for."""

    class Asking(kind):
        def wait(self, poll=None):
            if self.run == after:
                with self.stop.orderly():
                    self.stop.ask()
            return super().wait()

    return Asking(size, seed=after)


@pytest.fixture
def url(tmp_path):
    return f"sqlite:///{tmp_path / 'study.db'}"


def found(trials):
    return [(t.number, dict(t.params), t.state, t.value, t.part and t.part.value) for t in trials]


@pytest.mark.ci
@pytest.mark.parametrize(
    ("search", "kind", "size"),
    [
        (test_loop.search, test_loop.Pool, 3),
        (test_race_loop.search, test_race_loop.Pool, 3),
        (functools.partial(test_asynchronous.search, race=False), test_race_loop.Pool, 1),
    ],
    ids=["whole", "raced", "asynchronous"],
)
def test_asked_at_any_moment_it_ends_in_good_order_and_goes_on_the_same(url, tmp_path, search, kind, size):
    other = f"sqlite:///{tmp_path / 'other.db'}"  # what is known of one study's models costs another nothing
    whole, _ = search(other, 20, kind(size, seed=1), "s")
    for after in (0, 1, 2, 4):
        pool = asking(kind, after, size)
        with pytest.raises(Interrupted, match="the same command goes on") as end:
            search(url, 20, pool, "s")
        assert end.value.exit_code == 130 and not pool.jobs  # nothing that was begun is left
        before = Store(url).open("s").trials()
        assert [t.number for t in before] == list(range(len(before)))
    again, _ = search(url, 20, kind(size, seed=2), "s")
    assert found(again) == found(whole) == found(Store(url).open("s").trials())


@pytest.mark.ci
def test_asynchronous_races_lose_nothing_and_count_nothing_twice(url):
    """Which of them stops depends on who came first, and that on what was under way."""
    before = []
    for after in (0, 1, 4, 9):
        with pytest.raises(Interrupted):
            test_asynchronous.search(url, 20, asking(test_race_loop.Pool, after, 3))
        now = [t for t in found(Store(url).open("s").trials()) if t[2] is not State.RUNNING]
        assert all(t in now for t in before)
        before = now
    again, _ = test_asynchronous.search(url, 20, test_race_loop.Pool(3, seed=2))
    test_asynchronous.check_record(again)
    assert before and all(t in found(again) for t in before) and cost(again) <= 20 + 1e-9


def test_twice_or_with_nothing_under_way_it_ends_at_once():
    stop = Stop()
    with stop.orderly():
        stop.ask(signal.SIGTERM)
        assert stop.asked == signal.SIGTERM
        with pytest.raises(Interrupted, match="at once") as end:
            stop.ask(signal.SIGINT)
    assert end.value.exit_code == 130
    with pytest.raises(Interrupted, match="the same command") as end:
        Stop().ask(signal.SIGTERM)
    assert end.value.exit_code == 143


def test_what_nobody_has_begun_is_taken_back(url):
    """Of the driver's own worker and of the board alike."""
    store, own = Store(url, create=True), Scorer()
    with leased(store, "s") as lease:
        pool = JoinedPool(own, Board(store, lease.token), lambda text: None)
        for key in range(3):
            pool.submit(key, Job("search", recipe(key)))
        pool._put_up(7, Job("search", recipe(7)))
        with pool.stop.orderly():
            assert pool.wait()[0] == 0
            pool.stop.ask()
            with pytest.raises(Interrupted):
                pool.wait()
        assert own.scored == [0.0] and not own.queue and Board(store, lease.token).posted() == []


def running(log, words, process, seconds=120):
    deadline = time.monotonic() + seconds
    while words not in log.read_text():
        assert process.poll() is None and time.monotonic() < deadline, log.read_text()[-3000:]
        time.sleep(0.02)


def notes(out):
    return Store(f"sqlite:///{out / 'study.db'}").open(cheap.STUDY).notes()


def trials(out):
    return Store(f"sqlite:///{out / 'study.db'}").open(cheap.STUDY).trials()


@pytest.mark.slow
@pytest.mark.timeout(600)
@pytest.mark.parametrize(
    ("workers", "how", "way"),
    [
        (0, signal.SIGINT, "whole"), (0, signal.SIGTERM, "one at a time"), (2, signal.SIGINT, "raced"),
        (2, signal.SIGTERM, "whole"),
    ],
)  # fmt: skip
def test_once(alone, nursery, tmp_path, workers, how, way):
    """The signal goes to the whole process group, as a terminal's does; SIGTERM to the process, as Ray's of a job."""
    file, of = alone
    out, log = tmp_path / "out", tmp_path / "log"
    options, budget, _ = cheap.WAYS[way]
    args = cheap.asked(file, out, budget, *options)
    process = cheap.start([*args, "--workers", str(workers)], log, CHEAP_SECONDS="0.6")
    running(log, f"search: {budget} candidates", process)
    time.sleep(2.0)
    (os.killpg if how == signal.SIGINT else os.kill)(process.pid, how)
    code = process.wait(60)
    said = log.read_text()
    assert code == 128 + how, said[-3000:]
    assert "ending: what is under way is finished and recorded" in said and "Traceback" not in said
    assert said.splitlines()[-1].endswith("what was under way is recorded: the same command goes on from there")
    assert "error" in json.loads(log.with_suffix(".out").read_text())
    there = trials(out)
    if way != "raced":
        assert 0 < sum(t.state is not State.RUNNING for t in there) < budget
        # What was handed in and not begun.
        assert sum(t.state is State.RUNNING for t in there) <= 1
    assert nursery([*args, "--workers", "0"], log)["code"] == 0, log.read_text()[-3000:]
    account = audit(f"sqlite:///{out / 'study.db'}", out, budget, of(way)[0], True)
    assert account.faults == {}, str(account)


@pytest.mark.slow
@pytest.mark.timeout(600)
@pytest.mark.parametrize(("workers", "how"), [(0, signal.SIGTERM), (2, signal.SIGINT)])
def test_twice(alone, nursery, tmp_path, workers, how):
    file, of = alone
    out, log = tmp_path / "out", tmp_path / "log"
    options, budget, _ = cheap.WAYS["whole"]
    args = cheap.asked(file, out, budget, *options)
    process = cheap.start([*args, "--workers", str(workers)], log, CHEAP_SECONDS="5")
    running(log, "scoring the sources", process)
    running(log, "worker", process)
    time.sleep(3.0)
    process.send_signal(how)
    running(log, "ending: ", process)
    began = time.monotonic()
    process.send_signal(how)
    code = process.wait(60)
    said = log.read_text()
    assert code == 128 + how and "Traceback" not in said, said[-3000:]
    words = "ended at once; what was under way is done again: the same command goes on from there"
    assert said.splitlines()[-1].endswith(words)
    assert time.monotonic() - began < 15
    assert nursery([*args, "--workers", "0"], log)["code"] == 0, log.read_text()[-3000:]
    account = audit(f"sqlite:///{out / 'study.db'}", out, budget, of("whole")[0], True)
    assert account.faults == {}, str(account)


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_while_the_winner_is_chosen(alone, nursery, tmp_path):
    file, of = alone
    out, log = tmp_path / "out", tmp_path / "log"
    options, budget, _ = cheap.WAYS["whole"]
    args = cheap.asked(file, out, budget, *options, "--workers", 0)
    process = cheap.start(args, log, CHEAP_SECONDS="0.4")
    running(log, "choosing the winner", process)
    process.send_signal(signal.SIGINT)
    assert process.wait(60) == 130, log.read_text()[-3000:]
    assert not (out / "result.json").exists() and "looked" not in notes(out)
    assert nursery(args, log)["code"] == 0, log.read_text()[-3000:]
    account = audit(f"sqlite:///{out / 'study.db'}", out, budget, of("whole")[0], True)
    assert account.faults == {}, str(account)


@pytest.mark.slow
@pytest.mark.timeout(300)
@pytest.mark.parametrize("how", [signal.SIGINT, signal.SIGTERM])
def test_a_fusion_ends_at_once_in_one_line(here, tmp_path, how):
    here("init", "--fusion", tmp_path / "made")
    log = tmp_path / "log"
    args = ["fuse", str(tmp_path / "made" / "fusion.yaml"), str(tmp_path / "fused"), "--workers", "0", "--json"]
    process = cheap.start(args, log)
    running(log, "checking models, corpus and options", process)
    time.sleep(3.0)
    process.send_signal(how)
    assert process.wait(60) == 128 + how
    said = log.read_text()
    assert said.splitlines()[-1] == "evomerge: error: interrupted: the same command goes on where it was"
    assert "Traceback" not in said and "error" in json.loads(log.with_suffix(".out").read_text())
