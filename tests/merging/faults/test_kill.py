"""A merge that is killed or interrupted at any moment: a whole checkpoint or none, and the same command works again."""

from __future__ import annotations

import os
import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path

import pytest

from tests.merging.sized import command, recipe, write_models

pytestmark = pytest.mark.skipif(not Path("/proc/self/fd").is_dir(), reason="looks into the process through /proc")


@pytest.fixture(scope="module")
def sized(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three models of 100 MB."""
    folder = tmp_path_factory.mktemp("sized")
    assert write_models(folder, hidden=512, inner=1536, layers=12, vocabulary=6000) > 85e6
    return folder


def unnamed(pid: int) -> Path | None:
    """The file without a name that a process writes weights to, as /proc shows it."""
    try:
        for link in Path(f"/proc/{pid}/fd").iterdir():
            if "(deleted)" in os.readlink(link) and link.stat().st_size > 80e6:
                return link
    except OSError:  # it ended meanwhile
        pass
    return None


def share(file: Path) -> float:
    """How much of a file has been filled, by 64 looks into it."""
    try:
        with file.open("rb") as f:
            size = os.fstat(f.fileno()).st_size
            return sum(any(os.pread(f.fileno(), 64, size * i // 64)) for i in range(64)) / 64
    except OSError:
        return 1.0


def at_share(wanted: float) -> Callable[[int, Path], bool]:
    """When so much of the weights has been written."""

    def reached(pid: int, folder: Path) -> bool:
        file = unnamed(pid)
        return file is not None and share(file) >= wanted

    return reached


def named(pid: int, folder: Path) -> bool:
    """When the folder that becomes the target is there."""
    return any(name.startswith(".out.") for name in os.listdir(folder))


MOMENTS = {
    "space taken": at_share(0.0), "a quarter": at_share(0.25), "three quarters": at_share(0.75), "all": at_share(0.99),
    "named": named,
}  # fmt: skip


def stopped(sized: Path, out: Path, moment: Callable[[int, Path], bool], how: int, *options: str) -> int | None:
    """Start a merge, send it a signal at a moment; its exit code, or None where it was done before."""
    file = recipe(sized, "ties")
    words = command(file, out, "--threads", "1", *options)
    process = subprocess.Popen(words, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)
    deadline = time.monotonic() + 120
    sent = False
    while time.monotonic() < deadline:
        with suppress(subprocess.TimeoutExpired):
            process.wait(0.001)
            break
        if moment(process.pid, out.parent):
            process.send_signal(how)
            sent = True
            break
    process.wait(timeout=60)
    assert process.stderr is not None
    process.stderr.close()
    return process.returncode if sent else None


def files(folder: Path) -> Iterator[Path]:
    yield from (path for path in sorted(folder.rglob("*")) if path.is_file())


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_killed_at_any_moment(sized: Path, tmp_path: Path) -> None:
    sources = {path: (path.stat().st_mtime_ns, path.stat().st_size) for path in files(sized)}
    out = tmp_path / "out"
    seen = []
    for name, moment in MOMENTS.items():
        code = stopped(sized, out, moment, signal.SIGKILL)
        left = sorted(p.name for p in tmp_path.iterdir())
        if name == "named":
            # Between the first name and the last a few milliseconds pass; a hidden folder may be left, and goes below.
            assert code in (-signal.SIGKILL, 0, None)
            assert all(n == "out" or n.startswith(".out.") for n in left)
        else:
            assert code == -signal.SIGKILL and left == [], f"killed when {name}: {left}"
            seen.append(name)
    assert len(seen) == len(MOMENTS) - 1
    whole = out.exists()
    if whole:
        assert {"config.json", "model.safetensors", "recipe.yaml"} <= {p.name for p in out.iterdir()}
    # What a process that was killed in these milliseconds leaves, as the next one finds it.
    for kind in ("part", "steps"):
        (tmp_path / f".out.abcd_123.{kind}").mkdir()
        (tmp_path / f".out.abcd_123.{kind}" / "model.safetensors").write_bytes(b"half")
    subprocess.run(command(recipe(sized, "ties"), out, "--overwrite"), check=True, capture_output=True)
    assert [p.name for p in tmp_path.iterdir()] == ["out"]
    after = {path: (path.stat().st_mtime_ns, path.stat().st_size) for path in files(sized) if path in sources}
    assert {p: s for p, s in after.items() if p.suffix != ".yaml"} == {
        p: s for p, s in sources.items() if p.suffix != ".yaml"
    }


@pytest.mark.timeout(300)
@pytest.mark.parametrize("how", [signal.SIGINT, signal.SIGTERM])
def test_interrupted(how: int, sized: Path, tmp_path: Path) -> None:
    code = stopped(sized, tmp_path / "out", at_share(0.25), how)
    assert code == (130 if how == signal.SIGINT else -signal.SIGTERM)
    assert list(tmp_path.iterdir()) == []


def test_what_is_being_made_is_not_swept(tmp_path: Path) -> None:
    """Two merges into one folder at once: neither takes away what the other is making."""
    from evomerge.merging.scratch import scratch_file, scratch_folder

    with scratch_folder(tmp_path, "out", "part") as first, scratch_folder(tmp_path, "out", "part") as second:
        assert first != second and first.is_dir() and second.is_dir()
        fd, name = scratch_file(tmp_path)
        with scratch_folder(tmp_path, "out", "steps"), scratch_folder(tmp_path, "other", "part"):
            assert first.is_dir() and name.is_file()
        os.close(fd)
        with scratch_folder(tmp_path, "out", "part"):
            assert first.is_dir() and not name.exists()  # nobody's any more
    assert list(tmp_path.iterdir()) == []


def test_what_looks_alike_is_left_alone(tmp_path: Path) -> None:
    from evomerge.merging.scratch import scratch_folder

    mine = [".out.part", ".out.notes.part", ".outer.abcd_123.part", "out.abcd_123.part", ".out.abcd_123.old"]
    for name in mine:
        (tmp_path / name).mkdir()
    (tmp_path / ".out.zzzzzzzz.part").symlink_to(tmp_path / ".out.part")
    with scratch_folder(tmp_path, "out", "part"):
        pass
    assert sorted(p.name for p in tmp_path.iterdir()) == sorted([*mine, ".out.zzzzzzzz.part"])
