"""Building the kernels: once, in the cache folder, by processes that leave each other alone; or not, said once."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import time
from pathlib import Path

import pytest

CODE = """
from concurrent.futures import ThreadPoolExecutor
import torch
from evomerge.merging.group import Group
from evomerge.merging.native import library
with ThreadPoolExecutor(3) as pool:  # as a first merge asks for them, from several threads at once
    list(pool.map(lambda _: library(), range(3)))
g = torch.Generator().manual_seed(0)
base, one = torch.randn(300, 300, generator=g), torch.randn(300, 300, generator=g)
print(library() is not None, Group([one], base).add([0.5]).double().sum().item())
"""


def quick(folder: Path) -> str:
    """The compiler without its optimisations, which take most of the time; the same results."""
    script, compiler = folder / "quick-c++", shutil.which("c++")
    if not script.exists() and compiler:
        script.write_text(f'#!/bin/sh\nexec {compiler} "$@" -O0\n')
        script.chmod(0o755)
    return str(script)


def run(cache: Path, **env: str) -> subprocess.CompletedProcess[str]:
    own = os.environ | {"EVOMERGE_CACHE": str(cache), "CXX": quick(cache.parent)} | env
    return subprocess.run([sys.executable, "-c", CODE], env=own, capture_output=True, text=True, check=True)


def built(cache: Path) -> list[Path]:
    return sorted((cache / "kernels").iterdir())


def skip_without_compiler(done: subprocess.CompletedProcess[str]) -> None:
    if done.stdout.startswith("False"):
        pytest.skip("no C++ compiler on this machine")


@pytest.fixture
def bare(tmp_path: Path) -> Path:
    """A PATH without a compiler."""
    folder = tmp_path / "bin"
    folder.mkdir()
    return folder


@pytest.mark.ci
def test_built_once_and_loaded_from_then_on(tmp_path: Path) -> None:
    skip_without_compiler(run(tmp_path / "cache", CXX=""))
    first = built(tmp_path / "cache")
    stamp = first[0].stat().st_mtime_ns
    assert len(first) == 1
    assert run(tmp_path / "cache", CXX="").stdout.startswith("True")
    assert [p.stat().st_mtime_ns for p in built(tmp_path / "cache")] == [stamp]


@pytest.mark.ci
def test_without_a_compiler_torch_does_it_and_says_so(tmp_path: Path, bare: Path) -> None:
    found = run(tmp_path / "cache", PATH=str(bare), CXX="")
    usual = run(tmp_path / "usual")
    assert found.stdout.split() == ["False", usual.stdout.split()[1]]
    assert "no C++ compiler found" in found.stderr and "slower" in found.stderr
    assert found.stderr.count("no C++ compiler found") == 1


@pytest.mark.ci
def test_a_compiler_that_fails_is_said_and_remembered(tmp_path: Path, bare: Path) -> None:
    calls = tmp_path / "calls"
    (bare / "c++").write_text(f"#!/bin/sh\necho called >> {calls}\necho 'fatal: no such thing' >&2\nexit 1\n")
    (bare / "c++").chmod(0o755)
    for _ in range(2):
        found = run(tmp_path / "cache", CXX=str(bare / "c++"))
        assert found.stdout.startswith("False")
        assert "fatal: no such thing" in found.stderr
    (left,) = built(tmp_path / "cache")
    assert left.suffix == ".failed" and str(left) in found.stderr
    assert calls.read_text().count("called") == 1
    day_before = time.time() - 25 * 3600
    os.utime(left, (day_before, day_before))  # a full disk or a busy machine passes
    run(tmp_path / "cache", CXX=str(bare / "c++"))
    assert calls.read_text().count("called") == 2


@pytest.mark.ci
def test_a_library_that_cannot_be_loaded_is_built_again(tmp_path: Path) -> None:
    cache = tmp_path / "cache"
    skip_without_compiler(run(cache))
    (file,) = built(cache)
    for damage in (b"", file.read_bytes()[:100]):
        file.unlink()
        file.write_bytes(damage)
        assert run(cache).stdout.startswith("True")
        assert built(cache) == [file] and file.stat().st_size > 1000


@pytest.mark.slow
@pytest.mark.skipif(not hasattr(os, "getuid"), reason="no POSIX owners")
def test_nothing_is_run_that_others_could_have_put_there(tmp_path: Path) -> None:
    cache, temporary = tmp_path / "cache", tmp_path / "temporary"
    temporary.mkdir()
    skip_without_compiler(run(cache))
    (file,) = built(cache)
    assert file.stat().st_mode & 0o777 == 0o700 and file.parent.stat().st_mode & 0o777 == 0o700
    # Others may write to it: not run, but built anew.
    before = file.stat().st_ino
    file.chmod(0o722)
    assert run(cache).stdout.startswith("True")
    assert file.stat().st_mode & 0o777 == 0o700 and file.stat().st_ino != before
    # A link in its place, and a folder that is a link: neither is followed.
    elsewhere = shutil.move(file, tmp_path / file.name)
    file.symlink_to(elsewhere)
    assert run(cache).stdout.startswith("True")
    assert not file.is_symlink()
    shutil.move(cache / "kernels", tmp_path / "kernels")
    (cache / "kernels").symlink_to(tmp_path / "kernels")
    assert run(cache, TMPDIR=str(temporary)).stdout.startswith("True")
    own = temporary / f"evomerge-{os.getuid()}"
    assert [p.name for p in (own / "kernels").iterdir()] == [file.name]
    # A folder that everybody may write to; the user's own link to a cache is followed.
    cache.chmod(0o777)
    shutil.rmtree(own)
    assert run(cache, TMPDIR=str(temporary)).stdout.startswith("True")
    assert (own / "kernels" / file.name).is_file()
    (tmp_path / "link").symlink_to(tmp_path / "linked")
    (tmp_path / "linked").mkdir()
    assert run(tmp_path / "link").stdout.startswith("True")
    assert built(tmp_path / "linked")


@pytest.mark.skipif(not hasattr(os, "getuid"), reason="no POSIX owners")
def test_folders_taken_by_somebody_else_are_left_alone(tmp_path: Path) -> None:
    """Both of them: the kernels are built for one process, in a folder that goes with it."""
    cache, temporary = tmp_path / "cache", tmp_path / "temporary"
    taken = [cache / "kernels", temporary / f"evomerge-{os.getuid()}"]
    for folder in taken:
        folder.mkdir(parents=True)
        if os.getuid() == 0:
            os.chown(folder, 12345, 12345)
        else:
            folder.rmdir()
            folder.symlink_to(tmp_path)
    found = run(cache, TMPDIR=str(temporary))
    skip_without_compiler(found)
    assert found.stdout.startswith("True") and found.stderr == ""
    assert sorted(temporary.iterdir()) == taken[1:] and not list(tmp_path.rglob("*.so"))


@pytest.mark.ci
def test_no_getuid_and_nowhere_to_build_are_no_reason_to_fail(tmp_path: Path) -> None:
    """A system without POSIX owners (Windows); then none of the places can be written to."""
    skip_without_compiler(run(tmp_path / "cache"))
    own = os.environ | {"EVOMERGE_CACHE": str(tmp_path / "cache"), "CXX": quick(tmp_path)}
    code = "import os, tempfile\ndel os.getuid\n" + CODE
    found = subprocess.run([sys.executable, "-c", code], env=own, capture_output=True, text=True, check=True)
    assert found.stdout.startswith("True")
    (tmp_path / "file").write_text("a file in its place")
    own["EVOMERGE_CACHE"] = str(tmp_path / "file")
    code = f"import tempfile\ntempfile.tempdir = {str(tmp_path / 'file')!r}\n" + CODE
    found = subprocess.run([sys.executable, "-c", code], env=own, capture_output=True, text=True, check=True)
    assert found.stdout.startswith("False")
    assert re.search(r"kernels could not be built .* slower: .*file", found.stderr)


@pytest.mark.ci
def test_a_cache_that_cannot_be_written_is_no_reason_to_fail(tmp_path: Path) -> None:
    (tmp_path / "cache").write_text("a file in its place")
    assert run(tmp_path / "cache").stdout.split()[1] == run(tmp_path / "other").stdout.split()[1]


def test_switched_off(tmp_path: Path) -> None:
    found = run(tmp_path / "cache", EVOMERGE_NATIVE="0")
    assert found.stdout.startswith("False")
    assert found.stderr == ""
