"""Disks that fill up while a search runs: one message, exit code 1, nothing damaged; the same command goes on.

The disks are real: small file systems (tmpfs), made larger or emptied before the search goes on.
"""

import os
import shutil
import subprocess
import sys

import pytest
import yaml

from evomerge.errors import EvoMergeError
from evomerge.sources import open_source
from evomerge.study.full import full_disks_stop
from tests.faults.disks import PRIVATE, needs_mounts
from tests.servers import PASSWORD
from tests.study.recorded import sequence

SCORE = """
import os, pathlib
import numpy as np

HERE = pathlib.Path(__file__).parent

def score(model, tokenizer, split):
    if (HERE / "fill").exists():  # leaves less than a model needs
        folder = pathlib.Path((HERE / "fill").read_text())
        free = os.statvfs(folder).f_bavail * os.statvfs(folder).f_frsize
        with open(folder / "junk", "ab") as f:
            f.write(bytes(max(0, free - (300 << 10))))
    x = model.get_input_embeddings().weight.detach().double().numpy()
    return {f"{split}-{i}": float(abs(x[i % 90]).sum()) for i in range(20)}
"""


def evaluator(folder):
    (folder / "score.py").write_text(SCORE)
    (folder / "e.yaml").write_text(yaml.safe_dump({"kind": "python", "function": "score.py:score", "tasks": ["t"]}))
    return folder / "e.yaml"


def asked(folder, storage, out):
    return ["search", "--evaluator", str(evaluator(folder)), "--budget", "30", "--study", "s", "--workers", "0",
            "--storage", str(storage), "--out", str(out)]  # fmt: skip


def twice(disk, size, between, command, tmpdir):
    """Run a command on a new disk, do something about the disk, and run it again."""
    needs_mounts()
    disk.mkdir()
    script = (
        f'mount -t tmpfs -o size={size} tmpfs "$1"; cd "$1"; mkdir out; shift; export TMPDIR="$1"; shift; "$@"; '
        f'echo "FIRST $?" >&2; find .. -name "*.part" >&2; {between}; "$@"; code=$?; cp -r out ../kept; exit $code'
    )
    arguments = ["sh", "-c", script, "sh", str(disk), str(tmpdir), sys.executable, "-m", "evomerge", *command]
    done = subprocess.run(
        [*PRIVATE, *arguments], capture_output=True, text=True, timeout=280, stdin=subprocess.DEVNULL
    )
    assert done.returncode == 0, done.stderr[-3000:]
    assert "Traceback" not in done.stderr and "\n../" not in done.stderr, "left behind"
    first, _, _ = done.stderr.partition("FIRST 1\n")
    assert first != done.stderr, done.stderr[-3000:]
    (message,) = [line for line in first.splitlines() if line.startswith("evomerge: error: ")]
    assert "and give the same command again" in message
    return message


@pytest.fixture(scope="module")
def undisturbed(here, tmp_path_factory):
    folder = tmp_path_factory.mktemp("undisturbed")
    here(*asked(folder, folder / "study.db", folder / "out"))
    return sequence(folder)


@pytest.mark.slow
def test_the_databases_disk(undisturbed, tmp_path):
    disk = tmp_path / "disk"
    command = asked(tmp_path, disk / "out" / "study.db", disk / "out")
    message = twice(disk, "1600k", f"mount -o remount,size=50m {disk}", command, "/tmp")
    assert f"{disk}/out/study.db: the disk of the study's database is full (" in message
    assert sequence(tmp_path / "kept") == undisturbed
    assert open_source(str(tmp_path / "kept" / "model")).bytes > 0


@pytest.mark.slow
def test_the_servers_disk(postgresql, undisturbed, tmp_path):
    """A tablespace of a real PostgreSQL server on a file system of 10 MB, without the room for a study's results."""
    disk = postgresql.folder / "disk"
    disk.mkdir()
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=10m", "tmpfs", disk], capture_output=True)
    if mounted.returncode:
        pytest.skip(f"the server's account can see no mount of ours: {mounted.stderr.decode().strip()}")
    try:
        shutil.chown(disk, postgresql.user)
        postgresql.execute(f"CREATE TABLESPACE small LOCATION '{disk}'")
        postgresql.execute("CREATE DATABASE small TABLESPACE small")
        storage = postgresql.url("small")
        command = [sys.executable, "-m", "evomerge", *asked(tmp_path, storage, tmp_path / "out")]
        free = os.statvfs(disk).f_bavail * os.statvfs(disk).f_frsize
        (disk / "junk").write_bytes(bytes(free - (1200 << 10)))
        done = subprocess.run(command, capture_output=True, text=True, timeout=280, stdin=subprocess.DEVNULL)
        (message,) = [line for line in done.stderr.splitlines() if line.startswith("evomerge: error: ")]
        assert done.returncode == 1 and "the server's disk is full; free some" in message, done.stderr[-3000:]
        assert "and give the same command again" in message
        assert "Traceback" not in done.stderr and PASSWORD not in done.stderr
        (disk / "junk").unlink()
        done = subprocess.run(command, capture_output=True, text=True, timeout=280, stdin=subprocess.DEVNULL)
        assert done.returncode == 0, done.stderr[-3000:]
        assert sequence(None, url=storage) == undisturbed
    finally:
        postgresql.execute("DROP DATABASE IF EXISTS small WITH (FORCE)")
        postgresql.execute("DROP TABLESPACE IF EXISTS small")
        subprocess.run(["umount", "--lazy", disk], check=True)


@pytest.mark.slow
@pytest.mark.parametrize("what", ["temporary", "output"])
def test_the_disks_that_models_are_written_to(undisturbed, tmp_path, what):
    disk = tmp_path / "disk"
    (tmp_path / "fill").write_text(str(disk))
    command = asked(tmp_path, tmp_path / "study.db", disk / "out")
    emptied = f"rm {disk}/junk {tmp_path}/fill"
    message = twice(disk, "8m", emptied, command, disk if what == "temporary" else "/tmp")
    full = f"{disk}/out/model: the disk is full; the model needs 9"
    if what == "temporary":
        full = f"{disk}: the disk is full; a candidate that is saved for a moment needs 9"
    assert full in message
    assert sequence(tmp_path) == undisturbed
    assert open_source(str(tmp_path / "kept" / "model")).bytes > 0


@pytest.mark.slow
def test_a_disk_that_is_too_small_from_the_start(tmp_path):
    """Refused before anything is run."""
    needs_mounts()
    disk = tmp_path / "disk"
    disk.mkdir()
    command = asked(tmp_path, tmp_path / "study.db", disk / "out")
    script = 'mount -t tmpfs -o size=500k tmpfs "$1"; shift; exec "$@"'
    arguments = ["sh", "-c", script, "sh", str(disk), sys.executable, "-m", "evomerge", *command]
    done = subprocess.run([*PRIVATE, *arguments], capture_output=True, text=True, timeout=200)
    assert done.returncode == 2
    assert f"--out {disk}/out: the winner needs 9" in done.stderr.splitlines()[-1]
    assert not (tmp_path / "study.db").exists()


def test_errors_that_say_nothing_of_a_disk_stay_what_they_are(tmp_path):
    class DiskFull(Exception):  # as psycopg has it
        sqlstate = "53100"

    url = "postgresql://me:s3cret@host/db"
    for error in (ValueError("x"), FileNotFoundError(2, "no such file"), KeyboardInterrupt()):
        with pytest.raises(type(error)), full_disks_stop(url, tmp_path):
            raise error
    with pytest.raises(EvoMergeError, match="the server's disk is full") as raised, full_disks_stop(url, tmp_path):
        raise RuntimeError("storage") from DiskFull("could not extend file")
    assert "s3cret" not in str(raised.value)
    with pytest.raises(EvoMergeError, match="/f: the disk is full"), full_disks_stop(url, tmp_path):
        raise OSError(28, "No space left on device", str(tmp_path / "f"))
