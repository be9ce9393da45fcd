"""A search that is cut off anywhere goes on to the end that it would have come to."""

import contextlib
import json
import os
import random
import signal
import subprocess
import sys
import time

import pytest

from evomerge.study.store import Store
from tests.pipeline.searches import BUDGET, asked
from tests.study.recorded import recorded, sequence

pytestmark = pytest.mark.xdist_group("whole search")


def start(args, workers):
    """A search of its own session, with Ray, whose output nobody reads."""
    return subprocess.Popen(
        [sys.executable, "-m", "evomerge", *args, "--workers", str(workers)],
        stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, start_new_session=True,
    )  # fmt: skip


def kill(process):
    """kill -9 of the driver. Ray's processes notice its death by themselves; a killed session must not leave any."""
    process.kill()
    process.wait()
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)


@pytest.mark.slow  # 100 s; tests/faults/test_kills.py does it 200 times
def test_killed_with_candidates_in_flight_it_goes_on_to_the_same_end(whole, here, small_evaluator, tmp_path):
    """Two workers are evaluating; the search that goes on has none, as a resumed one need not have the same."""
    out, result = whole
    args = asked(small_evaluator, tmp_path)
    process = start(args, workers=2)
    try:
        deadline = time.monotonic() + 200
        while (done := recorded(tmp_path / "study.db")) < 5:
            assert process.poll() is None and time.monotonic() < deadline, f"{done} candidates after its time"
            time.sleep(0.05)
    finally:
        kill(process)
    assert 5 <= recorded(tmp_path / "study.db") < BUDGET
    ends_alike(here(*args, "--workers", 0, "--json").result, tmp_path, result, out)


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_killed_five_times_it_goes_on_to_the_same_end(whole, evomerge, small_evaluator, tmp_path):
    """kill -9 of the driver at five moments drawn over the whole of a run: start, search, select, test, export."""
    out, result = whole
    args = asked(small_evaluator, tmp_path)
    draw = random.Random(int.from_bytes(os.urandom(4), "little"))
    # A whole run is timed first, so that the moments fit however busy the machine is.
    started = time.monotonic()
    evomerge(*args[:-1], tmp_path / "timed", "--workers", 2)
    length = time.monotonic() - started
    for number in range(5):
        # --workers 1 and 2 by turns: a resumed search need not have the workers that the first one had.
        process = start(args, workers=1 + number % 2)
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(draw.uniform(0.05, 1.0) * length)
        kill(process)
    ends_alike(evomerge(*args, "--workers", 2, "--json").result, tmp_path, result, out)


def ends_alike(result, folder, expected, out):
    """A search that was cut off ended as the uninterrupted one: candidates, scores, looks, bytes."""
    assert sequence(folder) == sequence(out)
    same = ("study", "seed", "candidates", "best", "baselines", "tasks")
    assert {k: result[k] for k in same} == {k: expected[k] for k in same}
    weights = "model/model.safetensors"
    assert (folder / weights).read_bytes() == (out / weights).read_bytes()
    looked = [Store(f"sqlite:///{f / 'study.db'}").open("s").notes()["looked"] for f in (folder, out)]
    assert looked[0] == looked[1] == [result["best"]["trial"]]


# Where a process ends itself as kill -9 would, on the Nth call of a function: the moments between two writes.
MOMENTS = [
    ("sqlalchemy.engine.default", "DefaultDialect.do_execute", 12),  # Optuna's tables half made
    ("sqlalchemy.engine.default", "DefaultDialect.do_execute", 40),
    ("optuna.storages", "RDBStorage.set_study_user_attr", 1),  # the study made, its fingerprint not yet
    ("evomerge.study.tables", "ScoreTable.write", 3),  # some sources scored
    ("optuna.storages", "RDBStorage.create_new_trial", 2),  # a candidate about to be recorded
    ("optuna.storages", "RDBStorage.set_trial_state_values", 4),  # its items written, its trial not yet told
    ("evomerge.study.final", "measure", 1),  # select done, test not begun
    ("evomerge.study.store", "Study.mark_winner", 1),  # test done, the winner not marked
    ("safetensors.torch", "save_file", 1),  # a finalist's checkpoint half written
    ("evomerge.pipeline.one_space", "write_checkpoint", 1),  # all but the export done
]


# One process for each moment, begun where everything is imported, which would take most of a fresh one's time.
SUICIDE = """
import importlib, json, os, sys

import alembic.command, cma, datasets, lm_eval.models.huggingface, lm_eval.tasks, matplotlib.backends.backend_agg
import optuna.importance, optuna_dashboard, pandas, scipy.stats, sklearn.ensemble
import transformers.models.llama.modeling_llama
import evomerge.evaluation.harness, evomerge.merging.engine, evomerge.merging.live, evomerge.study.builder
from evomerge.cli import main

def replace(module, name, left):
    owner = module
    *path, last = name.split(".")
    for part in path:
        owner = getattr(owner, part)
    real = getattr(owner, last)
    def counted(*args, **kwargs):
        nonlocal left
        left -= 1
        if left == 0:
            os._exit(9)
        return real(*args, **kwargs)
    setattr(owner, last, counted)

moments = [(importlib.import_module(module), *rest) for module, *rest in json.loads(sys.argv[1])]
codes = []
for moment in moments:
    child = os.fork()
    if not child:
        replace(*moment)
        with open(os.devnull, "w") as sys.stdout:
            code = main(sys.argv[2:])
        sys.stderr.flush()
        os._exit(code)
    codes.append(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
print(json.dumps(codes))
"""


@pytest.mark.slow
def test_ended_between_any_two_writes_it_goes_on_to_the_same_end(whole, here, small_evaluator, tmp_path):
    out, result = whole
    args = [*asked(small_evaluator, tmp_path), "--workers", "0"]
    command = [sys.executable, "-c", SUICIDE, json.dumps(MOMENTS), *args]
    done = subprocess.run(command, capture_output=True, text=True, timeout=280, stdin=subprocess.DEVNULL)
    assert done.returncode == 0, done.stderr[-2000:]
    ended = json.loads(done.stdout)
    assert set(ended) <= {0, 9}, done.stderr[-2000:]
    assert len(ended) == len(MOMENTS) and ended.count(9) >= len(MOMENTS) - 1, ended
    ends_alike(here(*args, "--json").result, tmp_path, result, out)
