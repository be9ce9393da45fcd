"""A whole process, measured from outside."""

from __future__ import annotations

import subprocess
import threading
import time
from pathlib import Path


def time_and_memory(command: list[str]) -> tuple[float, int]:
    """Run a process to its end: seconds, and its largest private memory (RssAnon, bytes), looked at every 5 ms.

    Raises:
        RuntimeError: it failed, and what it said.
    """
    started = time.perf_counter()
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
    peak, done = 0, threading.Event()

    def watch() -> None:
        nonlocal peak
        while not done.wait(0.005):
            try:
                status = Path(f"/proc/{process.pid}/status").read_text()
            except OSError:
                return
            peak = max(peak, *(1024 * int(line.split()[1]) for line in status.splitlines() if "RssAnon" in line), 0)

    watcher = threading.Thread(target=watch)
    watcher.start()
    _, errors = process.communicate()
    took = time.perf_counter() - started
    done.set()
    watcher.join()
    if process.returncode:
        raise RuntimeError(f"{' '.join(command)}: exit code {process.returncode}\n{errors[-2000:]}")
    return took, peak
