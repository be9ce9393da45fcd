"""A fusion that is killed in the middle of its training: the same command ends in the bits of one that was not."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.images.conftest import fusion

ROOT = Path(__file__).parents[2]


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_a_killed_fusion_goes_on(tiny: Path, tmp_path: Path) -> None:
    training = {"max_steps": 60, "per_device_train_batch_size": 8, "learning_rate": 1e-3, "save_steps": 5}
    file = fusion(tiny, training=training, name="killed")
    env = os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}

    def command(out: str) -> list[str]:
        return [sys.executable, "-m", "evomerge", "fuse", str(file), str(tmp_path / out)]

    running = subprocess.Popen(command("cut"), env=env, stderr=subprocess.DEVNULL, stdout=subprocess.DEVNULL)
    deadline = time.monotonic() + 300
    while not (tmp_path / "cut" / "work" / "checkpoint-10").is_dir():
        assert running.poll() is None and time.monotonic() < deadline
        time.sleep(0.05)
    running.send_signal(signal.SIGKILL)
    running.wait()
    assert not (tmp_path / "cut" / "model").exists()
    subprocess.run(command("cut"), env=env, check=True, capture_output=True)
    subprocess.run(command("whole"), env=env, check=True, capture_output=True)
    for name in ("unet/diffusion_pytorch_model.safetensors", "styles/styles.safetensors"):
        one, other = ((tmp_path / out / "model" / name).read_bytes() for out in ("cut", "whole"))
        assert one == other
    assert not list((tmp_path / "cut" / "work").glob("checkpoint-*"))
