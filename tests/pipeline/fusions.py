"""Fusions of the zoo for tests: small, and short where nothing else is said."""

from __future__ import annotations

import hashlib
import json
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import yaml

from evomerge import zoo

TRAINING = {
    "clm_weight": 0.3, "learning_rate": 2e-4, "warmup_steps": 3, "max_steps": 12, "evaluations": 3,
    "early_stopping_patience": None,
}  # fmt: skip


def fusion_file(folder: Path, documents: int = 40, **changes: Any) -> Path:
    """Write a fusion over the first documents of the zoo's text; keys of a section are added to the usual ones."""
    folder.mkdir(parents=True, exist_ok=True)
    text = zoo.fusion.corpus("chains").read_text(encoding="utf-8").splitlines(keepends=True)[:documents]
    held = zoo.fusion.corpus("chains-held-out").read_text(encoding="utf-8").splitlines(keepends=True)
    (folder / "text.jsonl").write_text("".join(text), encoding="utf-8")
    (folder / "held.jsonl").write_text("".join(held[:5] + held[-5:]), encoding="utf-8")
    data: dict[str, Any] = {
        "kind": "fuse",
        "target": "zoo:pivot",
        "sources": ["zoo:tides", "zoo:roads"],
        "corpus": {"path": "text.jsonl", "held_out": "held.jsonl"},
        "training": TRAINING,
    }
    for key, value in changes.items():
        if value is None:
            data.pop(key, None)
        else:
            data[key] = {**data[key], **value} if isinstance(value, dict) and key in data else value
    file = folder / "fusion.yaml"
    file.write_text(yaml.safe_dump(data), encoding="utf-8")
    return file


def digests(folder: Path, pattern: str = "*") -> dict[str, str]:
    """SHA-256 of every file below a folder that is not hidden, by its place there."""
    files = sorted(f for f in folder.rglob(pattern) if f.is_file() and not f.name.startswith("."))
    return {str(f.relative_to(folder)): hashlib.sha256(f.read_bytes()).hexdigest() for f in files}


def result(out: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((out / "result.json").read_text(encoding="utf-8"))
    return found


def started(file: Path, out: Path, workers: int = 0) -> subprocess.Popen[bytes]:
    """The command, running."""
    command = [sys.executable, "-m", "evomerge", "fuse", str(file), str(out), "--workers", str(workers)]
    return subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)


def killed(file: Path, out: Path, when: Callable[[], bool], patience: float = 120, workers: int = 0) -> None:
    """Start the command and kill it as soon as `when()` holds."""
    process = started(file, out, workers)
    deadline = time.monotonic() + patience
    try:
        while not when():
            assert process.poll() is None, "it ended before it could be killed"
            assert time.monotonic() < deadline
            time.sleep(0.002)
    finally:
        process.send_signal(signal.SIGKILL)
        process.wait()
