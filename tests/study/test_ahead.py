"""The next candidate is built while one is scored: nothing else changes by it, and there is memory for one at least."""

from __future__ import annotations

import json
import os
import signal
import sys
import threading
import time
from pathlib import Path

import psutil
import pytest
import yaml

from evomerge.evaluation import load_evaluator
from evomerge.evaluation.room import CANDIDATE
from evomerge.recipe import InputModel, Recipe
from evomerge.sources import open_sources
from evomerge.study.builder import Builder
from evomerge.study.job import Job
from evomerge.study.workers import Cluster, RayPool
from evomerge.study.workers.actors import Actors, Lost
from evomerge.study.workers.connection import Connection

NAMES = ["zoo:base", "zoo:maths", "zoo:kovesh", "zoo:sorting"]


def recipe(*weights: float) -> Recipe:
    models = [InputModel(model=n, parameters={"weight": w}) for n, w in zip(NAMES[1:], weights, strict=True)]
    return Recipe(merge_method="task_arithmetic", base_model="zoo:base", models=models, dtype="float32")


def job(*weights: float) -> Job:
    made = recipe(*weights)
    return Job("search", made, hash=made.hash())


A, B, C = job(0.6, 0.2, 0.0), job(0.1, 0.9, 0.1), job(0.5, 0.5, 0.5)


class Counted(Builder):
    """A builder that says which recipes it built, in order."""

    def __init__(self, *args, **options):
        super().__init__(*args, **options)
        self.built = []
        build = self._engine.build_into

        def build_into(recipe, model):
            self.built.append(recipe)
            build(recipe, model)

        self._engine.build_into = build_into


@pytest.fixture(scope="module")
def sources():
    return open_sources(NAMES)


@pytest.fixture(scope="module")
def lm_eval_builder(sources, small_evaluator):
    return lambda: Counted(sources, "zoo:base", load_evaluator(str(small_evaluator)), "cpu")


@pytest.fixture
def function_builder(tmp_path, sources):
    """A builder whose evaluator is a function: what it is given as text, with `model` to look at."""

    def make(body="return {t: float(sum(p.double().sum() for p in model.parameters()))}"):
        (tmp_path / "score.py").write_text(f"def score(model, tokenizer, split):\n    t = 'size'\n    {body}\n")
        data = {"kind": "python", "function": "score.py:score", "tasks": ["size"]}
        (tmp_path / "e.yaml").write_text(yaml.safe_dump(data))
        return Counted(sources, "zoo:base", load_evaluator(tmp_path / "e.yaml"), "cpu")

    return make


def results(answer):
    assert answer.score is not None, answer.reason
    return [(t.task, t.value, t.results.tolist()) for t in answer.score.tasks]


def test_what_was_prepared_scores_the_same(lm_eval_builder):
    plain, ahead = lm_eval_builder(), lm_eval_builder()
    expected = [results(plain.run(j)) for j in (A, B, C, A)]
    found = [results(ahead.run(A))]
    for following in (B, C, A):
        thread = threading.Thread(target=ahead.prepare, args=[following])
        thread.start()
        thread.join()
        builds = len(ahead.built)
        answer = ahead.run(following)
        found.append(results(answer))
        assert len(ahead.built) == builds, "it was there"
    assert found == expected and len({str(f) for f in found}) == 3
    assert len(ahead._merges.models) == 1, "nothing was scored meanwhile, so the one model was free"


def test_it_is_built_beside_what_is_scored(function_builder, monkeypatch):
    """From within the scoring of A, in another thread, B is built: A's weights stay, and B is not built again."""
    builder = function_builder()
    seen = []

    def while_scoring(model, *_):
        before = [p.clone() for p in model.parameters()]
        thread = threading.Thread(target=builder.prepare, args=[B])
        thread.start()
        thread.join()
        seen.append(all((p == q).all() for p, q in zip(model.parameters(), before, strict=True)))

    evaluate = builder._evaluator.evaluate
    monkeypatch.setattr(builder._evaluator, "evaluate", lambda *args: (while_scoring(*args), evaluate(*args))[1])
    first = results(builder.run(A))
    monkeypatch.setattr(builder._evaluator, "evaluate", evaluate)
    assert seen == [True] and len(builder._merges.models) == 2 and builder.built == [A.recipe, B.recipe]
    second = results(builder.run(B))
    assert builder.built == [A.recipe, B.recipe]
    fresh = function_builder()
    assert [first, second] == [results(fresh.run(A)), results(fresh.run(B))]


def test_without_room_for_two_there_is_one(function_builder, monkeypatch):
    builder = function_builder()
    evaluate = builder._evaluator.evaluate
    monkeypatch.setattr(psutil, "virtual_memory", lambda: type("Memory", (), {"available": 1000})())
    monkeypatch.setattr(builder._evaluator, "evaluate", lambda *args: (builder.prepare(B), evaluate(*args))[1])
    builder.run(A)
    assert len(builder._merges.models) == 1 and builder.built == [A.recipe]
    results(builder.run(B))
    assert builder.built == [A.recipe, B.recipe]


def test_memory_that_runs_out_while_it_is_prepared_ends_preparing(function_builder, monkeypatch):
    builder = function_builder()
    evaluate, make = builder._evaluator.evaluate, builder._merges._make
    made = []

    def one_only():
        if made:
            raise MemoryError
        made.append(make())
        return made[-1]

    monkeypatch.setattr(builder._merges, "_make", one_only)
    monkeypatch.setattr(builder._evaluator, "evaluate", lambda *args: (builder.prepare(B), evaluate(*args))[1])
    answers = [builder.run(A), builder.run(B), builder.run(C)]
    assert all(a.score is not None for a in answers) and len(builder._merges.models) == 1
    fresh = function_builder()
    assert [results(a) for a in answers] == [results(fresh.run(j)) for j in (A, B, C)]


def test_what_fails_as_it_is_prepared_fails_when_it_is_run(function_builder):
    builder = function_builder()
    bad = job(1e300, 0.0, 0.0)
    builder.run(A)
    builder.prepare(bad)
    answer = builder.run(bad)
    assert answer.score is None and "inf" in answer.reason
    assert results(builder.run(A)) == results(function_builder().run(A))


def test_the_next_block_of_the_same_candidate_needs_no_build(lm_eval_builder):
    builder = lm_eval_builder()
    places = [{"kovesh_problems": tuple(range(0, 20))}, {"kovesh_problems": tuple(range(20, 40))}]
    halves = [builder.run(Job("search", A.recipe, only=p)) for p in places]
    assert builder.built == [A.recipe]
    whole = lm_eval_builder().run(A)
    assert [r for h in halves for r in results(h)[0][2]] == results(whole)[0][2]


@pytest.mark.parametrize("change", ["p.mul_(0)", "p.data.mul_(0)"])
def test_a_function_may_do_what_it_likes_with_a_model(function_builder, change):
    """Each time it is given the merge itself, whatever it made of the last one."""
    found = "found = float(sum(p.double().sum() for p in model.parameters()))"
    builder = function_builder(f"{found}; [{change} for p in model.parameters()]; return {{t: found}}")
    once, again = results(builder.run(A)), results(builder.run(A))
    assert once == again == results(function_builder().run(A)) and once[0][1] != 0.0


PROGRAM = """
import json, sys, time
began = time.time()
time.sleep(1.0)
open("log", "a").write(json.dumps([began, time.time(), sys.argv[1]]) + "\\n")
print(json.dumps({"score": 0.5}))
"""


@pytest.fixture
def commanded(tmp_path):
    """An evaluator of a command that takes a second, and the folder for its models."""
    (tmp_path / "program.py").write_text(PROGRAM)
    (tmp_path / "scratch").mkdir()
    data = {"kind": "command", "command": [sys.executable, "-I", "program.py", "{model}"], "tasks": ["score"],
            "scratch": str(tmp_path / "scratch")}  # fmt: skip
    (tmp_path / "e.yaml").write_text(yaml.safe_dump(data))
    return tmp_path


def test_a_checkpoint_is_saved_while_a_command_runs(commanded, sources):
    builder = Builder(sources, "zoo:base", load_evaluator(commanded / "e.yaml"), "cpu")
    writes = []
    write = builder._engine.write
    builder._engine.write = lambda recipe, out: (write(recipe, out), writes.append((recipe, time.time())))
    builder.run(A)  # from now on it is known where there is room
    threads = []
    for this, following in ((A, B), (B, C), (C, None)):
        if following is not None:
            threads.append(threading.Timer(0.3, builder.prepare, [following]))
            threads[-1].start()
        results(builder.run(this))
    [t.join() for t in threads]
    runs = [json.loads(line) for line in (commanded / "log").read_text().splitlines()][1:]
    assert [r for r, _ in writes] == [A.recipe, A.recipe, B.recipe, C.recipe]
    for (_, at), (began, ended, _) in zip(writes[2:], runs, strict=False):
        assert began < at < ended, "while the command before it ran"
    assert len({folder for *_, folder in runs}) == 3 and not list((commanded / "scratch").iterdir())


def test_one_that_never_comes_is_removed(commanded, sources):
    builder = Builder(sources, "zoo:base", load_evaluator(commanded / "e.yaml"), "cpu")
    builder.run(A)
    builder.prepare(B)
    assert len(folders(commanded)) == 1
    results(builder.run(C))
    assert not folders(commanded)


def folders(place: Path):
    return [f for f in (place / "scratch").iterdir() if CANDIDATE in f.name]


@pytest.mark.slow
@pytest.mark.xdist_group("faults")
def test_workers_prepare_while_their_commands_run(commanded, sources):
    """Two real workers, six candidates of a second: all but the first two are there when they are wanted."""
    pool = RayPool(Cluster(workers=2), sources, "zoo:base", load_evaluator(commanded / "e.yaml"))
    try:
        assert (pool.size, pool.ahead, pool.eager) == (2, 2, False)
        jobs = [job(0.1 * i, 0.5, 0.0) for i in range(8)]
        for number, j in enumerate(jobs[:4]):
            pool.submit(number, j)
        answers = {}
        for number in range(8):
            key, answers_key = pool.wait()
            answers[key] = answers_key
            if number + 4 < 8:
                pool.submit(number + 4, jobs[number + 4])
    finally:
        pool.close()
    assert sorted(answers) == list(range(8)) and all(a.score is not None for a in answers.values())
    build = [answers[i].seconds["build"] for i in range(8)]
    # A worker knows where there is room after its first one. Half of what takes longest: other work is beside this.
    assert sum(b < 0.5 * max(build) for b in build) >= 4, build
    deadline = time.monotonic() + 60
    while folders(commanded) and time.monotonic() < deadline:
        time.sleep(0.1)
    assert not folders(commanded)


class Works:
    """What a worker holds: an item is (what it is like, seconds, whether it kills its worker: "prepared": then)."""

    def __init__(self):
        self._prepared = []

    def prepare(self, item):
        self._prepared.append(item)
        if item[2] == "prepared":
            time.sleep(0.5)
            os.kill(os.getpid(), signal.SIGKILL)

    def __call__(self, item):
        _, seconds, dies = item
        time.sleep(seconds)
        if dies is True:
            os.kill(os.getpid(), signal.SIGKILL)
        return os.getpid(), item in self._prepared, threading.current_thread() is threading.main_thread()


@pytest.fixture
def actors():
    connection = Connection(Cluster(workers=2))
    found = Actors(connection, lambda device: Works(), prepares=True, like=lambda item: item[0])
    yield found
    found.close()
    connection.close()


@pytest.mark.slow
@pytest.mark.xdist_group("faults")
def test_who_gets_what(actors, monkeypatch):
    monkeypatch.setattr("evomerge.study.workers.actors.IDLE_SECONDS", 600.0)  # nobody is asked first, however busy

    def all_of(items):
        for number, item in enumerate(items):
            actors.submit(number, item)
        return dict(actors.wait() for _ in items)

    pids = set()
    while len(pids) < 2:  # both are up
        pids |= {pid for pid, *_ in all_of([("x", 0.5, False), ("y", 0.5, False)]).values()}
    first = all_of([("a", 1, False), ("b", 1, False), ("c", 1, False), ("d", 1, False)])
    assert [first[i][1] for i in range(4)] == [False, False, True, True], "the third and fourth were prepared"
    assert {first[0][0], first[1][0]} == {first[2][0], first[3][0]}
    # Each had one of these last: it gets the one that is like it.
    for items in [("c", 0.1, False), ("d", 0.1, False)], [("d", 0.1, False), ("c", 0.1, False)]:
        again = all_of(items)
        for number, (like, *_) in enumerate(items):
            assert again[number][0] == first["cd".index(like) + 2][0]
    # A worker that dies takes nothing with it: what it prepared is done by another one.
    last = all_of([("k", 0.5, True), ("l", 3, False), ("m", 0.1, False), ("n", 0.1, False)])
    assert isinstance(last[0], Lost) and all(not isinstance(last[i], Lost) for i in (1, 2, 3))
    # One whose preparation kills a worker is not prepared beside the same item again, which would have failed by it.
    innocent = all_of([("o", 2, False), ("p", 2, False), ("q", 0.1, "prepared"), ("r", 0.1, False)])
    assert not any(isinstance(result, Lost) for result in innocent.values())


@pytest.mark.slow
@pytest.mark.xdist_group("faults")
def test_what_is_taken_back_is_not_run(actors):
    for number in range(6):
        actors.submit(number, (str(number), 0.5, False))
    done = [actors.wait()[0]]
    left = set(actors.recall())
    done.append(actors.wait()[0])
    assert len(left) in (3, 4) and not left & set(done)
    for number in range(10, 12):
        actors.submit(number, (str(number), 0.1, False))
    ran = {*done}
    while len(ran) < 8 - len(left):
        ran.add(actors.wait()[0])
    assert ran == {*range(6), 10, 11} - left
    with pytest.raises(RuntimeError, match="nothing was submitted"):
        actors.wait()


@pytest.mark.gpu
def test_on_a_gpu_it_is_built_beside_what_is_scored(sources, small_evaluator):
    """Scores and weights are those of a builder that never prepares, to the bit, and the second model is there."""
    ahead = Counted(sources, "zoo:base", load_evaluator(str(small_evaluator)), "cuda")
    plain = Counted(sources, "zoo:base", load_evaluator(str(small_evaluator)), "cuda")
    jobs = [job(0.1 * i, 0.9 - 0.1 * i, 0.0) for i in range(8)]
    expected = [results(plain.run(j)) for j in jobs]
    found = []
    for this, following in zip(jobs, [*jobs[1:], None], strict=True):
        thread = threading.Thread(target=lambda: following and ahead.prepare(following))  # noqa: B023
        thread.start()
        found.append(results(ahead.run(this)))
        thread.join()
    assert found == expected and len(ahead._merges.models) == 2
