"""Build and load kernels: a shared library, compiled once for a machine and kept in the user's cache folder."""

from __future__ import annotations

import ctypes
import hashlib
import logging
import os
import platform
import shutil
import subprocess
import tempfile
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from evomerge.cache import VARIABLE, cache_folder
from evomerge.merging.native.private import check_file, private_folder

log = logging.getLogger(__name__)

# No contraction into fused multiply-adds and no reordering: results do not depend on the machine's vectors.
FLAGS = ("-O3", "-march=native", "-std=c++17", "-shared", "-fPIC", "-ffp-contract=off", "-fno-math-errno",
         "-fno-trapping-math", "-fno-strict-aliasing")  # fmt: skip
# Wide vectors pay here: GCC and clang take half of AVX-512 on their own.
WIDE = ("-mprefer-vector-width=512",) if platform.machine() in ("x86_64", "AMD64") else ()
# Set to "0" to do without: everything runs on torch and NumPy, slower and to the same bits.
SWITCH = "EVOMERGE_NATIVE"
TIMEOUT = 120
# Seconds after which a compiler that failed is asked again: a full disk or a busy machine passes.
RETRY = 24 * 3600


@dataclass(frozen=True)
class Kernels:
    """What is built into one library.

    Attributes:
        name: What they are for, in a word.
        source: The C++ file; headers beside it belong to it. It defines `int32_t evomerge_version()`.
        without: What happens where there is none, in words.
    """

    name: str
    source: Path
    without: str


MERGING = Kernels(
    "merge",
    Path(__file__).parent / "kernels.cpp",
    "merging runs on torch alone, to the same result, several times slower",
)


class BuildError(Exception):
    """There are no kernels to be had, and why."""


_loading = threading.Lock()


def library(kernels: Kernels = MERGING) -> ctypes.CDLL | None:
    """The loaded kernels; None where they cannot be built (said once, as a warning) or are switched off."""
    with _loading:  # by one thread, while the others wait
        return _library(kernels)


@cache
def _library(kernels: Kernels) -> ctypes.CDLL | None:
    if os.environ.get(SWITCH) == "0":
        return None
    compiler = _compiler()
    if compiler is None:
        log.warning("no C++ compiler found (c++, g++ or clang++; CXX names another): %s", kernels.without)
        return None
    try:
        return _loaded(compiler, kernels.source)
    except Exception as e:  # whatever it is, the work can be done without
        log.warning("the %s kernels could not be built with %s: %s: %s", kernels.name, compiler, kernels.without, e)
        return None


def compile_kernels(compiler: str, target: Path, options: Sequence[str] = (), source: Path = MERGING.source) -> None:
    """Compile them into a file.

    Raises:
        BuildError: what the compiler says.
        OSError: the file cannot be written.
    """
    command = [compiler, *FLAGS, *WIDE, *options, str(source), "-o", str(target)]
    try:
        subprocess.run(command, check=True, capture_output=True, text=True, errors="replace", timeout=TIMEOUT)
    except (OSError, subprocess.SubprocessError) as e:
        raise BuildError((getattr(e, "stderr", "") or str(e)).strip()[:500]) from None


def _compiler() -> str | None:
    for name in (os.environ.get("CXX"), "c++", "g++", "clang++"):
        found = shutil.which(name) if name else None
        if found:
            return found
    return None


def _loaded(compiler: str, source: Path) -> ctypes.CDLL:
    """From the first place where they can be kept and run.

    Raises:
        BuildError: there is none, or the compiler failed.
    """
    name = f"{source.stem}-{_key(compiler, source)}.so"
    problems = []
    for above, names in _places():
        try:
            return _from(private_folder(above, *names), name, compiler, source)
        except (OSError, RuntimeError) as e:
            problems.append(str(e))
    try:
        # Nothing can be kept: for this process alone, under a name that nobody could know before.
        with tempfile.TemporaryDirectory(prefix="evomerge-") as folder:
            return _from(Path(folder), name, compiler, source)
    except OSError as e:
        raise BuildError("; ".join([*problems, str(e)])) from None


def _places() -> Iterator[tuple[Path, tuple[str, ...]]]:
    """Folders that are there, and those that are made in them for what is kept."""
    with suppress(RuntimeError):  # a user without a home
        folder = cache_folder()
        yield (folder, ("kernels",)) if os.environ.get(VARIABLE) else (folder.parent, (folder.name, "kernels"))
    if hasattr(os, "getuid"):
        yield Path(tempfile.gettempdir()), (f"evomerge-{os.getuid()}", "kernels")


def _from(folder: Path, name: str, compiler: str, source: Path) -> ctypes.CDLL:
    """The library in a folder of ours, built where it is missing, and once more where it cannot be loaded.

    Raises:
        BuildError: the compiler failed, now or in another process not long ago.
        OSError: the folder cannot be written to, or nothing in it can be run.
    """
    file = folder / name
    try:
        return _load(file)
    except (OSError, AttributeError):
        pass  # missing, damaged by a crash of the machine, or not ours: built anew
    failure = file.with_suffix(".failed")
    said = _said(failure)
    if said is not None:
        raise BuildError(f"{said} (it failed before; {failure} remembers that for a day)")
    # Beside it and renamed: processes that build at once do not see each other's half files.
    fd, temporary = tempfile.mkstemp(prefix=name, suffix=".part", dir=folder)
    os.close(fd)
    try:
        compile_kernels(compiler, Path(temporary), source=source)
        os.chmod(temporary, 0o700)  # a linker makes the file anew, with the umask's rights
        with open(temporary, "rb+") as written:
            os.fsync(written.fileno())
        os.replace(temporary, file)
    except BuildError as e:
        with suppress(OSError):
            failure.write_text(str(e), encoding="utf-8")
        raise
    finally:
        Path(temporary).unlink(missing_ok=True)
    try:
        return _load(file)
    except AttributeError as e:
        raise BuildError(str(e)) from None


def _load(file: Path) -> ctypes.CDLL:
    check_file(file)
    found = ctypes.CDLL(str(file))
    found.evomerge_version()
    return found


def _said(failure: Path) -> str | None:
    """Why the compiler failed, where that was not long ago."""
    try:
        check_file(failure)
        if not 0 <= time.time() - failure.stat().st_mtime < RETRY:
            return None
        return failure.read_text(encoding="utf-8", errors="replace")
    except OSError:
        return None


def _key(compiler: str, source: Path) -> str:
    """Covers all that the library depends on."""
    key = hashlib.sha256()
    program = Path(compiler).resolve().stat()
    sources = [file.name.encode() + b"\0" + file.read_bytes() for file in (source, *sorted(source.parent.glob("*.h")))]
    made_by = f"{compiler} {program.st_size} {program.st_mtime_ns}"
    for part in (*sources, " ".join((*FLAGS, *WIDE)).encode(), made_by.encode(), _processor().encode()):
        key.update(part + b"\0")
    return key.hexdigest()[:24]


def _processor() -> str:
    """What -march=native sees: a cache folder may be shared by machines of several kinds."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        kept = [line for line in lines if line.startswith(("model name", "flags", "Features", "CPU part"))]
        return "\n".join(sorted(set(kept)))
    except OSError:
        return f"{platform.machine()} {platform.processor()}"
