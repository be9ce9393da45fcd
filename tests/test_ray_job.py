"""`ray job submit --working-dir . -- evomerge search ...`, end to end, on a Ray head that this test starts on loopback.

A job that was stopped, or whose driver was killed, ends the same when it is submitted again.
"""

import json
import os
import secrets
import shutil
import signal
import subprocess
import sys
import time
from functools import cache

import psutil
import pytest

from evomerge.errors import InputError
from evomerge.study.workers import Cluster
from evomerge.study.workers.connection import Connection
from tests.ray_head import BIN, ray_head, wait_for
from tests.study.recorded import recorded, sequence

# Candidates of this evaluator take about 0.1 s each, `ray job stop` a second or two to get there; a kill comes at once.
BUDGET, KILLED = 80, 24

# What is not slow is what CI shows of the path: killed half-way, submitted again, exported; and clear refusals.
pytestmark = [pytest.mark.timeout(600), pytest.mark.xdist_group("ray_job")]
slow = pytest.mark.slow


@pytest.fixture(scope="module")
def head():
    """A Ray head with two CPUs."""
    with ray_head("--num-cpus=2", "--num-gpus=0") as found:
        yield found


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
        return head.run("job", "submit", "--working-dir", ".", *job, "--", *program, *search, *options, cwd=folder)

    return run


@pytest.fixture(scope="module")
def undisturbed(here, small_evaluator, tmp_path_factory):
    """What the same search finds in this process, without Ray, with as many candidates."""

    @cache
    def run(budget):
        out = tmp_path_factory.mktemp("undisturbed")
        here("search", "--evaluator", small_evaluator, "--budget", budget, "--study", "s", "--workers", 0, "--out", out)
        return sequence(out)

    return run


@slow
def test_a_submitted_search_ends_with_its_outputs_and_goes_on_when_submitted_again(head, submit, undisturbed, tmp_path):
    out = tmp_path / "out"
    done = submit(out, budget=6, job=["--submission-id", "first"])
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-1000:]
    result = json.loads((out / "result.json").read_text())
    assert result["candidates"] == {"complete": 6, "pruned": 0, "failed": 0}
    assert sequence(out) == undisturbed(8)[:6]
    assert (out / "model" / "model.safetensors").is_file()
    logs = head.run("job", "logs", "first").stdout
    assert "scoring the sources on the search items" in logs and "2 workers" in logs
    assert "1 candidate, best" in logs
    # --json: the job's log holds the result too.
    assert '"study": "s"' in logs

    again = submit(out, budget=8)
    assert again.returncode == 0, again.stdout[-3000:] + again.stderr[-1000:]
    assert json.loads((out / "result.json").read_text())["candidates"]["complete"] == 8
    assert sequence(out) == undisturbed(8)


@slow
@pytest.mark.parametrize(
    ("out", "options", "named"), [("runs/first", [], "--out"), ("ABSOLUTE", ["--storage", "study.db"], "--storage")]
)
def test_what_would_vanish_with_the_job_is_refused(submit, tmp_path, out, options, named):
    done = submit(tmp_path / "out" if out == "ABSOLUTE" else out, options=options)
    assert done.returncode == 1
    assert f"would vanish with the job; give {named} an absolute path" in done.stdout
    assert "exit code 2" in done.stdout
    assert not (tmp_path / "out" / "result.json").exists()


def stop(head, name, out):
    """As the user does."""
    stopped = head.run("job", "stop", name)
    assert stopped.returncode == 0, stopped.stdout + stopped.stderr
    assert f"Job '{name}' was stopped" in head.run("job", "status", name).stdout


def kill(head, name, out):
    """SIGKILL of the search itself, as the system does where memory is out."""
    lines = {p: p.info["cmdline"] or [] for p in psutil.process_iter(["cmdline"])}
    (driver,) = [p for p, line in lines.items() if str(out) in line and "search" in line and "submit" not in line]
    driver.send_signal(signal.SIGKILL)
    wait_for(lambda: f"Job '{name}' failed" in head.run("job", "status", name).stdout, 60)


@pytest.mark.ci
@pytest.mark.parametrize(("cut_off", "budget"), [pytest.param(stop, BUDGET, marks=slow), (kill, KILLED)])
def test_cut_off_half_way_and_submitted_again_it_ends_the_same(
    cut_off, budget, head, submit, undisturbed, here, tmp_path
):
    name, out = cut_off.__name__, tmp_path / "out"
    submitted = submit(out, budget, job=["--submission-id", name, "--no-wait"])
    assert submitted.returncode == 0, submitted.stdout + submitted.stderr
    wait_for(lambda: recorded(out / "study.db") >= 2, 150, lambda: head.run("job", "logs", name).stdout[-3000:])
    cut_off(head, name, out)
    assert 2 <= recorded(out / "study.db") < budget
    assert not (out / "result.json").exists()
    again = submit(out, budget)
    assert again.returncode == 0, again.stdout[-3000:] + again.stderr[-1000:]
    assert sequence(out) == undisturbed(budget)
    # The result is a plain checkpoint, and the study's candidates can be written from elsewhere.
    assert loads(out / "model")
    here("export", out, tmp_path / "third", "--trial", 3)
    assert loads(tmp_path / "third")


def loads(folder):
    """Whether transformers loads a checkpoint and generates by it."""
    from transformers import AutoModelForCausalLM, AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(folder, local_files_only=True)
    model = AutoModelForCausalLM.from_pretrained(folder, local_files_only=True)
    ids = tokenizer("1 + 1 =", return_tensors="pt").input_ids
    return model.generate(ids, max_new_tokens=2, do_sample=False).shape[1] > ids.shape[1]


@pytest.fixture
def told(head, monkeypatch):
    """Sets what a command line needs to know of the head."""
    for key, value in head.environment.items():
        if key.startswith("RAY_"):
            monkeypatch.setenv(key, value)
    return monkeypatch


def search(evomerge, evaluator, address, out, budget=2, **options):
    return evomerge(
        "search", "--evaluator", evaluator, "--budget", budget, "--study", "s", "--address", address, "--out", out,
        **options,
    )  # fmt: skip


@slow
@pytest.mark.parametrize("kind", ["auto", "address", "client_address"])
def test_each_kind_of_address(kind, head, told, evomerge, small_evaluator, undisturbed, tmp_path):
    address = getattr(head, kind, kind)
    if kind == "auto":  # else it takes any Ray on the machine; a job has it from its head
        told.setenv("RAY_ADDRESS", head.address)
    search(evomerge, small_evaluator, address, tmp_path, budget=6)
    assert sequence(tmp_path) == undisturbed(8)[:6]
    assert loads(tmp_path / "model")


@pytest.mark.ci
@pytest.mark.parametrize("kind", ["address", pytest.param("client_address", marks=slow)])
def test_a_wrong_token_is_one_line(kind, head, told, evomerge, small_evaluator, tmp_path):
    expired = tmp_path / "token"
    expired.touch(mode=0o600)
    expired.write_text(secrets.token_hex(32))
    told.setenv("RAY_AUTH_TOKEN_PATH", str(expired))
    address = getattr(head, kind)
    started = time.monotonic()
    done = search(evomerge, small_evaluator, address, tmp_path / "out", check=False)
    assert done.returncode == 2
    assert f"--address {address}: the Ray cluster there does not take this token" in done.stderr
    assert "RAY_AUTH_TOKEN_PATH" in done.stderr and expired.read_text() not in done.stderr
    assert "Traceback" not in done.stderr
    # Most of it goes to imports: under a second to ask.
    assert time.monotonic() - started < 40


# In a process of its own, which has Ray of its own at the end.
PUT_RIGHT = """
import os, sys
from evomerge.errors import InputError
from evomerge.study.workers import Cluster
from evomerge.study.workers.connection import Connection

address, right, wrong = sys.argv[1:]
for token in (wrong, right):
    os.environ["RAY_AUTH_TOKEN_PATH"] = token
    try:
        connection = Connection(Cluster(address, workers=1))
    except InputError as e:
        print("refused" if "does not take this token" in str(e) else e)
    else:
        print("joined", connection.joined)
        connection.close()
os.environ["RAY_AUTH_TOKEN_PATH"] = wrong
connection = Connection(Cluster(workers=1))
print("joined", connection.joined)
connection.close()
"""


@slow
def test_a_token_that_is_put_right_in_the_same_process(head, told, tmp_path):
    """And Ray of that process's own, with another token, after that."""
    wrong = tmp_path / "token"
    wrong.touch(mode=0o600)
    wrong.write_text(secrets.token_hex(32))
    command = [sys.executable, "-c", PUT_RIGHT, head.address, os.environ["RAY_AUTH_TOKEN_PATH"], wrong]
    done = subprocess.run(command, capture_output=True, text=True, timeout=250)
    assert done.stdout.splitlines() == ["refused", "joined True", "joined False"], done.stderr[-3000:]


@slow
@pytest.mark.parametrize(
    ("address", "expected"),
    [("127.0.0.1:{ray-client-server-port}", "or ray://HOST:PORT"), ("ray://127.0.0.1:{port}", "without ray://")],
)
def test_the_wrong_port_of_the_right_cluster(address, expected, head, told):
    with pytest.raises(InputError, match=f"Ray answers there, but not on this kind of port; .*{expected}"):
        Connection(Cluster(address.format(**head.ports)))


@pytest.mark.ci
def test_more_gpus_than_the_cluster_has(head, told, evomerge, small_evaluator, tmp_path):
    done = search(
        lambda *args, **kw: evomerge(*args, "--gpus-per-worker", 2, **kw), small_evaluator, head.address, tmp_path,
        check=False,
    )  # fmt: skip
    assert done.returncode == 2
    assert "--gpus-per-worker 2: asked for 1 worker with 2 GPUs each" in done.stderr
    assert "none to give: 1 machine with no GPU and 2 CPUs" in done.stderr


# Run in a process of its own: this one stays without Ray.
NOTE_VERSION = """
import json, sys
from ray._common.usage import usage_constants
from ray._raylet import GcsClient
from ray._private.ray_constants import KV_NAMESPACE_CLUSTER
client, key = GcsClient(address=sys.argv[1]), usage_constants.CLUSTER_METADATA_KEY
noted = json.loads(client.internal_kv_get(key, KV_NAMESPACE_CLUSTER))
print(noted["ray_version"])
client.internal_kv_put(key, json.dumps(noted | {"ray_version": sys.argv[2]}).encode(), True, KV_NAMESPACE_CLUSTER)
"""


def note_version(head, version):
    """Overwrite what a head has noted of itself; returns what it was."""
    done = subprocess.run(
        [sys.executable, "-c", NOTE_VERSION, head.address, version], env=head.environment, capture_output=True,
        text=True,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


@slow
def test_another_version_of_ray(head, told, evomerge, small_evaluator, tmp_path):
    """The head says that it is of another version; the check is Ray's own."""
    own = note_version(head, "2.1.0")
    try:
        done = search(evomerge, small_evaluator, head.address, tmp_path, check=False)
    finally:
        note_version(head, own)
    assert done.returncode == 2
    line = done.stderr.splitlines()[-1]
    assert "the cluster runs another version of Ray or Python than this process" in line and "Ray: 2.1.0" in line
