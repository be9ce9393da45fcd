"""`ray job submit --working-dir . -- evomerge search ...`, end to end, on a Ray head that this test starts on loopback.

The head has ports, a temporary folder and a token of its own, and is ended by its process group: `ray stop` would end
every other Ray on the machine.
"""

import contextlib
import json
import os
import random
import secrets
import shutil
import signal
import socket
import sqlite3
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from types import SimpleNamespace

import pytest

from evomerge.study.store import Store

ROOT = Path(__file__).resolve().parent.parent
BIN = Path(sys.executable).parent
RAY = BIN / "ray"
SERVICES = (
    "port", "ray-client-server-port", "object-manager-port", "node-manager-port", "dashboard-port",
    "dashboard-agent-listen-port", "dashboard-agent-grpc-port", "runtime-env-agent-port", "metrics-export-port",
)  # fmt: skip
WORKER_PORTS = 60
# Candidates of this evaluator take about 0.1 s each, `ray job stop` a second or two to get there.
BUDGET = 80

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]


def free_ports(count):
    """The first of so many free ports in a row: above 20000, outside the system's ephemeral range (from 32768) and
    outside 23000 to 23999, where Ray's client server puts its own."""
    for _ in range(100):
        first = random.randrange(24000, 32000 - count)
        with contextlib.ExitStack() as stack, contextlib.suppress(OSError):
            for port in range(first, first + count):
                stack.enter_context(socket.socket()).bind(("127.0.0.1", port))
            return first
    raise AssertionError("no free ports")


@pytest.fixture(scope="module")
def head():
    """A Ray head with two CPUs; `.environment` is what its command line needs."""
    # Not tmp_path: Ray's sockets lie below it, and a socket's path has at most 107 bytes.
    folder = Path(tempfile.mkdtemp(prefix="evo", dir="/tmp"))
    token = folder / "token"
    token.touch(mode=0o600)
    token.write_text(secrets.token_hex(32))
    first = free_ports(len(SERVICES) + WORKER_PORTS)
    ports = {name: first + i for i, name in enumerate(SERVICES)}
    kept = {k: v for k, v in os.environ.items() if not k.startswith("RAY_")}
    environment = {
        **kept,
        # A job's command is looked up, and run, with what the head was started with.
        "PATH": f"{BIN}{os.pathsep}{os.environ['PATH']}",
        "PYTHONPATH": str(ROOT),
        "OMP_NUM_THREADS": "1",
        "RAY_TMPDIR": str(folder),
        "RAY_AUTH_MODE": "token",
        "RAY_AUTH_TOKEN_PATH": str(token),
        "RAY_API_SERVER_ADDRESS": f"http://127.0.0.1:{ports['dashboard-port']}",
        "RAY_USAGE_STATS_ENABLED": "0",
        # Despite its name: without it Ray takes 127.0.0.1 for the machine's outer address, and listens there.
        "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0",
    }
    services = [f"--{name}={port}" for name, port in ports.items()]
    workers = [
        f"--min-worker-port={first + len(SERVICES)}",
        f"--max-worker-port={first + len(SERVICES) + WORKER_PORTS}",
    ]
    where = ["--node-ip-address=127.0.0.1", "--dashboard-host=127.0.0.1", f"--temp-dir={folder}"]
    size = ["--num-cpus=2", "--num-gpus=0", "--object-store-memory=100000000", "--disable-usage-stats"]
    log = folder / "head.log"
    with log.open("w") as file:
        process = subprocess.Popen(
            [RAY, "start", "--head", "--block", *where, *services, *workers, *size],
            env=environment, cwd=folder, stdin=subprocess.DEVNULL, stdout=file, stderr=file, start_new_session=True,
        )  # fmt: skip
    try:
        deadline = time.monotonic() + 120
        while not all(answers(ports[p]) for p in ("port", "dashboard-port", "dashboard-agent-listen-port")):
            assert process.poll() is None and time.monotonic() < deadline, log.read_text()[-3000:]
            time.sleep(0.2)
        yield SimpleNamespace(environment=environment, ports=ports, folder=folder)
    finally:
        for how in (signal.SIGTERM, signal.SIGKILL):
            with contextlib.suppress(ProcessLookupError, subprocess.TimeoutExpired):
                os.killpg(process.pid, how)
                process.wait(timeout=3)
        shutil.rmtree(folder, ignore_errors=True)


def answers(port):
    with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), timeout=1):
        return True
    return False


@pytest.fixture(scope="module")
def submit(head, small_evaluator, tmp_path_factory):
    """Submits a search from a small folder; returns the CLI's process, with what the job wrote in `.stdout`."""
    folder = tmp_path_factory.mktemp("work")
    shutil.copy(small_evaluator, folder / "small.yaml")
    # The console script, where the package is installed; a checkout is enough for the same command.
    program = ["evomerge"] if (BIN / "evomerge").exists() else [sys.executable, "-m", "evomerge"]

    def run(out, budget=BUDGET, options=(), job=()):
        search = ["search", "--evaluator", "small.yaml", "--budget", str(budget), "--study", "s", "--workers", "2"]
        search += ["--address", "auto", "--out", str(out), "--json"]
        return ray(head, "job", "submit", "--working-dir", ".", *job, "--", *program, *search, *options, cwd=folder)

    return run


def ray(head, *args, cwd=None):
    command = [RAY, *map(str, args)]
    return subprocess.run(
        command, cwd=cwd, env=head.environment, capture_output=True, text=True, timeout=240, stdin=subprocess.DEVNULL
    )


def sequence(out):
    trials = Store(f"sqlite:///{out / 'study.db'}").open("s").trials()
    return [
        (t.number, dict(t.params), t.state, t.reason, t.score and [x.results.tolist() for x in t.score.tasks])
        for t in trials
    ]


def recorded(database):
    if not database.exists():
        return 0
    try:
        with sqlite3.connect(f"file:{database}?mode=ro", uri=True, timeout=5) as connection:
            return connection.execute("select count(*) from trials where state = 'COMPLETE'").fetchone()[0]
    except sqlite3.OperationalError:
        return 0


@pytest.fixture(scope="module")
def undisturbed(here, small_evaluator, tmp_path_factory):
    """The same search in this process, without Ray."""
    out = tmp_path_factory.mktemp("undisturbed")
    here("search", "--evaluator", small_evaluator, "--budget", BUDGET, "--study", "s", "--workers", 0, "--out", out)
    return sequence(out)


def test_a_submitted_search_ends_with_its_outputs_and_goes_on_when_submitted_again(head, submit, undisturbed, tmp_path):
    out = tmp_path / "out"
    done = submit(out, budget=6, job=["--submission-id", "first"])
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-1000:]
    result = json.loads((out / "result.json").read_text())
    assert result["candidates"] == {"complete": 6, "pruned": 0, "failed": 0}
    assert sequence(out) == undisturbed[:6]
    assert (out / "model" / "model.safetensors").is_file()
    logs = ray(head, "job", "logs", "first").stdout
    assert "scoring the sources on the search items" in logs and "2 workers" in logs
    assert "candidates, best" in logs
    # --json: the job's log holds the result too.
    assert '"study": "s"' in logs

    again = submit(out, budget=8)
    assert again.returncode == 0, again.stdout[-3000:] + again.stderr[-1000:]
    assert json.loads((out / "result.json").read_text())["candidates"]["complete"] == 8
    assert sequence(out) == undisturbed[:8]


@pytest.mark.parametrize(
    ("out", "options", "named"), [("runs/first", [], "--out"), ("ABSOLUTE", ["--storage", "study.db"], "--storage")]
)
def test_what_would_vanish_with_the_job_is_refused(submit, tmp_path, out, options, named):
    done = submit(tmp_path / "out" if out == "ABSOLUTE" else out, options=options)
    assert done.returncode == 1
    assert f"would vanish with the job; give {named} an absolute path" in done.stdout
    assert "exit code 2" in done.stdout
    assert not (tmp_path / "out" / "result.json").exists()


def test_stopped_half_way_and_submitted_again_it_ends_the_same(head, submit, undisturbed, tmp_path):
    submitted = submit(tmp_path, job=["--submission-id", "stopped", "--no-wait"])
    assert submitted.returncode == 0, submitted.stdout + submitted.stderr
    deadline = time.monotonic() + 150
    while recorded(tmp_path / "study.db") < 2:
        assert time.monotonic() < deadline, ray(head, "job", "logs", "stopped").stdout[-3000:]
        time.sleep(0.1)
    stopped = ray(head, "job", "stop", "stopped")
    assert stopped.returncode == 0, stopped.stdout + stopped.stderr
    assert "Job 'stopped' was stopped" in ray(head, "job", "status", "stopped").stdout
    assert 2 <= recorded(tmp_path / "study.db") < BUDGET
    assert not (tmp_path / "result.json").exists()
    again = submit(tmp_path)
    assert again.returncode == 0, again.stdout[-3000:] + again.stderr[-1000:]
    assert sequence(tmp_path) == undisturbed


def test_a_wrong_token_is_one_line(head, evomerge, small_evaluator, tmp_path, monkeypatch):
    wrong = tmp_path / "token"
    wrong.touch(mode=0o600)
    wrong.write_text(secrets.token_hex(32))
    for name, value in {**head.environment, "RAY_AUTH_TOKEN_PATH": str(wrong)}.items():
        if name.startswith("RAY_"):
            monkeypatch.setenv(name, value)
    started = time.monotonic()
    address = f"127.0.0.1:{head.ports['port']}"
    done = evomerge(
        "search", "--evaluator", small_evaluator, "--budget", 2, "--address", address, "--out", tmp_path / "out",
        check=False,
    )  # fmt: skip
    assert done.returncode == 2
    assert "no Ray cluster answers there that takes us" in done.stderr and "RAY_AUTH_TOKEN_PATH" in done.stderr
    assert "Traceback" not in done.stderr
    assert time.monotonic() - started < 60
