"""The board of a search: who takes a job, who loses it, whose answer counts; on each kind of database."""

import subprocess
import sys
import threading
import time

import numpy as np
import pytest
import sqlalchemy as sa

from evomerge.errors import EvoMergeError
from evomerge.recipe import InputModel, Recipe
from evomerge.score import Score, TaskScore
from evomerge.study import schema
from evomerge.study.board import TRIES, Board, Place
from evomerge.study.exchange import read_answer, read_job, write_answer, write_job
from evomerge.study.job import Answer, Job
from evomerge.study.joining import Joining
from evomerge.study.leases import leased
from evomerge.study.stopping import Stop
from evomerge.study.store import Store
from evomerge.study.workers.joined import JoinedPool


@pytest.fixture
def store(anywhere):
    return Store(anywhere, create=True)


def place(store, seconds=600.0, workers=1):
    found = Place(Store(store.url), "session", workers, seconds)
    found.renew()
    return found


def test_a_job_goes_to_one_and_its_answer_comes_back(store):
    board = Board(store, "session")
    keys = [board.put(f"job {i}") for i in range(3)]
    one, other = place(store, workers=2), place(store)
    assert sorted(j.workers for j in board.joined()) == [1, 2]
    assert [one.take(), other.take()] == [(keys[0], "job 0"), (keys[1], "job 1")]
    assert [(p.free, p.done) for p in board.posted()] == [(False, False), (False, False), (True, False)]
    assert not other.answer(keys[0], "not mine") and one.answer(keys[0], "mine")
    assert board.answers(keys) == {keys[0]: "mine"}
    board.remove([keys[0]])
    assert not board.withdraw(keys[1]) and board.withdraw(keys[2])
    assert other.answer(keys[1], "late") and one.take() is None and not board.withdraw(keys[1])
    assert Board(store, "another").posted() == []


def test_an_answer_after_the_lease_was_lost_is_dropped(store):
    board = Board(store, "session")
    key = board.put("job")
    slow, quick = place(store, 0.3), place(store)
    assert slow.take() is not None and quick.take() is None
    time.sleep(0.4)
    assert len(board.joined()) == 1 and [p.free for p in board.posted()] == [True]
    assert quick.take() == (key, "job")
    slow.renew()  # it wakes: the job is not its any more
    assert not slow.answer(key, "slow") and quick.answer(key, "quick")
    assert board.answers([key]) == {key: "quick"}


def test_who_renews_keeps_its_jobs(store):
    board = Board(store, "session")
    board.put("job")
    one, other = place(store, 0.6), place(store)
    taken = one.take()
    for _ in range(6):
        time.sleep(0.2)
        one.renew()
    assert other.take() is None and one.answer(taken[0], "done")


def test_who_leaves_or_dies_frees_its_jobs_at_once(store):
    board = Board(store, "session")
    key = board.put("job")
    one = place(store)
    assert one.take() is not None
    one.leave()
    assert board.joined() == [] and [p.free for p in board.posted()] == [True]
    code = (
        "import sys; from evomerge.study.board import Place; from evomerge.study.store import Store\n"
        "place = Place(Store(sys.argv[1]), 'session', 1, 600.0); place.renew(); print(place.take()[0], flush=True)\n"
        "import os; os._exit(9)"
    )
    done = subprocess.run([sys.executable, "-c", code, store.url], capture_output=True, text=True, timeout=120)
    assert done.stdout.strip() == key, done.stderr
    assert board.joined() == []
    assert [(p.free, p.tries) for p in board.posted()] == [(True, TRIES)]
    # Two have died over it: nobody else gets it, the driver takes it back.
    assert place(store).take() is None and board.withdraw(key)


def test_many_take_and_nobody_takes_what_another_has(store):
    board = Board(store, "session")
    keys = [board.put(str(i)) for i in range(24)]
    taken = []

    def take():
        mine = place(store)
        while (found := mine.take()) is not None:
            taken.append(found[0])

    threads = [threading.Thread(target=take) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(taken) == sorted(keys)


RECIPE = Recipe(
    merge_method="linear", dtype="float32",
    models=[InputModel(model=m, parameters={"weight": w}) for m, w in (("/a/x", 0.1 + 0.2), ("/a/y", 5e-324))],
).with_extras(seed=7)  # fmt: skip


def test_jobs_and_answers_cross_as_they_are():
    job = Job("search", RECIPE, only={"t": (0, 3, 5)})
    assert read_job(write_job(job), {}) == job
    names = {"/a/x": "/b/x", "/a/y": "/b/y"}
    moved = read_job(write_job(job), names)
    assert moved.recipe.references() == ["/b/x", "/b/y"]
    contents = {"/a/x": "1", "/a/y": "2"}
    assert moved.recipe.hash({names[r]: c for r, c in contents.items()}) == RECIPE.hash(contents)
    source = Job("test", None, "/a/x", exported=True)
    assert read_job(write_job(source), {}) == source
    assert read_job(write_job(source), names).source == "/b/x"
    bits = np.random.default_rng(0).integers(0, 2**32, 500, dtype=np.uint32).view(np.float32)
    items = tuple(map(str, range(500)))
    score = Score((TaskScore("t", "m", 0.1 + 0.2, 1 / 3, items, bits, True), TaskScore("u", "m", -1e-320)))
    answer = read_answer(write_answer(Answer(score, None, {"build": 1 / 3}, (4, 2))))
    assert (answer.seconds, answer.layers, answer.reason) == ({"build": 1 / 3}, (4, 2), None)
    for a, b in zip(answer.score.tasks, score.tasks, strict=True):
        assert (a.task, a.value, a.weight, a.items, a.flipped) == (b.task, b.value, b.weight, b.items, b.flipped)
        assert a.results.tobytes() == b.results.tobytes()
    assert read_answer(write_answer(Answer(None, "NaN"))) == Answer(None, "NaN")


class Scorer:
    """A pool in this process whose score of a recipe is its first weight; where asked to, it waits or dies."""

    size, ahead, eager, device = 1, 0, True, "cpu"

    def __init__(self, seconds=0.0):
        self.seconds, self.queue, self.scored, self.stop = seconds, [], [], Stop()

    def submit(self, key, job):
        self.queue.append((key, job))

    def recall(self):
        found = [key for key, _ in self.queue]
        self.queue.clear()
        return found

    def wait(self, poll=None):
        key, job = self.queue.pop(0)
        time.sleep(self.seconds)
        weight = job.recipe.models[0].parameters["weight"]
        self.scored.append(weight)
        return key, Answer(Score((TaskScore("t", "m", float(weight)),)))

    def close(self):
        pass


def recipe(weight):
    return Recipe(merge_method="linear", models=[InputModel(model="/a/x", parameters={"weight": float(weight)})])


@pytest.mark.timeout(120)
def test_a_driver_and_those_that_joined_share_the_work(store, monkeypatch):
    """One joins, works, and is told when the driver has ended; another one wakes too late."""
    said, own, theirs = [], Scorer(0.1), Scorer(0.1)
    with leased(store, "s") as lease:
        lease.offer({"study": "s", "contents": {"/a/x": "1"}})
        pool = JoinedPool(own, Board(store, lease.token), said.append)
        joining = Joining(Store(store.url), "s", theirs, {"1": "/b/x"}, lambda driver: None, lambda text: None)
        ended = []
        thread = threading.Thread(target=lambda: ended.append(joining.run()))
        thread.start()
        while pool.size < 2:
            time.sleep(0.05)
        for key in range(20):
            pool.submit(key, Job("search", recipe(key)))
        found = dict(pool.wait() for _ in range(20))
        pool.close()
        with pytest.raises(RuntimeError, match="nothing was submitted"):
            pool.wait()
    thread.join()
    assert {k: a.score.value for k, a in found.items()} == {k: float(k) for k in range(20)}
    assert sorted(own.scored + theirs.scored) == [float(k) for k in range(20)]
    assert len(own.scored) >= 2 and len(theirs.scored) >= 2
    assert ended[0].candidates == ended[0].jobs == len(theirs.scored)
    assert [t.rpartition(" on ")[2].partition(" ")[2] for t in said] == ["joined: 1 more worker"]
    with store.engine.connect() as connection:
        for table in (schema.jobs, schema.joiners, schema.leases):
            assert connection.execute(sa.select(sa.func.count()).select_from(table)).scalar_one() == 0


@pytest.mark.timeout(120)
def test_what_one_that_fell_silent_had_is_done_by_the_driver(store):
    own, said = Scorer(), []
    with leased(store, "s") as lease:
        board = Board(store, lease.token)
        pool = JoinedPool(own, board, said.append)
        silent = Place(Store(store.url), lease.token, 3, 1.0)
        silent.renew()
        pool._looked = 0.0
        assert pool.size == 4
        for key in range(4):
            pool.submit(key, Job("search", recipe(key)))
        assert silent.take() is not None
        found = dict(pool.wait() for _ in range(4))
    assert {k: a.score.value for k, a in found.items()} == {k: float(k) for k in range(4)}
    assert sorted(own.scored) == [0.0, 1.0, 2.0, 3.0] and "left" in said[-1]


@pytest.mark.timeout(120)
def test_a_driver_that_is_lost(store, monkeypatch):
    monkeypatch.setenv("EVOMERGE_LEASE_SECONDS", "1")
    said = []
    with leased(store, "s") as lease:
        lease.offer({"study": "s", "contents": {}})
        joining = Joining(Store(store.url), "s", Scorer(), {}, lambda driver: None, said.append)
        lost = []

        def run():
            try:
                joining.run()
            except EvoMergeError as e:
                lost.append(str(e))

        thread = threading.Thread(target=run)
        thread.start()
        while len(said) < 1:
            time.sleep(0.05)
        lease._stop.set()  # as if it were suspended: it renews nothing
        thread.join()
    assert 'study "s": lost its driver (process ' in lost[0] and "0 candidates were scored here" in lost[0]
    assert "waiting for another" in said[1]
