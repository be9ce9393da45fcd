"""The benchmarks start: what they import is still there. What they measure is theirs."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
SHORT = {
    "search": ["--seeds", "1", "--budget", "3", "--long", "3", "--processes", "1", "--ways", "plain CMA-ES", "ours"],
    "workers": ["--seeds", "2", "--budget", "8", "--long", "8", "--workers", "4", "--processes", "1"],
    "scale": ["--candidates", "150", "--window", "20", "--workers", "1", "4", "--databases", "sqlite"],
    "scale_ray": ["--dispatched", "20", "--candidates", "4", "--rounds", "1"],
}
COMMANDS = sorted(p for p in (ROOT / "benchmarks").glob("*.py") if "__main__" in p.read_text(encoding="utf-8"))


@pytest.mark.slow
@pytest.mark.parametrize("file", COMMANDS, ids=lambda p: p.stem)
def test_it_says_what_it_measures(file: Path) -> None:
    env = os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    done = subprocess.run([sys.executable, str(file), "--help"], env=env, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0 and done.stdout.startswith("usage: "), done.stderr


@pytest.mark.slow
@pytest.mark.timeout(600)
@pytest.mark.parametrize("name", SHORT)
def test_a_short_run_ends(name: str, tmp_path: Path) -> None:
    """The pools of replays stand in for ours, so that they break where those get another face."""
    env = os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [sys.executable, str(ROOT / "benchmarks" / f"{name}.py"), *SHORT[name]], env=env, capture_output=True,
        text=True, cwd=tmp_path,
    )  # fmt: skip
    assert done.returncode == 0 and done.stdout.strip(), done.stderr[-2000:]
