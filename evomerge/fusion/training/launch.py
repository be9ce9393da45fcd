"""A training on several processes: torch's launcher starts this module in each of them, and accelerate joins them."""

from __future__ import annotations

import ctypes
import os
import re
import signal
import subprocess
import sys
import tempfile
from pathlib import Path

from evomerge.errors import EvoMergeError
from evomerge.fusion.alone import alone
from evomerge.fusion.training.run import Run

_DIE_WITH_PARENT = 1  # PR_SET_PDEATHSIG of prctl(2)
# The last line of a traceback, behind what the launcher puts before it.
_ERROR = re.compile(r"^(?:\[rank\d+\]:\s*)?((?:\w+\.)*\w*(?:Error|Exception|Interrupt)\b.*)$")


def launched(run: Run, device: str) -> None:
    """Train by `run.config.processes` processes.

    Raises:
        EvoMergeError: one of them failed, with the last that it said.
    """
    with tempfile.TemporaryDirectory(prefix="evomerge-") as folder:
        file, log = Path(folder) / "run.json", Path(folder) / "log"
        file.write_text(run.to_json(), encoding="utf-8")
        # accelerate's own launcher starts one process where it is told to use the CPU, unless there is MPI.
        command = [
            sys.executable, "-m", "torch.distributed.run", "--nnodes", "1",
            "--nproc_per_node", str(run.config.processes),
            "--rdzv_backend", "c10d", "--rdzv_endpoint", "127.0.0.1:0", "--rdzv_id", f"evomerge-{os.getpid()}",
            "-m", __name__, str(file), device,
        ]  # fmt: skip
        environment = {**os.environ, "OMP_NUM_THREADS": os.environ.get("OMP_NUM_THREADS", "1")}
        if device == "cpu":
            environment["ACCELERATE_USE_CPU"] = "true"
        with log.open("w") as stream:
            done = subprocess.run(
                command, stdin=subprocess.DEVNULL, stdout=stream, stderr=subprocess.STDOUT, env=environment,
                preexec_fn=_die_with_parent, check=False,
            )  # fmt: skip
        if done.returncode:
            raise EvoMergeError(
                f"training {run.name} on {run.config.processes} processes: "
                + _cause(log.read_text(encoding="utf-8", errors="replace"))
            )


def _cause(said: str) -> str:
    """The error of the process that failed first, not the launcher's own about it."""
    found = [m[1] for line in said.splitlines() if (m := _ERROR.match(line.strip()))]
    own = [line for line in found if "ChildFailedError" not in line]
    return (own or found or said.strip().splitlines() or ["failed"])[0]


def _die_with_parent() -> None:
    """No training goes on without the command that started it (Linux; elsewhere the folder's lock keeps others out)."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_DIE_WITH_PARENT, signal.SIGKILL)


def main() -> None:
    """What each process runs: FILE of the run, and its device."""
    launcher = os.getppid()
    _die_with_parent()
    if os.getppid() != launcher:  # it ended before we said so
        sys.exit(1)
    from evomerge.fusion.training.work import train

    file, device = sys.argv[1:]
    run = Run.read(Path(file).read_text(encoding="utf-8"))
    if os.environ.get("RANK", "0") != "0":
        train(run, device, None)
        return
    # Held by the process that writes: the command that started it may be gone before it.
    with alone(Path(run.work)):
        train(run, device, None)


if __name__ == "__main__":
    main()
