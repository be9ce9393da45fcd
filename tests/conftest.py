"""What tests of whole searches share: the zoo's models with an evaluator that takes a moment, and the command line."""

import contextlib
import io
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
from pathlib import Path
from types import SimpleNamespace

import hypothesis
import pytest
import yaml

from evomerge import presets
from tests.servers import mariadb, postgresql  # noqa: F401

ROOT = Path(__file__).resolve().parent.parent


# How long an example takes says more of what else the machine does than of what is tested.
hypothesis.settings.register_profile("evomerge", deadline=None)
hypothesis.settings.load_profile("evomerge")


@pytest.fixture(autouse=True, scope="session")
def interruptible():
    """A shell that starts tests in the background has them ignore Ctrl-C, and what they start inherits it."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


def pytest_configure(config):
    """No test reads or writes the user's cache: a run has its own, shared by its workers and by all that they start.

    Set before any test is imported: some ask for the compiled kernels by then.
    """
    if not hasattr(config, "workerinput"):  # a worker of pytest-xdist inherits it
        folder = tempfile.mkdtemp(prefix="evomerge-tests-")
        os.environ["EVOMERGE_CACHE"] = folder
        config.add_cleanup(lambda: shutil.rmtree(folder, ignore_errors=True))


@pytest.hookimpl(trylast=True)
def pytest_collection_modifyitems(config, items):
    """Tests of one group must run on one worker: what they share takes long to make."""
    if not config.getoption("loadgroup", False):
        return
    apart = [i.nodeid for i in items if any(i.iter_markers("xdist_group")) and "@" not in i.nodeid.rpartition("]")[2]]
    if apart:
        raise pytest.UsageError(f"this pytest-xdist does not group tests under this pytest: {apart[0]}")


@pytest.fixture(scope="session")
def small_evaluator(tmp_path_factory):
    """The quickstart's evaluator on 40 items per split."""
    data = {
        "include_path": str(presets.folder("evaluators") / "zoo"),
        "tasks": [{"name": "kovesh_problems"}, {"name": "kovesh_direction", "weight": 0}],
        "splits": {
            "search": {"share": 0.2, "items": 40},
            "select": {"share": 0.3, "items": 40},
            "test": {"share": 0.5, "items": 60},
        },
        "batch_size": 64,
    }
    path = tmp_path_factory.mktemp("evaluator") / "small.yaml"
    path.write_text(yaml.safe_dump(data))
    return path


@pytest.fixture(scope="session")
def evomerge():
    """Runs the command line in a fresh process; returns the process with `.result`, what --json printed."""

    def run(*args, cwd=None, timeout=280, check=True):
        command = [sys.executable, "-m", "evomerge", *map(str, args)]
        done = subprocess.run(
            command, cwd=cwd, capture_output=True, text=True, timeout=timeout, stdin=subprocess.DEVNULL
        )
        if check:
            assert done.returncode == 0, done.stderr[-3000:]
        done.result = json.loads(done.stdout) if "--json" in args and done.stdout.strip() else None
        return done

    return run


@pytest.fixture(scope="session")
def here():
    """The same in this process, for tests that need no fresh one: imports are paid for once."""
    from evomerge.cli import main

    def run(*args, check=True):
        out, err = io.StringIO(), io.StringIO()
        with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
            code = main([str(a) for a in args])
        if check:
            assert code == 0, err.getvalue()[-3000:]
        result = json.loads(out.getvalue()) if "--json" in args and out.getvalue().strip() else None
        return SimpleNamespace(returncode=code, stdout=out.getvalue(), stderr=err.getvalue(), result=result)

    return run
