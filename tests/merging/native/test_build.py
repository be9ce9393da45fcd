"""Building the kernels: once, in the cache folder, by processes that leave each other alone; or not, said once."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

CODE = """
import torch
from evomerge.merging.group import Group
from evomerge.merging.native import library
g = torch.Generator().manual_seed(0)
base, one = torch.randn(300, 300, generator=g), torch.randn(300, 300, generator=g)
print(library() is not None, Group([one], base).add([0.5]).double().sum().item())
"""


def run(cache: Path, **env: str) -> subprocess.CompletedProcess[str]:
    own = os.environ | {"EVOMERGE_CACHE": str(cache)} | env
    return subprocess.run([sys.executable, "-c", CODE], env=own, capture_output=True, text=True, check=True)


def built(cache: Path) -> list[Path]:
    return sorted((cache / "kernels").iterdir())


@pytest.fixture
def bare(tmp_path: Path) -> Path:
    """A PATH without a compiler."""
    folder = tmp_path / "bin"
    folder.mkdir()
    return folder


def test_built_once_and_loaded_from_then_on(tmp_path: Path) -> None:
    if run(tmp_path / "cache").stdout.startswith("False"):
        pytest.skip("no C++ compiler on this machine")
    first = built(tmp_path / "cache")
    stamp = first[0].stat().st_mtime_ns
    assert len(first) == 1
    assert run(tmp_path / "cache").stdout.startswith("True")
    assert [p.stat().st_mtime_ns for p in built(tmp_path / "cache")] == [stamp]


def test_without_a_compiler_torch_does_it_and_says_so(tmp_path: Path, bare: Path) -> None:
    found = run(tmp_path / "cache", PATH=str(bare), CXX="")
    usual = run(tmp_path / "usual")
    assert found.stdout.split() == ["False", usual.stdout.split()[1]]
    assert "no C++ compiler found" in found.stderr and "slower" in found.stderr
    assert found.stderr.count("no C++ compiler found") == 1


def test_a_compiler_that_fails_is_said_and_leaves_nothing(tmp_path: Path, bare: Path) -> None:
    (bare / "c++").write_text("#!/bin/sh\necho 'fatal: no such thing' >&2\nexit 1\n")
    (bare / "c++").chmod(0o755)
    found = run(tmp_path / "cache", CXX=str(bare / "c++"))
    assert found.stdout.startswith("False")
    assert "fatal: no such thing" in found.stderr
    assert built(tmp_path / "cache") == []


def test_a_cache_that_cannot_be_written_is_no_reason_to_fail(tmp_path: Path) -> None:
    (tmp_path / "cache").write_text("a file in its place")
    assert run(tmp_path / "cache").stdout.split()[1] == run(tmp_path / "other").stdout.split()[1]


def test_switched_off(tmp_path: Path) -> None:
    found = run(tmp_path / "cache", EVOMERGE_NATIVE="0")
    assert found.stdout.startswith("False")
    assert found.stderr == ""
