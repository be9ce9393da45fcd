"""Runs a benchmark that is measured seed by seed, as docs/results.md has it, on one seed."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]


def measured(name: str, work: Path) -> dict[str, Any]:
    """The figures of seed 0. The same command again measures nothing: it says the same in little time.

    Args:
        name: Of the file in benchmarks/.
    """
    command = [sys.executable, str(ROOT / "benchmarks" / f"{name}.py"), "--seeds", "0", "--work", str(work / "work")]
    env = os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, env=env, capture_output=True, text=True, cwd=work)
    assert done.returncode == 0, done.stderr[-3000:]
    again = subprocess.run(command, env=env, capture_output=True, text=True, cwd=work, timeout=AGAIN[name])
    assert again.stdout == done.stdout
    found: dict[str, Any] = json.loads(done.stdout)["0"]
    return found


# Seconds that are enough to read what is there.
AGAIN = {"images": 120, "skills": 120, "vision": 180}
