"""The vision zoo's script where Pillow is not installed."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

WITHOUT = """
import runpy, sys
sys.modules["PIL"] = None
sys.argv = ["train.py", "--out", "zoo"]
runpy.run_module("evomerge.zoo.vision.train", run_name="__main__")
"""


def test_it_says_what_to_install(tmp_path: Path) -> None:
    env = os.environ | {"PYTHONPATH": str(Path(__file__).parents[2])}
    done = subprocess.run([sys.executable, "-c", WITHOUT], env=env, capture_output=True, text=True, cwd=tmp_path)
    assert done.returncode == 2 and "Traceback" not in done.stderr, done.stderr[-2000:]
    assert "the vision zoo draws pictures by Pillow, which is not installed: pip install" in done.stderr
    assert not (tmp_path / "zoo").exists()
