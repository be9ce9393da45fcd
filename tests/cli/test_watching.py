"""Events, status and Weights & Biases of a real search: what they say is what the study holds."""

from __future__ import annotations

import hashlib
import importlib.util
import json
import os
import struct
import subprocess
import sys
from collections import Counter
from types import SimpleNamespace

import pytest

from evomerge.errors import InputError
from evomerge.score import State, cost
from evomerge.study.leases import leased
from evomerge.study.status import status
from evomerge.study.store import Store
from evomerge.watching.events import Events
from tests.faults import cheap

WANDB = importlib.util.find_spec("wandb") is not None
BUDGET = 14


@pytest.fixture(scope="module")
def searched(here, tmp_path_factory):
    """A search with a race, watched by all there is."""
    folder = tmp_path_factory.mktemp("watched")
    file, out, events = cheap.evaluator(folder), folder / "out", folder / "events.jsonl"
    patch = pytest.MonkeyPatch()
    patch.setenv("WANDB_MODE", "offline")
    patch.setenv("WANDB_DIR", str(folder))
    patch.setenv("WANDB_CACHE_DIR", str(folder / "cache"))
    patch.setenv("WANDB_DATA_DIR", str(folder / "data"))
    log = ("--wandb", "mine") if WANDB else ()
    done = here(*cheap.asked(file, out, BUDGET, "--workers", 0, "--fidelity", "race", "--events", events, *log))
    patch.undo()
    store = Store(f"sqlite:///{out / 'study.db'}")
    lines = [json.loads(line) for line in events.read_text().splitlines()]
    return SimpleNamespace(
        folder=folder, file=file, out=out, path=events, lines=lines, done=done, store=store, study=store.open("s")
    )


def of(lines, kind):
    return [e for e in lines if e["event"] == kind]


def test_events_of_candidates_are_the_study(searched):
    trials = {t.number: t for t in searched.study.trials()}
    told = of(searched.lines, "trial")
    assert sorted(e["trial"] for e in told) == sorted(trials)
    for e in told:
        trial = trials[e["trial"]]
        assert (e["state"], e["score"], e["cost"]) == (trial.state.value, trial.value, pytest.approx(trial.cost))
        assert e["params"] == pytest.approx(dict(trial.params)) and e["study"] == "s" and not e["replayed"]
        assert (e["seen"], e["stopped"], e["estimate"]) == (trial.seen, trial.stopped, trial.estimate)
        assert e["tasks"] == ({} if trial.score is None else {t.task: t.shown for t in trial.score.tasks})
    last = told[-1]
    states = Counter(t.state for t in trials.values())
    assert states[State.PRUNED] and states[State.COMPLETE]
    assert last["counts"] == {
        "running": 0, "complete": states[State.COMPLETE], "pruned": states[State.PRUNED], "failed": 0
    }
    assert last["spent"]["candidates"] == pytest.approx(cost(trials.values()))
    best = max((t for t in trials.values() if t.value is not None), key=lambda t: (t.value, -t.number))
    assert last["best"]["score"] == best.value and any(e["improved"] for e in told)
    assert {e["trial"] for e in of(searched.lines, "started")} == set(trials)


def test_events_of_what_is_measured_are_the_study(searched):
    (search,) = of(searched.lines, "search")
    assert search["budget"] == {"candidates": BUDGET, "seconds": None} and search["items"] == len(
        searched.study.scores.read("search")["source/maths"].tasks[0].items
    )
    found = {(e["split"], e["model"]): e["score"] for e in of(searched.lines, "measured")}
    for split in ("search", "select", "test"):
        for subject, score in searched.study.scores.read(split).items():
            kind, _, name = subject.partition("/")
            if kind != "trial" or split != "search":
                assert found.pop((split, f"candidate {name}" if kind == "trial" else name)) == score.value
    assert not found
    assert {n: v["score"] for n, v in search["baselines"].items()} == {
        n.partition("/")[2]: s.value for n, s in searched.study.scores.read("search").items() if "trial" not in n
    }
    (result,) = of(searched.lines, "result")
    assert result["result"] == searched.done.result and searched.lines[-1] is result
    times = [e["time"] for e in searched.lines]
    assert times == sorted(times)


def test_a_search_that_goes_on_adds_to_its_events(searched, here):
    """After a kill in the middle of a line, too."""
    with searched.path.open("a") as f:
        f.write('{"event": "tri')
    here(*cheap.asked(searched.file, searched.out, BUDGET, "--workers", 0, "--events", searched.path))
    lines = [json.loads(line) for line in searched.path.read_text().splitlines()]
    assert lines[: len(searched.lines)] == searched.lines
    again = lines[len(searched.lines) :]
    assert all(e["replayed"] for e in of(again, "trial")) and all(e["known"] for e in of(again, "measured"))
    assert of(again, "result")[0]["result"]["best"] == searched.done.result["best"]


def test_events_on_stdout_are_alone_there(searched, here):
    words = cheap.asked(searched.file, searched.out, BUDGET, "--workers", 0, "--events", "-")
    words.remove("--json")
    done = here(*words)
    assert [json.loads(line)["event"] for line in done.stdout.splitlines()][-1] == "result"
    assert "held-out items" in done.stderr


@pytest.mark.slow
def test_a_reader_that_goes_away_ends_no_search(searched):
    words = cheap.asked(searched.file, searched.out, BUDGET, "--workers", "0", "--events", "-")
    words.remove("--json")
    child = subprocess.Popen(
        [sys.executable, "-m", "evomerge", *words], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        env=os.environ | {"PYTHONPATH": str(cheap.ROOT)},
    )  # fmt: skip
    child.stdout.close()
    told = child.stderr.read()
    assert child.wait() == 0, told
    assert told.count("--events stdout: cannot be written") == 1 and "Traceback" not in told


def test_wrong_ways_to_watch_cost_no_time(searched, here, tmp_path):
    def error(*more):
        done = here(*cheap.asked(searched.file, searched.out, BUDGET, "--workers", 0), *more, check=False)
        assert done.returncode == 2, done.stderr
        return done.result["error"]

    assert "stdout holds the result alone; expected --events FILE" in error("--events", "-")
    assert "cannot be written (No such file or directory)" in error("--events", tmp_path / "none" / "e.jsonl")
    assert "--join: --events tells of a search" in error("--join", "--events", tmp_path / "e.jsonl")


def test_a_file_of_something_else_is_left_as_it_is(tmp_path):
    file = tmp_path / "notes.txt"
    file.write_text("mine\nwithout an end")
    with pytest.raises(InputError, match=r"notes.txt: is there already, and holds no events; expected a new file"):
        Events(str(file), sys.stdout, print)
    assert file.read_text() == "mine\nwithout an end"
    for begun in ("", '{"eve', '{"event": "message", "text": "a"}\n{"event'):
        file.write_text(begun)
        with Events(str(file), sys.stdout, print) as events:
            events.say("b")
        assert [json.loads(line)["text"] for line in file.read_text().splitlines()][-1] == "b"


def test_an_error_and_an_interrupt_are_events_too(tmp_path):
    for error, event in ((InputError("wrong"), "error"), (KeyboardInterrupt(), "interrupted")):
        with pytest.raises(type(error)), Events(str(tmp_path / event), sys.stdout, print):
            raise error
        (told,) = [json.loads(line) for line in (tmp_path / event).read_text().splitlines()]
        assert told["event"] == event and told["exit_code"] == (2 if event == "error" else 130)


def digest(file):
    return hashlib.sha256(file.read_bytes()).hexdigest()


def test_status_of_a_finished_search(searched, here, monkeypatch):
    database = searched.out / "study.db"
    before = digest(database)
    trials = searched.study.trials()
    found = here("status", searched.out, "--json").result
    assert found["state"] == "finished" and found["driver"] is None and found["parts"] == []
    assert found["budget"] == {"candidates": BUDGET, "seconds": None}
    assert found["spent"]["candidates"] == pytest.approx(cost(trials), abs=1e-6)
    assert found["candidates"] == {
        "running": 0, "complete": sum(t.state is State.COMPLETE for t in trials),
        "pruned": sum(t.state is State.PRUNED for t in trials), "failed": 0,
    }  # fmt: skip
    result = searched.done.result["best"]
    assert found["winner"] == {
        "trial": result["trial"], "search": result["search"], "select": result["select"],
        "test": result["test"]["score"],
    }  # fmt: skip
    text = here("status", database).stdout
    assert text.startswith("s: finished\n") and f"winner: candidate {result['trial']}" in text
    assert "task_arithmetic: maths " in text
    assert here("status", "s", "--storage", f"sqlite:///{database}").stdout == text
    monkeypatch.chdir(searched.folder)
    assert here("status", "out").stdout == text
    assert digest(database) == before  # nothing was written


def test_status_of_one_that_runs_and_of_one_that_was_cut_off(tmp_path, here):
    from tests.study.test_loop import PARAMETERS, Pool, search

    url = f"sqlite:///{tmp_path / 'study.db'}"
    store = Store(url, create=True)
    search(url, 7, Pool(fails=lambda w: "too heavy" if w.sum() > 1.2 else None))
    study = store.open("s")
    study._parameters = {p.name: p for p in PARAMETERS}
    study.start(7, {p.name: 0.5 for p in PARAMETERS}, {})
    with leased(store, "s"):
        found = status(store, "s")
        assert found.standing == "running" and found.driver is not None and not found.driver.gone
        text = here("status", "--storage", url).stdout
        assert f"s: running, by process {os.getpid()} on " in text and "1 running" in text
    found = status(store, "s")
    failed = [t for t in study.trials() if t.state is State.FAIL]
    assert found.standing == "interrupted" and found.budget is None and found.share is None
    assert found.counts["running"] == 1 and found.counts["failed"] == len(failed) and found.winner is None
    assert list(found.reasons) == ([("too heavy", len(failed))] if failed else [])
    text = here("status", "--storage", url).stdout
    assert "s: interrupted (the same evomerge search command goes on)" in text and "1 cut off" in text
    error = here("status", "x", "--storage", url, check=False)
    assert error.returncode == 2 and 'no study "x"' in error.stderr


@pytest.mark.ci
def test_status_on_a_server(postgresql, here):
    from tests.study.test_loop import search

    url = postgresql.url()
    search(url, 4, name="one")
    search(url, 4, name="two")
    found = here("status", "two", "--storage", url, "--json").result
    assert found["study"] == "two" and found["candidates"]["complete"] == 4
    error = here("status", "--storage", url, check=False)
    assert error.returncode == 2 and "holds 2 studies, name one: one, two" in error.stderr


@pytest.mark.skipif(not WANDB, reason="wandb is not installed")
class TestWandb:
    def test_what_is_logged_is_the_study(self, searched):
        history, summary, config = logged(searched.folder / "wandb")
        trials = {t.number: t for t in searched.study.trials()}
        rows = [r for r in history if "trial" in r]
        assert [r["trial"] for r in rows] == [e["trial"] for e in of(searched.lines, "trial")]
        for r in rows:
            trial = trials[r["trial"]]
            assert r.get("score") == trial.value and r["state"] == trial.state.value
            assert r["params/weight.maths.embeddings"] == pytest.approx(trial.params["weight.maths.embeddings"])
            assert trial.score is None or r["tasks/t"] == trial.score.tasks[0].shown
        best = [r["best"] for r in rows if "best" in r]
        assert best == sorted(best)
        result = searched.done.result
        assert summary["winner/trial"] == result["best"]["trial"]
        assert summary["winner/test"] == result["best"]["test"]["score"]
        assert summary["test/maths"] == result["baselines"]["maths"]["test"]["score"]
        assert config["study"] == "s" and config["budget"] == "14 candidates"
        (table,) = (searched.folder / "wandb").glob("offline-run-*/files/media/table/held-out_*.table.json")
        rows = {row[0]: row[2] for row in json.loads(table.read_text())["data"]}
        assert rows.pop("best") == result["best"]["test"]["score"]
        assert rows == {n: b["test"]["score"] for n, b in result["baselines"].items()}

    def test_nothing_of_the_command_line_is_kept(self, searched):
        for file in (searched.folder / "wandb").rglob("*"):
            if file.is_file():
                # What the search was asked for is W&B's config; the storage is not among it.
                assert b"--budget" not in file.read_bytes() and b"study.db" not in file.read_bytes(), file

    def test_one_that_fails_ends_no_search(self, capsys):
        from evomerge.watching.wandb_log import WandbLog

        said = []
        log = WandbLog("p", {}, said.append)
        with log:
            log._run = SimpleNamespace(log=fails, summary={}, finish=lambda exit_code: None)
            for _ in range(3):
                log._log({"a": 1})
        assert said == ["--wandb: OSError: the network is gone; the search goes on without"]


def fails(values):
    raise OSError("the network is gone")


def logged(folder):
    """History rows, summary and config of an offline run."""
    from wandb.proto import wandb_internal_pb2

    (file,) = folder.glob("offline-run-*/*.wandb")
    history, summary, config = [], {}, {}
    for data in records(file.read_bytes()):
        record = wandb_internal_pb2.Record()
        record.ParseFromString(data)
        if record.HasField("history"):
            history.append({i.key or "/".join(i.nested_key): json.loads(i.value_json) for i in record.history.item})
        if record.HasField("summary"):
            for i in record.summary.update:
                summary[i.key or "/".join(i.nested_key)] = json.loads(i.value_json)
        if record.HasField("run"):
            config |= {i.key: json.loads(i.value_json) for i in record.run.config.update if i.key}
    return history, summary, config


def records(data):
    """The records of a log in LevelDB's format (blocks of 32 KiB), behind W&B's 7 bytes."""
    at, whole = 7, b""
    while at + 7 <= len(data):
        left = 32768 - at % 32768
        if left < 7:
            at += left
            continue
        _, length, kind = struct.unpack("<IHB", data[at : at + 7])
        whole += data[at + 7 : at + 7 + length]
        at += 7 + length
        if kind in (1, 4):  # the whole of it, or its last part
            yield whole
            whole = b""


def test_without_the_package_it_says_what_to_install(here, monkeypatch, tmp_path):
    real = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name, *a: None if name == "wandb" else real(name, *a))
    done = here("search", "--budget", 2, "--out", tmp_path / "out", "--json", "--wandb", check=False)
    assert done.returncode == 2 and "pip install 'evomerge[wandb]'" in done.result["error"]
    assert not (tmp_path / "out").exists()


@pytest.mark.skipif(not WANDB, reason="wandb is not installed")
def test_without_an_account_it_says_how_to_log_in(tmp_path):
    """In a process of its own: W&B keeps what it was told."""
    env = {k: v for k, v in os.environ.items() if not k.startswith("WANDB")} | {
        "HOME": str(tmp_path), "PYTHONPATH": str(cheap.ROOT), "NETRC": str(tmp_path / "netrc"),
    }  # fmt: skip
    done = subprocess.run(
        [sys.executable, "-m", "evomerge", "search", "--budget", "2", "--out", tmp_path / "out", "--wandb"], env=env,
        capture_output=True, text=True, timeout=120, cwd=tmp_path, stdin=subprocess.DEVNULL,
    )  # fmt: skip
    assert done.returncode == 2 and "--wandb: not logged in: wandb login" in done.stderr, done.stderr
