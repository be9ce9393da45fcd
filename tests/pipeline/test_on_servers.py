"""Whole searches on database servers: killed, joined, taken over, with the server restarted, and several at once."""

import contextlib
import json
import os
import signal
import sqlite3
import subprocess
import sys
import threading
import time
import urllib.request

import optuna
import pytest

from evomerge.cli.dashboard_server import open_server
from evomerge.errors import StudyError
from evomerge.score import State
from evomerge.study.database import optuna_storage
from evomerge.study.store import Store
from tests.pipeline.searches import BUDGET, asked
from tests.servers import PASSWORD
from tests.study.recorded import sequence

pytestmark = [pytest.mark.xdist_group("whole search"), pytest.mark.slow, pytest.mark.timeout(600)]
PATIENCE = 300


@pytest.fixture(params=["sqlite", "postgresql"])
def storage(request, tmp_path):
    if request.param == "sqlite":
        return f"sqlite:///{tmp_path / 'study.db'}"
    return request.getfixturevalue(request.param).url()


@pytest.fixture
def start(tmp_path):
    """Starts searches in the background; what they print is in `.log`. None is left when the test ends."""
    running = []

    def begin(*args, workers=0, **environment):
        log = tmp_path / f"log{len(running)}"
        command = [sys.executable, "-m", "evomerge", *map(str, args), "--workers", str(workers), "--json"]
        with log.open("w") as err, (tmp_path / f"out{len(running)}").open("w") as out:
            process = subprocess.Popen(
                command, stdin=subprocess.DEVNULL, stdout=out, stderr=err, start_new_session=True,
                env=os.environ | environment,
            )  # fmt: skip
        process.log, process.output = log, tmp_path / f"out{len(running)}"
        running.append(process)
        return process

    yield begin
    for process in running:
        kill(process)


def kill(process):
    process.kill()
    process.wait()
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)


def recorded(storage, study="s"):
    """How many candidates are complete by now."""
    try:
        return sum(t.state is State.COMPLETE for t in Store(storage).open(study).trials())
    except StudyError:
        return 0


def until(holds, *processes):
    deadline = time.monotonic() + PATIENCE
    while not holds():
        ended = [p for p in processes if p.poll() is not None]
        assert not ended, ended[0].log.read_text()[-3000:]
        assert time.monotonic() < deadline, processes[0].log.read_text()[-3000:]
        time.sleep(0.05)


def suspend(process, storage):
    """Stop a driver where it holds no lock on the database, so that it is not through before others have started."""
    while True:
        process.send_signal(signal.SIGSTOP)
        if not storage.startswith("sqlite"):
            return
        try:
            with contextlib.closing(sqlite3.connect(storage.removeprefix("sqlite:///"), timeout=0.2)) as connection:
                connection.execute("BEGIN IMMEDIATE")
                connection.execute("ROLLBACK")
            return
        except sqlite3.OperationalError:
            process.send_signal(signal.SIGCONT)
            time.sleep(0.05)


def ended(process):
    """What a search printed that ended well; no password in it."""
    assert process.wait(PATIENCE) == 0, process.log.read_text()[-3000:]
    printed = process.output.read_text()
    assert PASSWORD not in printed + process.log.read_text()
    return json.loads(printed)


def on(storage, evaluator, out, study="s"):
    args = asked(evaluator, out)
    args[args.index("--study") + 1] = study
    return [*args, "--storage", storage]


def alike(storage, whole):
    """The study's sequence is that of the uninterrupted search on SQLite with one worker."""
    assert sequence(None, url=storage) == sequence(whole[0])


def same_result(result, whole):
    same = ("seed", "candidates", "best", "baselines", "tasks")
    assert {k: result[k] for k in same} == {k: whole[1][k] for k in same}


def test_killed_and_resumed_on_postgresql(postgresql, whole, small_evaluator, start, tmp_path):
    """The driver is killed with candidates in flight; the same command goes on at once, to the same end."""
    storage = postgresql.url()
    args = on(storage, small_evaluator, tmp_path / "out")
    process = start(*args, workers=2)
    until(lambda: recorded(storage) >= 5, process)
    kill(process)
    assert 5 <= recorded(storage) < BUDGET
    result = ended(start(*args))
    alike(storage, whole)
    same_result(result, whole)
    assert result["storage"].startswith("postgresql://") and "***" in result["storage"]
    written = [f for f in (tmp_path / "out").rglob("*") if f.is_file()]
    assert written and not [f for f in written if PASSWORD.encode() in f.read_bytes()]
    with Store(storage).engine.connect() as connection:
        notes = connection.exec_driver_sql("SELECT value_json FROM study_user_attributes").scalars().all()
    assert notes and not [n for n in notes if PASSWORD in n]


def test_the_server_is_restarted_in_the_middle(postgresql, whole, small_evaluator, start, tmp_path):
    storage = postgresql.url()
    process = start(*on(storage, small_evaluator, tmp_path / "out"))
    for after in (3, 10):
        until(lambda after=after: recorded(storage) >= after, process)
        postgresql.stop("immediate")
        time.sleep(2.0)
        postgresql.start()
    same_result(ended(process), whole)
    alike(storage, whole)
    assert "storage postgresql://" in process.log.read_text() and "it answers again" in process.log.read_text()


def test_a_second_driver_is_told_and_joiners_work(storage, whole, small_evaluator, evomerge, start, tmp_path):
    """One joins, another is killed with a candidate in hand; the sequence is that of one worker alone."""
    out = tmp_path / "out"
    args = on(storage, small_evaluator, out)
    driver = start(*args, EVOMERGE_LEASE_SECONDS="600")
    until(lambda: recorded(storage) >= 1, driver)
    suspend(driver, storage)
    doomed, joiner = start(*args, "--join"), start(*args, "--join")
    same_out = evomerge(*args, "--workers", 0, check=False)
    other_out = evomerge(*on(storage, small_evaluator, tmp_path / "other"), "--workers", 0, check=False)
    for done in (same_out, other_out):
        line = done.stderr.splitlines()[-1]
        assert done.returncode == 2 and PASSWORD not in done.stderr
        assert f"is driven by another process (process {driver.pid} on " in line and "--join" in line
    until(lambda: "working for" in doomed.log.read_text() and "working for" in joiner.log.read_text(), driver)
    driver.send_signal(signal.SIGCONT)
    until(lambda: recorded(storage) >= 7, driver)
    kill(doomed)
    result = ended(driver)
    joined = ended(joiner)
    alike(storage, whole)
    same_result(result, whole)
    assert joined["study"] == "s" and joined["jobs"] >= joined["candidates"] >= 3
    said = driver.log.read_text()
    assert said.count(" joined: 1 more worker") == 2 and f"process {doomed.pid} on " in said and " left\n" in said


def test_joined_all_the_way(storage, whole, small_evaluator, start, tmp_path):
    """The driver is killed, another one drives on, and is killed too: what joined works for both, and then ends."""
    out, big = tmp_path / "out", "1000"
    args = on(storage, small_evaluator, out)
    args[args.index("--budget") + 1] = big
    driver = start(*args)
    until(lambda: "scoring the sources" in driver.log.read_text(), driver)
    joiner = start(*args, "--join")
    until(lambda: " joined: 1 more worker" in driver.log.read_text(), driver, joiner)
    reached = recorded(storage) + 6
    until(lambda: recorded(storage) >= reached, driver, joiner)
    kill(driver)
    until(lambda: "is gone; waiting for another" in joiner.log.read_text(), joiner)
    reached = recorded(storage) + 6
    second = start(*args)
    until(lambda: recorded(storage) >= reached, second, joiner)
    kill(second)
    assert joiner.wait(PATIENCE) == 1
    assert "lost its driver" in joiner.log.read_text().splitlines()[-1]
    scored = int(joiner.log.read_text().splitlines()[-1].partition("; ")[2].split()[0])
    assert scored >= 2
    found = sequence(None, url=storage)
    expected = sequence(whole[0])
    assert [t[0] for t in found] == list(range(len(found)))
    assert found[: len(expected)] == expected[: len(found)]


def test_a_joiner_with_other_settings_is_refused(postgresql, small_evaluator, evomerge, start, tmp_path):
    storage = postgresql.url()
    args = on(storage, small_evaluator, tmp_path / "out")
    nobody = evomerge(*args, "--workers", 0, "--join", check=False)
    assert nobody.returncode == 2 and "holds no study" in nobody.stderr.splitlines()[-1]
    driver = start(*args, EVOMERGE_LEASE_SECONDS="600")
    until(lambda: "scoring the sources" in driver.log.read_text(), driver)
    suspend(driver, storage)
    other = evomerge(*args, "--seed", 1, "--workers", 0, "--join", check=False)
    assert other.returncode == 2 and "seed is 1, was 0" in other.stderr.splitlines()[-1]
    driver.send_signal(signal.SIGCONT)
    ended(driver)
    after = evomerge(*args, "--workers", 0, "--join", check=False)
    assert after.returncode == 2 and 'nobody drives study "s"' in after.stderr.splitlines()[-1]


def test_a_driver_that_was_suspended_and_taken_over(postgresql, whole, small_evaluator, start, tmp_path):
    """It wakes, finds that another drives its study, writes nothing and ends."""
    storage = postgresql.url()
    first = start(*on(storage, small_evaluator, tmp_path / "first"), EVOMERGE_LEASE_SECONDS="3")
    until(lambda: recorded(storage) >= 3, first)
    first.send_signal(signal.SIGSTOP)
    time.sleep(3.5)
    second = start(*on(storage, small_evaluator, tmp_path / "second"))
    until(lambda: "goes on: " in second.log.read_text(), second)
    first.send_signal(signal.SIGCONT)
    assert first.wait(PATIENCE) == 1
    line = first.log.read_text().splitlines()[-1]
    assert f"another process has taken it over (process {second.pid} on " in line
    same_result(ended(second), whole)
    alike(storage, whole)


@contextlib.contextmanager
def dashboard(storage):
    """`evomerge dashboard`'s own server, on a thread; gives what asks it, over HTTP."""
    with open_server(storage, "127.0.0.1", 0) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))

        def get(path):
            with opener.open(f"http://127.0.0.1:{server.server_port}{path}", timeout=60) as answer:
                return json.load(answer)

        try:
            yield get
        finally:
            server.shutdown()
            thread.join()


def test_several_searches_and_readers_on_one_storage(postgresql, whole, small_evaluator, evomerge, start, tmp_path):
    storage = postgresql.url()
    names = ("s", "t", "u")
    searches = [start(*on(storage, small_evaluator, tmp_path / n, n)) for n in names]
    seen, pages = set(), {}
    until(lambda: recorded(storage, "s"), *searches)
    with contextlib.ExitStack() as stack:
        get = stack.enter_context(dashboard(storage))
        while any(p.poll() is None for p in searches):
            read(storage, seen)
            for study in get("/api/studies")["study_summaries"]:
                detail = get(f"/api/studies/{study['study_id']}")
                assert detail["name"] == study["study_name"]
                assert [t["number"] for t in detail["trials"]] == list(range(len(detail["trials"])))
                pages.setdefault(study["study_name"], []).append(len(detail["trials"]))
            optuna.get_all_study_summaries(optuna_storage(storage, skip_table_creation=True))
    # Of each study several pages, which grew while it was searched.
    assert all(pages[n] == sorted(pages[n]) and len(set(pages[n])) > 1 for n in names), pages
    rows = evomerge("list", "--storage", storage, "--json").result
    assert sorted(r["study"] for r in rows) == list(names) and len(seen) > 3
    expected = sequence(whole[0])
    for name, process in zip(names, searches, strict=True):
        assert ended(process)["study"] == name
        # What another one has scored costs nothing, so that a budget may reach further.
        assert sequence(None, name, url=storage)[: len(expected)] == expected


def read(storage, seen):
    """Every study, from the beginning."""
    with contextlib.suppress(StudyError):  # not made yet
        for name in Store(storage).names():
            trials = Store(storage).open(name).trials()
            assert [t.number for t in trials] == list(range(len(trials)))
            # What is told has its items.
            assert all(t.score is not None and t.score.items for t in trials if t.state is State.COMPLETE)
            seen.add((name, len(trials)))


def test_a_hybrid_is_joined_in_both_stages(postgresql, small_evaluator, start, tmp_path):
    storage = postgresql.url()
    args = ["search", "hybrid", "--evaluator", str(small_evaluator), "--budget", "24", "--study", "s"]
    alone = ended(start(*args, "--out", tmp_path / "alone"))
    args += ["--storage", storage]
    driver = start(*args, "--out", tmp_path / "out", EVOMERGE_LEASE_SECONDS="600")
    until(lambda: "scoring the sources" in driver.log.read_text(), driver)
    suspend(driver, storage)
    joiner = start(*args, "--out", tmp_path / "joiner", "--join")
    until(lambda: "working for" in joiner.log.read_text(), joiner)
    driver.send_signal(signal.SIGCONT)
    result, joined = ended(driver), ended(joiner)
    assert joiner.log.read_text().count("working for") == 2 and joined["study"] == "s" and joined["candidates"] >= 2
    assert not (tmp_path / "joiner").exists()
    for name in ("s/parameter", "s"):
        assert sequence(None, name, url=storage) == sequence(tmp_path / "alone", name)
    assert {k: result[k] for k in ("candidates", "best")} == {k: alone[k] for k in ("candidates", "best")}
