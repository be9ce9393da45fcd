"""What tests of kills and signals share: searches without start-up, uninterrupted ones, and the counts at the end."""

import json
import os
import subprocess
import sys

import pytest

from tests.faults import cheap
from tests.faults.accounts import sequence


@pytest.fixture(scope="session")
def nursery():
    """Runs a search in a fork of a process that has imported everything; see `nursery`."""
    process = subprocess.Popen(
        [sys.executable, "-m", "tests.faults.nursery"], cwd=cheap.ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE,
        text=True, env=os.environ | {"CHEAP_SECONDS": "0.02"},
    )  # fmt: skip
    assert process.stdout.readline() == "ready\n"

    def run(args, log, after=None):
        print(json.dumps({"args": args, "after": after, "log": str(log)}), file=process.stdin, flush=True)
        return json.loads(process.stdout.readline())

    yield run
    process.kill()
    process.wait()


@pytest.fixture(scope="session")
def alone(nursery, tmp_path_factory):
    """Uninterrupted searches, by the way to search: (sequence, folder), and the seconds that one takes."""
    folder = tmp_path_factory.mktemp("alone")
    file, found = cheap.evaluator(folder), {}

    def of(way):
        if way not in found:
            options, budget, _ = cheap.WAYS[way]
            out = folder / way.replace(" ", "-")
            done = nursery(cheap.asked(file, out, budget, *options, "--workers", 0), folder / "log")
            assert done["code"] == 0, (folder / "log").read_text()[-3000:]
            found[way] = (sequence(f"sqlite:///{out / 'study.db'}"), out), done["seconds"]
        return found[way]

    return file, of


def pytest_terminal_summary(terminalreporter):
    """What kills left, however many processes a run had."""
    for reports in terminalreporter.stats.values():
        for report in reports:
            for name, value in getattr(report, "user_properties", ()):
                if name == "kills" and report.when == "call":
                    terminalreporter.write_line(str(value))
