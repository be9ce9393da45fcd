"""A merge that is killed or interrupted at any moment: a whole checkpoint or none, and the same command works again."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path

import pytest
from safetensors import safe_open

from benchmarks.sized_models import write_models
from tests.merging.sized import command, recipe

pytestmark = [
    pytest.mark.skipif(not Path("/proc/self/fd").is_dir(), reason="looks into the process through /proc"),
    pytest.mark.xdist_group("models to kill"),  # written once
]


@pytest.fixture(scope="module")
def sized(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three models of 100 MB."""
    folder = tmp_path_factory.mktemp("sized")
    assert write_models(folder, hidden=512, inner=1536, layers=12, vocabulary=6000) > 85e6
    return folder


def weights(pid: int) -> Path | None:
    """The file that a process writes weights to, without a name or with a hidden one, as /proc shows it."""
    try:
        for link in Path(f"/proc/{pid}/fd").iterdir():
            target = os.readlink(link)
            if ("(deleted)" in target or "/.weights." in target) and link.stat().st_size > 80e6:
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
        file = weights(pid)
        return file is not None and share(file) >= wanted

    return reached


def named(pid: int, folder: Path) -> bool:
    """When the folder that becomes the target is there."""
    return any(name.startswith(".out.") for name in os.listdir(folder))


MOMENTS = {
    "space taken": at_share(0.0), "a quarter": at_share(0.25), "three quarters": at_share(0.75), "all": at_share(0.99),
    "named": named,
}  # fmt: skip


def changed(change: str, words: list[str]) -> list[str]:
    """The same command line in a process that is another one in something."""
    code = f"import sys, os, signal\n{change}\nfrom evomerge.cli import main\nsys.exit(main(sys.argv[1:]))"
    return [words[0], "-c", code, *words[3:]]


# As on macOS and on file systems without unnamed files.
NAMED_FILES = "del os.O_TMPFILE"


def interruptible() -> None:
    """Where tests run in the background of a shell, SIGINT is ignored by all that they start."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)


def stopped(
    sized: Path, out: Path, moment: Callable[[int, Path], bool], how: int, *options: str, change: str = ""
) -> int | None:
    """Start a merge, send it a signal at a moment; its exit code, or None where it was done before."""
    file = recipe(sized, "della")  # the slowest: there must be time for a moment in between
    words = command(file, out, "--threads", "1", *options)
    words = changed(change, words) if change else words
    process = subprocess.Popen(words, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, preexec_fn=interruptible)
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


HIDDEN = re.compile(r"\.out\.[a-z0-9_]{8}\.part")


def whole(out: Path) -> bool:
    """Whether a checkpoint has all its files, and every tensor of them can be read."""
    with safe_open(out / "model.safetensors", "pt") as f:
        read = [f.get_tensor(name).isfinite().all() for name in f.keys()]  # noqa: SIM118
    return {"config.json", "recipe.yaml"} <= {p.name for p in out.iterdir()} and len(read) > 100 and all(read)


@pytest.mark.timeout(300)
def test_killed_in_the_middle(sized: Path, tmp_path: Path) -> None:
    assert stopped(sized, tmp_path / "out", at_share(0.25), signal.SIGKILL) == -signal.SIGKILL
    assert list(tmp_path.iterdir()) == []


@pytest.mark.ci
@pytest.mark.timeout(300)
def test_killed_between_the_names(sized: Path, tmp_path: Path) -> None:
    """Everything is written, and the folder about to become the target."""
    out = tmp_path / "out"
    change = "from pathlib import Path\nPath.rename = lambda *a: os.kill(os.getpid(), signal.SIGKILL)"
    words = command(recipe(sized, "linear"), out)
    assert subprocess.run(changed(change, words), capture_output=True).returncode == -signal.SIGKILL
    (left,) = tmp_path.iterdir()
    assert HIDDEN.fullmatch(left.name) and whole(left)
    subprocess.run(words, check=True, capture_output=True)
    assert list(tmp_path.iterdir()) == [out] and whole(out)


@pytest.mark.ci
@pytest.mark.timeout(300)
def test_killed_where_files_have_names(sized: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    code = stopped(sized, out, at_share(0.25), signal.SIGKILL, change=NAMED_FILES)
    assert code == -signal.SIGKILL
    (left,) = tmp_path.iterdir()
    assert re.fullmatch(r"\.weights\.[a-z0-9_]{8}\.part", left.name)
    words = command(recipe(sized, "linear"), out)
    subprocess.run(changed(NAMED_FILES, words), check=True, capture_output=True)
    assert list(tmp_path.iterdir()) == [out] and whole(out)
    unnamed = tmp_path / "unnamed"
    subprocess.run(command(recipe(sized, "linear"), unnamed), check=True, capture_output=True)
    name = "model.safetensors"
    assert (out / name).read_bytes() == (unnamed / name).read_bytes()
    assert (out / name).stat().st_mode == (unnamed / name).stat().st_mode


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_killed_at_any_moment(sized: Path, tmp_path: Path) -> None:
    sources = {path: (path.stat().st_mtime_ns, path.stat().st_size) for path in files(sized)}
    out = tmp_path / "out"
    for name, moment in MOMENTS.items():
        code = stopped(sized, out, moment, signal.SIGKILL)
        left = sorted(p.name for p in tmp_path.iterdir())
        if name == "named" and out.exists():
            # A few milliseconds pass between the two names: it was too late, and the checkpoint is whole.
            assert whole(out) and all(n == "out" or HIDDEN.fullmatch(n) for n in left)
        else:
            assert code == -signal.SIGKILL, f"not killed when {name}"
            assert [n for n in left if name != "named" or not HIDDEN.fullmatch(n)] == [], f"killed when {name}"
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


@pytest.mark.ci
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
