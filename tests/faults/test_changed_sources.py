"""A source's file changes while a search runs on it: it stops, and nothing built from the new bytes is recorded."""

import shutil
import subprocess
import sys
import time

import pytest

from evomerge import zoo
from tests.study.recorded import recorded, sequence

pytestmark = pytest.mark.slow


@pytest.fixture
def models(tmp_path):
    return [shutil.copytree(zoo.path(name), tmp_path / "models" / name) for name in ("base", "maths", "kovesh")]


def flip(file):
    """One bit of the last weight, in place: size and inode stay, and what is mapped shows it."""
    with file.open("r+b") as f:
        f.seek(-1, 2)
        byte = f.read(1)
        f.seek(-1, 2)
        f.write(bytes([byte[0] ^ 64]))


@pytest.mark.parametrize("workers", [2, 0])
def test_it_stops_by_name_and_goes_on_when_the_file_is_back(models, here, small_evaluator, tmp_path, workers):
    base, *sources = models
    args = ["search", "--models", *map(str, sources), "--base", str(base), "--evaluator", str(small_evaluator),
            "--budget", "24", "--study", "s", "--fidelity", "full"]  # fmt: skip
    here(*args, "--workers", 0, "--out", tmp_path / "undisturbed")
    out, file = tmp_path / "out", sources[0] / "model.safetensors"
    command = [sys.executable, "-m", "evomerge", *args, "--workers", str(workers), "--out", str(out)]
    with (tmp_path / "stderr").open("w") as stderr:
        search = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=stderr)
    try:
        deadline = time.monotonic() + 200
        while recorded(out / "study.db") < 4:
            assert search.poll() is None and time.monotonic() < deadline
            time.sleep(0.02)
        flip(file)
        search.wait(timeout=100)
    finally:
        search.kill()
    told = (tmp_path / "stderr").read_text()
    assert search.returncode == 1, told[-3000:]
    assert f"evomerge: error: {file}: has changed while it was in use" in told and "Traceback" not in told
    assert recorded(out / "study.db") < 24
    # The same command is refused as long as the file is another ...
    refused = here(*args, "--workers", 0, "--out", out, check=False)
    assert refused.returncode == 2 and "was made with other settings: sources.named.maths" in refused.stderr
    # ... and goes on when it is back.
    flip(file)
    here(*args, "--workers", 0, "--out", out)
    assert sequence(out) == sequence(tmp_path / "undisturbed")
