"""Whole searches whose candidates are scored by a command."""

import json
import os
import signal
import subprocess
import sys
import time

import psutil
import pytest
import yaml

from evomerge.score import State
from tests.study.recorded import recorded, sequence

# Reads the checkpoint by itself, so that it starts in no time; a result for each item, which merges differ in.
PROGRAM = """
import hashlib, json, pathlib, sys, time

weights = pathlib.Path(sys.argv[1], "model.safetensors").read_bytes()
mark, pids = pathlib.Path("slow"), pathlib.Path("pids")
if mark.exists():
    import os
    with pids.open("a") as f:
        f.write(f"{os.getpid()} {sys.argv[1]}\\n")
    while mark.exists():
        time.sleep(0.05)
share = hashlib.sha256(weights).digest()[0] / 255
results = {}
for line in open(sys.argv[2]):
    item = json.loads(line)
    draw = hashlib.sha256(weights[-64:] + item["prompt"].encode()).digest()[0] / 255
    results[item["evomerge_id"]] = float(draw < share)
json.dump({"score": results}, open(sys.argv[3], "w"))
"""


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "program.py").write_text(PROGRAM)
    (tmp_path / "items.jsonl").write_text("\n".join(json.dumps({"prompt": f"item {i}"}) for i in range(400)))
    command = [sys.executable, "-I", "program.py", "{model}", "{items}", "{output}"]
    data = {"kind": "command", "command": command, "items": "items.jsonl", "tasks": ["score"], "timeout": 100}
    (tmp_path / "scratch").mkdir()
    (tmp_path / "e.yaml").write_text(yaml.safe_dump(data | {"scratch": str(tmp_path / "scratch")}))
    return tmp_path


def asked(folder, out):
    return ["search", "--evaluator", str(folder / "e.yaml"), "--budget", "6", "--study", "s", "--out", str(out)]


def test_check_and_evaluate_know_it(here, folder):
    told = here("check", folder / "e.yaml").stdout
    assert "evaluator, in order" in told and f"program.py '{{model}}' '{{items}}' '{{output}}', in {folder}" in told
    assert "timeout: 100 s for each candidate" in told
    score = here("evaluate", "zoo:maths", "--evaluator", folder / "e.yaml", "--json").result
    assert score["tasks"]["score"]["items"] > 50 and 0 <= score["score"] <= 1
    (folder / "program.py").write_text("import sys; sys.exit('no such thing')")
    done = here("evaluate", "zoo:maths", "--evaluator", folder / "e.yaml", check=False)
    assert done.returncode == 2
    assert "zoo:maths cannot be scored by" in done.stderr and "its stderr ends: no such thing" in done.stderr


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_a_race_with_workers_one_of_which_is_killed(here, folder):
    """The same as without workers; the killed one's command ends, and what was saved for it goes."""
    here(*asked(folder, folder / "undisturbed"), "--workers", 0)
    (folder / "slow").touch()
    command = [sys.executable, "-m", "evomerge", *asked(folder, folder / "out"), "--workers", "2"]
    with (folder / "stderr").open("w") as stderr:
        search = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=stderr)
    try:
        # Baselines and sources pass; then a candidate that was saved is waited for.
        saved = wait_for(lambda: next((x.split() for x in lines(folder) if "/scratch/" in x), None), release=folder)
        worker = psutil.Process(int(saved[0])).parent()
        assert "ray::_Worker" in " ".join(worker.cmdline())
        os.kill(worker.pid, signal.SIGKILL)
        wait_for(lambda: not psutil.pid_exists(int(saved[0])))
        wait_for(lambda: not os.path.exists(saved[1]))
        (folder / "slow").unlink(missing_ok=True)
        search.wait(timeout=300)
    finally:
        search.kill()
    assert search.returncode == 0, (folder / "stderr").read_text()[-3000:]
    assert sequence(folder / "out") == sequence(folder / "undisturbed")
    states = [t[2] for t in sequence(folder / "out")]
    assert State.PRUNED in states and State.FAIL not in states and recorded(folder / "out" / "study.db")
    assert not list((folder / "scratch").iterdir())


def lines(folder):
    return (folder / "pids").read_text().splitlines() if (folder / "pids").exists() else []


def wait_for(condition, seconds=200, release=None):
    """Wait for something; meanwhile sources, which are not saved, are let through."""
    deadline = time.monotonic() + seconds
    while not (found := condition()):
        assert time.monotonic() < deadline
        if release is not None and lines(release):
            (release / "slow").unlink(missing_ok=True)
            time.sleep(0.3)
            (release / "slow").touch()
        time.sleep(0.05)
    return found
