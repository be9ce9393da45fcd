"""The benchmark of vision merges, one seed: what docs/vision.md claims of three."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


@pytest.mark.slow
@pytest.mark.timeout(1800)  # four minutes of one core, which others may use too
def test_a_merge_answers_in_the_second_language_about_pictures(tmp_path: Path) -> None:
    command = [sys.executable, str(ROOT / "benchmarks" / "vision.py"), "--seeds", "0", "--work", str(tmp_path / "work")]
    env = os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, env=env, capture_output=True, text=True, cwd=tmp_path)
    assert done.returncode == 0, done.stderr[-3000:]
    found = json.loads(done.stdout)["0"]
    assert all(found["held"].values()) and found["held"]
    assert all(found["loads"].values()) and len(found["loads"]) == 3
    against = found["baselines"]
    for name in ("base", "seeing", "japanese"):
        assert against[name]["difference"]["low"] > 0
    assert {"uniform", "vector seeing", "vector japanese", "random search"} <= against.keys()
    # The same command again measures nothing.
    again = subprocess.run(command, env=env, capture_output=True, text=True, cwd=tmp_path, timeout=180)
    assert again.stdout == done.stdout
