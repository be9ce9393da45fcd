"""A training on several processes: accelerate's launcher starts this module in each of them."""

from __future__ import annotations

import ctypes
import os
import signal
import subprocess
import sys
import tempfile
from pathlib import Path

from evomerge.errors import EvoMergeError
from evomerge.fusion.training.run import Run

_DIE_WITH_PARENT = 1  # PR_SET_PDEATHSIG of prctl(2)


def launched(run: Run, device: str) -> None:
    """Train by `run.config.processes` processes.

    Raises:
        EvoMergeError: one of them failed, with the last that it said.
    """
    with tempfile.TemporaryDirectory(prefix="evomerge-") as folder:
        file, log = Path(folder) / "run.json", Path(folder) / "log"
        file.write_text(run.to_json(), encoding="utf-8")
        command = [
            sys.executable, "-m", "accelerate.commands.launch", "--num_processes", str(run.config.processes),
            "--num_machines", "1", "--mixed_precision", "no", "--dynamo_backend", "no", "--main_process_port", "0",
            *(["--cpu"] if device == "cpu" else ["--multi_gpu"]), "-m", __name__, str(file), device,
        ]  # fmt: skip
        environment = {**os.environ, "OMP_NUM_THREADS": os.environ.get("OMP_NUM_THREADS", "1")}
        with log.open("w") as stream:
            done = subprocess.run(
                command, stdin=subprocess.DEVNULL, stdout=stream, stderr=subprocess.STDOUT, env=environment,
                preexec_fn=_die_with_parent, check=False,
            )  # fmt: skip
        if done.returncode:
            said = log.read_text(encoding="utf-8", errors="replace").strip().splitlines()
            errors = [line for line in said if "Error" in line] or said
            raise EvoMergeError(
                f"training {run.name} on {run.config.processes} processes: {(errors or ['failed'])[-1]}"
            )


def _die_with_parent() -> None:
    """No training goes on without the command that started it (Linux; elsewhere the folder's lock keeps others out)."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_DIE_WITH_PARENT, signal.SIGTERM)


def main() -> None:
    """What each process runs: FILE of the run, and its device."""
    from evomerge.fusion.training.work import train

    file, device = sys.argv[1:]
    train(Run.read(Path(file).read_text(encoding="utf-8")), device, None)


if __name__ == "__main__":
    main()
